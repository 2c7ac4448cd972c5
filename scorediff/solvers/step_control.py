"""How long the next step is: the rules of the published adaptive solvers, as small functions.

Every rule looks at one number per attempt, the scaled error E: the difference between an embedded
pair of results divided by the tolerance, elementwise, and then averaged. E <= 1 is about what was
asked for. An error of order h^q wants the factor E^(-1/q) on the next step. The rules differ in
safety factors, in bounds, and in what they do after a rejection; an original's peculiarity lives
here, under its name, and nowhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.counting import counted
from scorediff.errors import UserError
from scorediff.types import Array, Cond, DenoiseFn

_SHRINK = 0.2  # factor after an attempt whose error is not finite


class Adaptive(NamedTuple):
    """What an adaptive solver returns: samples [b, *d], and per sample [b] what it took.

    A sample that did not arrive within its evaluations is NaN, with `finished` False; on the host,
    `check_finished` turns that into an error.
    """

    x: Any
    nfe: Array  # network evaluations, those of rejected attempts included, float32
    accepted: Array  # steps
    rejected: Array  # attempts
    finished: Array  # bool


def check_finished(result: Adaptive) -> None:
    """Raise UserError if a sample did not arrive (on the host, with the numbers at hand)."""
    finished = np.asarray(result.finished)
    if not finished.all():
        nfe = np.asarray(result.nfe)[~finished].max()
        raise UserError(
            f"{np.sum(~finished)} of {finished.size} samples had not reached the end after "
            f"{nfe:g} network evaluations; loosen rtol and atol, raise max_evaluations, or look "
            "for a network that returns NaN"
        )


def check_options(solver: str, *, rtol: float, atol: float, max_evaluations: int) -> None:
    """Refuse tolerances and budgets that no solver can work with.

    Tolerances may be traced, so that one compilation serves all; then nothing is known of them.
    """
    traced = isinstance(rtol, jax.core.Tracer) or isinstance(atol, jax.core.Tracer)
    if not traced and not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
        raise UserError(
            f"{solver}: rtol and atol must be at least 0 and one of them positive, "
            f"got rtol={rtol}, atol={atol}"
        )
    if max_evaluations < 1:
        raise UserError(f"{solver}: max_evaluations must be at least 1, got {max_evaluations}")


def solve_samples(
    solve: Callable[[Any, Cond], Adaptive], x: Any, cond: Cond, *, coupled: bool
) -> Adaptive:
    """Run `solve`, which has one step size for its batch, on each sample alone or on all at once.

    Alone means vmapped over batches of one: the network still sees all samples at once, and a
    sample that has arrived waits for the others unchanged.
    """
    if coupled:
        out = solve(x, cond)
        batch = jax.tree.leaves(x)[0].shape[0]
        return Adaptive(out.x, *(jnp.broadcast_to(leaf, (batch,)) for leaf in out[1:]))

    def alone(x: Any, cond: Cond) -> Adaptive:
        out = solve(*jax.tree.map(lambda leaf: leaf[None], (x, cond)))
        return out._replace(x=jax.tree.map(lambda leaf: leaf[0], out.x))

    return jax.vmap(alone)(x, cond)


def denoised(denoise: DenoiseFn, result: Adaptive, t_end: float, cond: Cond) -> Adaptive:
    """The result with x0_hat at t_end in the place of x, and its evaluation counted."""
    x, t = result.x, jnp.asarray(t_end, result.x.dtype)
    x0_hat, count = counted(lambda: denoise(x, t, cond), batch=x.shape[0])
    return result._replace(x=x0_hat, nfe=result.nfe + count)


# --- Runge-Kutta pairs


@dataclass(frozen=True, kw_only=True)
class RungeKuttaRule:
    """Factor clip(safety E^(-1/order), ...) on the step of an embedded Runge-Kutta pair.

    Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, section II.4.

    grows_when_kept: an accepted step is never followed by a shorter one.
    holds_after_rejection: the step accepted after a rejection is not followed by a longer one.
    keeps_exact: E = 1 is accepted.
    error_scale: what E is multiplied by; the estimate of one pair has more than one scale in use.
    steps_past_end: the last step is not shortened to end at t_end, it goes past it and the result
      is read off the interpolation.
    """

    safety: float = 0.9
    least: float = 0.2
    most: float = 10.0
    grows_when_kept: bool = True
    holds_after_rejection: bool = True
    keeps_exact: bool = False
    error_scale: float = 1.0
    steps_past_end: bool = False

    def __call__(self, error: Array, order: float, was_rejected: Array) -> tuple[Array, Array]:
        """(accepted, factor) from E of this attempt and whether the one before was rejected."""
        error = self.error_scale * error
        kept = error <= 1 if self.keeps_exact else error < 1
        wanted = jnp.minimum(self.safety * error ** (-1 / order), self.most)
        longest = jnp.where(was_rejected, 1.0, jnp.inf) if self.holds_after_rejection else jnp.inf
        after_kept = jnp.minimum(jnp.maximum(wanted, float(self.grows_when_kept)), longest)
        factor = jnp.where(kept, after_kept, jnp.maximum(wanted, self.least))
        return kept, jnp.where(jnp.isfinite(error), factor, _SHRINK)


# scipy's RK45 estimates the error of Dormand and Prince's own fourth-order weights. torchdiffeq, as
# diffrax, takes Shampine's (1986), whose estimate is 2/3 of that.
RUNGE_KUTTA_RULES = {
    "standard": RungeKuttaRule(),
    "scipy": RungeKuttaRule(grows_when_kept=False, error_scale=1.5),
    "torchdiffeq": RungeKuttaRule(
        holds_after_rejection=False, keeps_exact=True, steps_past_end=True
    ),
}


def first_step(
    slope: Callable[[Array, Any], Any],
    t: Array,
    x: Any,
    slope_here: Any,
    *,
    rtol: float,
    atol: float,
    order: float,
    longest: float = np.inf,
) -> Array:
    """A first step by the rule of Hairer, Norsett & Wanner, I, section II.4; one evaluation.

    Two guesses: one that moves x by 1% of its own size, and one from the change of the slope over
    that first guess. `order` is that of the error estimate in h, which the pair is controlled by.
    """
    size = jax.tree.map(lambda leaf: atol + rtol * jnp.abs(leaf), x)
    d0, d1 = rms(x, size), rms(slope_here, size)
    tiny = (d0 < 1e-5) | (d1 < 1e-5)
    h0 = jnp.minimum(jnp.where(tiny, 1e-6, 0.01 * d0 / jnp.where(tiny, 1.0, d1)), longest)
    there = jax.tree.map(lambda leaf, s: leaf + h0 * s, x, slope_here)
    change = jax.tree.map(jnp.subtract, slope(t + h0, there), slope_here)
    d2 = rms(change, size) / h0
    steepest = jnp.maximum(d1, d2)
    flat = steepest <= 1e-15
    h1 = (0.01 / jnp.where(flat, 1.0, steepest)) ** (1 / order)
    h1 = jnp.where(flat, jnp.maximum(1e-6, 1e-3 * h0), h1)
    return jnp.minimum(jnp.minimum(100 * h0, h1), longest)


def rms(tree: Any, scale: Any) -> Array:
    """Root mean square of tree / scale over all elements of all leaves, []."""
    ratios = jax.tree.leaves(jax.tree.map(jnp.divide, tree, scale))
    return jnp.sqrt(sum(jnp.sum(r**2) for r in ratios) / sum(r.size for r in ratios))


# --- DPM-Solver's embedded pairs


class Attempt(NamedTuple):
    """What a rule of DPM-Solver is told: E, and the lengths in log(alpha/sigma), each []."""

    error: Array
    wanted: Array  # step that the rule had asked for
    taken: Array  # the same, shortened to end at t_end


class Decision(NamedTuple):
    """Whether an attempt is accepted, the next step, and the rule's own memory."""

    accepted: Array
    step: Array
    memory: tuple[Array, ...]


