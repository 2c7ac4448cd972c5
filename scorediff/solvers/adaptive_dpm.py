"""DPM-Solver-12 and -23: DPM-Solver's embedded pairs with adaptive steps.

A step of length h in lambda = log(alpha/sigma), from (alpha, sigma) to (alpha', sigma'), solves the
linear part of the probability-flow ODE exactly and replaces what the network says, m, by a
polynomial. With A and P, and the functions of k = -h or h,

    noise form: m = eps_hat, A = alpha'/alpha, P = sigma', k = h  (arXiv 2206.00927, eq. 3.4)
    data form:  m = x0_hat,  A = sigma'/sigma, P = alpha', k = -h (arXiv 2211.01095, eq. 9)

    order 1:  x' = A x - P f1 m_s                                                               (1)
    order 2:  x' = (1) - P f1 (m_1 - m_s) / (2 r1)                                              (2)
    order 3:  x' = (1) + c P f2 (m_2 - m_s) / r2                                                (3)

where f1 = e^k - 1, f2 = f1/h + c, and c = 1 in the data form, -1 in the noise form. m_1 is
evaluated a part r1 of the way, at the result of (1) there; m_2 a part r2 of it, at that of (3) with
r2 (m_1 - m_s) / r1 in the place of (m_2 - m_s) / r2. Two neighbouring orders share evaluations: (1)
with (2) at r1 = 1/2, and (2) with (3) at r1 = 1/3, r2 = 2/3. Their difference is the error by which
a step is judged, and the higher order is what is kept.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.counting import counted
from scorediff.diffusion.process import Process
from scorediff.errors import UserError, check_choice
from scorediff.solvers.step_control import (
    Adaptive,
    Attempt,
    DpmSolverRule,
    PidRule,
    check_options,
    denoised,
    solve_samples,
)
from scorediff.types import Array, Cond, DenoiseFn

Prediction = Literal["x0", "eps"]
Control = Literal["standard", "dpm_solver", "k_diffusion"]

_RULES = {
    "standard": DpmSolverRule(),
    "dpm_solver": DpmSolverRule(rounds_factor=True, slack_t=1e-5),
}


def dpm_adaptive(
    denoise: DenoiseFn,
    process: Process,
    x: Array,
    *,
    order: Literal[2, 3] = 3,
    prediction: Prediction = "x0",
    t_start: float | None = None,
    t_end: float | None = None,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    control: Control = "standard",
    pid: tuple[float, float, float] = (0.0, 1.0, 0.0),
    accept_safety: float = 0.81,
    coupled: bool = False,
    to_data: bool = False,
    cond: Cond = None,
    max_evaluations: int = 10_000,
) -> Adaptive:
    """Carry x [b, *d] from t_start (t_max) down to t_end (t_min) with DPM-Solver-12 or -23.

    Every attempt, accepted or not, costs `order` evaluations; `h_init` is the first step in
    log(alpha/sigma). The error of an element may be max(atol, rtol |x|), |x| being the larger of
    this step's lower-order result and the last one's; the defaults are the paper's for images in
    [-1, 1]. By default each sample has its own steps; `coupled` gives the batch one step size, as
    the originals do. `to_data` ends with one more evaluation, x0_hat at t_end.

    control: "standard", the paper's rule; "dpm_solver", the same with its published code's float32
      rounding and its stop within 1e-5 of t_end; "k_diffusion", a PID controller with coefficients
      `pid` and `accept_safety`, which the other two do not have.

    Lu et al., arXiv 2206.00927, appendix C. Raises UserError for options that make no sense;
    samples that need more than max_evaluations come back as NaN (`step_control.check_finished`).
    """
    check_options("dpm_adaptive", rtol=rtol, atol=atol, max_evaluations=max_evaluations)
    check_choice("dpm_adaptive: order", order, (2, 3))
    check_choice("dpm_adaptive: prediction", prediction, ("x0", "eps"))
    if not h_init > 0:
        raise UserError(f"dpm_adaptive: h_init must be positive, got {h_init}")
    rule = _rule(control, pid, accept_safety)
    pair = _Pair(denoise=denoise, process=process, order=order, of_data=prediction == "x0")
    first, last, t_end = _ends(process, t_start, t_end)

    def solve(x: Array, cond: Cond) -> Adaptive:
        drive = _Drive(pair, rule, last, t_end, rtol, atol, max_evaluations, cond)
        return drive.run(x, first, h_init)

    out = solve_samples(solve, x, cond, coupled=coupled)
    return denoised(denoise, out, t_end, cond) if to_data else out


def _rule(control: Control, pid: tuple[float, float, float], accept_safety: float):
    check_choice("dpm_adaptive: control", control, get_args(Control))
    p, i, d = pid
    return _RULES.get(control) or PidRule(p=p, i=i, d=d, accept_safety=accept_safety)


def _ends(
    process: Process, t_start: float | None, t_end: float | None
) -> tuple[float, float, float]:
    """log(alpha/sigma) at both ends, and t at the last."""
    t_start = process.t_max if t_start is None else t_start
    t_end = process.t_min if t_end is None else t_end
    if not t_start > t_end:
        raise UserError(f"dpm_adaptive goes down in t, got t_start={t_start}, t_end={t_end}")
    m = process.host(np.array([t_start, t_end]))
    if not (m.alpha[0] > 1e-10 and m.sigma[1] > 0):
        raise UserError(
            f"dpm_adaptive needs finite logSNR at both ends, but {type(process).__name__} has "
            f"alpha={m.alpha[0]:.1e} at t={t_start:g}, sigma={m.sigma[1]:.1e} at t={t_end:g}; "
            "start at a smaller t_start or use adaptive_ode"
        )
    first, last = (0.5 * m.logsnr).tolist()
    return first, last, t_end


class _Node(NamedTuple):
    t: Array
    alpha: Array
    sigma: Array


class _Pair(NamedTuple):
    """Both orders of one step."""

    denoise: DenoiseFn
    process: Process
    order: int
    of_data: bool

    def node(self, logsnr_half: Array) -> _Node:
        t = self.process.time(2 * logsnr_half)
        m = self.process(t)
        return _Node(t, m.alpha, m.sigma)

    def __call__(self, x: Array, start: Array, h: Array, cond: Cond) -> tuple[Array, Array]:
        """(lower, higher) order after a step h from log(alpha/sigma) = start."""
        c = 1 if self.of_data else -1
        s, end = self.node(start), self.node(start + h)
        m_s = self.m(x, s, cond)

        def line(at: _Node, r: float) -> Array:
            """Equation (1) a part r of the way."""
            return self.kept(s, at) * x - self.weight(at) * jnp.expm1(-c * r * h) * m_s

        def bend(at: _Node, r: float) -> Array:
            """c P f2 a part r of the way."""
            return c * self.weight(at) * (jnp.expm1(-c * r * h) / (r * h) + c)

        r1, r2 = 1 / self.order, 2 / 3
        inner = self.node(start + r1 * h)
        change = (self.m(line(inner, r1), inner, cond) - m_s) / r1
        first = line(end, 1.0)
        second = first - 0.5 * self.weight(end) * jnp.expm1(-c * h) * change
        if self.order == 2:
            return first, second
        outer = self.node(start + r2 * h)
        m_2 = self.m(line(outer, r2) + r2 * bend(outer, r2) * change, outer, cond)
        return second, first + bend(end, 1.0) * (m_2 - m_s) / r2

    def kept(self, s: _Node, at: _Node) -> Array:
        """A."""
        return at.sigma / s.sigma if self.of_data else at.alpha / s.alpha

    def weight(self, at: _Node) -> Array:
        """P."""
        return at.alpha if self.of_data else at.sigma

    def m(self, x: Array, at: _Node, cond: Cond) -> Array:
        x0_hat, _ = counted(lambda: self.denoise(x, at.t, cond), batch=x.shape[0])
        return x0_hat if self.of_data else (x - at.alpha * x0_hat) / at.sigma


class _State(NamedTuple):
    x: Array  # [b, *d]
    x_before: Array  # lower-order result of the last accepted step
    at: Array  # log(alpha/sigma), as all that follow []
    h: Array
    memory: tuple[Array, ...]
    nfe: Array
    accepted: Array
    rejected: Array


class _Drive(NamedTuple):
    """The loop over attempts."""

    pair: _Pair
    rule: DpmSolverRule | PidRule
    end: float  # log(alpha/sigma) at t_end
    t_end: float
    rtol: float
    atol: float
    max_evaluations: int
    cond: Cond

    def run(self, x: Array, start: float, h_init: float) -> Adaptive:
        number = jnp.zeros((), x.dtype)
        none = jnp.zeros((), jnp.int32)
        memory = tuple(leaf.astype(x.dtype) for leaf in self.rule.start())
        state = _State(
            x, x, number + start, number + h_init, memory, jnp.zeros((), jnp.float32), none, none
        )
        state = jax.lax.while_loop(self.goes_on, self.attempt, state)
        finished = self.arrived(state)
        return Adaptive(
            x=jnp.where(finished, state.x, jnp.nan),
            nfe=state.nfe,
            accepted=state.accepted,
            rejected=state.rejected,
            finished=finished,
        )

    def goes_on(self, state: _State) -> Array:
        moves = state.at + state.h > state.at
        affordable = state.nfe + self.pair.order <= self.max_evaluations
        return ~self.arrived(state) & affordable & moves

    def arrived(self, state: _State) -> Array:
        t_left = self.pair.node(state.at).t - self.t_end
        return self.rule.arrived(self.end - state.at, jnp.abs(t_left))

    def attempt(self, state: _State) -> _State:
        left = self.end - state.at
        h = jnp.minimum(state.h, left)
        (low, high), count = counted(
            lambda: self.pair(state.x, state.at, h, self.cond), batch=state.x.shape[0]
        )
        size = jnp.maximum(jnp.abs(low), jnp.abs(state.x_before))
        ratio = (high - low) / jnp.maximum(self.atol, self.rtol * size)
        decision = self.rule(
            Attempt(error=self.rule.error(ratio), wanted=state.h, taken=h),
            self.pair.order,
            state.memory,
        )
        kept = decision.accepted
        there = jnp.where(h >= left, self.end, state.at + h)
        return _State(
            x=jnp.where(kept, high, state.x),
            x_before=jnp.where(kept, low, state.x_before),
            at=jnp.where(kept, there, state.at),
            h=decision.step,
            memory=decision.memory,
            nfe=state.nfe + count,
            accepted=state.accepted + kept,
            rejected=state.rejected + ~kept,
        )