@dataclass(frozen=True, kw_only=True)
class DpmSolverRule:
    """DPM-Solver's rule: accept if E <= 1; step <- 0.9 step E^(-1/order).

    Lu et al., arXiv 2206.00927, appendix C. E of a coupled batch is that of its worst sample.

    rounds_factor: E^(-1/order) in float32, as in the published code.
    slack_t: stop once t is this close to t_end; the published code stops at 1e-5.
    """

    rounds_factor: bool = False
    slack_t: float = 0.0

    def start(self) -> tuple[Array, ...]:
        return ()

    def error(self, ratio: Array) -> Array:
        """E from the error over its tolerance, [b, *d]."""
        return jnp.sqrt(jnp.max(jnp.mean(ratio**2, axis=tuple(range(1, ratio.ndim)))))

    def arrived(self, logsnr_half_left: Array, t_left: Array) -> Array:
        return (logsnr_half_left <= 0) | (t_left <= self.slack_t)

    def __call__(self, attempt: Attempt, order: int, memory: tuple[Array, ...]) -> Decision:
        power = attempt.error ** (-1 / order)
        if self.rounds_factor:
            power = power.astype(jnp.float32).astype(attempt.error.dtype)
        factor = jnp.where(jnp.isfinite(attempt.error), 0.9 * power, _SHRINK)
        return Decision(attempt.error <= 1, attempt.taken * factor, memory)


@dataclass(frozen=True, kw_only=True)
class PidRule:
    """k-diffusion's rule, a PID controller with a smooth limiter (Soderlind, 2003).

    With v0, v1, v2 = 1/E of this attempt and of the last two that were accepted (the first
    attempt's, where there are none),

        factor = limit(v0^((p+i+d)/order) v1^(-(p+2d)/order) v2^(d/order)),
        limit(u) = 1 + atan(u - 1),

    and an attempt is accepted if factor >= accept_safety. As in the original, E is one number over
    all elements of a coupled batch, a step that was shortened to end at t_end does not shorten what
    the factor acts on, and the end is reached when log(alpha/sigma) is 1e-5 away from it.
    """

    p: float = 0.0
    i: float = 1.0
    d: float = 0.0
    accept_safety: float = 0.81

    def start(self) -> tuple[Array, ...]:
        return (jnp.zeros(()),) * 2  # 0 is "none": it would be an infinite error

    def error(self, ratio: Array) -> Array:
        """E from the error over its tolerance, [b, *d]."""
        return jnp.sqrt(jnp.mean(ratio**2))

    def arrived(self, logsnr_half_left: Array, t_left: Array) -> Array:
        return logsnr_half_left <= 1e-5

    def __call__(self, attempt: Attempt, order: int, memory: tuple[Array, ...]) -> Decision:
        v0 = 1 / (attempt.error + 1e-8)
        v1, v2 = (jnp.where(v == 0, v0, v) for v in memory)
        powers = (self.p + self.i + self.d, -(self.p + 2 * self.d), self.d)
        product = v0 ** (powers[0] / order) * v1 ** (powers[1] / order) * v2 ** (powers[2] / order)
        factor = 1 + jnp.arctan(product - 1)
        accepted = factor >= self.accept_safety
        memory = (jnp.where(accepted, v0, v1), jnp.where(accepted, v1, v2))
        factor = jnp.where(jnp.isfinite(attempt.error), factor, _SHRINK)
        return Decision(accepted, attempt.wanted * factor, memory)
