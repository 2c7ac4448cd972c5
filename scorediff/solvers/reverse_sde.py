"""Solvers of the reverse-time SDE: Euler-Maruyama, Song et al.'s discretisations, and SiT's.

With dx = f x dt + g dw the forward process and score = (alpha x0_hat - x) / sigma^2, every

    dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw,        dt < 0,                          (1)

has the forward marginals: eta = 1 is the reverse SDE, eta = 0 the probability-flow ODE (Song et
al., arXiv 2011.13456, eq. 6 and 13). Written with the velocity v = dx/dt of that ODE and w = eta^2
g^2 / 2 it is

    dx = (v - w score) dt + sqrt(2 w) dw,                                                       (2)

which is right for any w(t) >= 0 (Ma et al., SiT, arXiv 2401.08740, section 2, whose w_t is 2 w; w
itself is what their code calls diffusion). The form (2) is finite at alpha = 0 where w is.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from scorediff.errors import UserError
from scorediff.solvers.grid import Grid, Node
from scorediff.solvers.table import (
    Row,
    StepTable,
    denoise_to_data,
    keep_velocity,
    linear,
    make_table,
)


def euler_maruyama(grid: Grid, *, eta: float = 1.0, step_size: float | None = None) -> StepTable:
    """Euler-Maruyama on equation (1); eta = 0 is Euler's method.

    `step_size` replaces every |dt|: score_sde takes 1/N for its N steps whatever its grid's
    spacing, and overshoots t_min by that.
    """
    _needs_signal("euler_maruyama", grid)

    def step(now: Node, new: Node) -> Row:
        if new.is_data:
            return denoise_to_data(now)
        h = new.t - now.t if step_size is None else -step_size
        f = now.dalpha / now.alpha
        g2 = _diffusion2(now)
        pull = 0.5 * (1 + eta**2) * g2 / now.sigma**2
        toward_x, toward_x0 = 1 + h * (f + pull), -h * pull * now.alpha
        return Row(now, e=linear(e=toward_x, m=(toward_x0,), z=eta * math.sqrt(-h * g2)))

    return make_table([step(*nodes) for nodes in grid.steps()], grid.nodes[-1])


class Transition(NamedTuple):
    """The forward step from the new node back to this one, x = ratio x' + sqrt(variance) z.

    posterior: the variance of x' given x and x0.
    """

    ratio: float
    variance: float
    posterior: float


Transitions = Callable[[Node, Node], Transition]


def exact_transition(now: Node, new: Node) -> Transition:
    """The process's own transition between two nodes."""
    ratio = now.alpha / new.alpha
    variance = now.sigma**2 - (ratio * new.sigma) ** 2
    return Transition(ratio, variance, variance * (new.sigma / now.sigma) ** 2)


def reverse_diffusion(
    grid: Grid, *, eta: float = 1.0, transition: Transitions = exact_transition
) -> StepTable:
    """The reverse SDE discretised as the forward one is (arXiv 2011.13456, eq. 46).

    x' = (2 - ratio) x + (1 + eta^2)/2 variance score + eta sqrt(variance) z

    eta = 1 is the SDE, eta = 0 the probability flow. `transition(now, new)` gives other forward
    steps than the nodes' own, such as those of a discrete list of betas.
    """
    _needs_signal("reverse_diffusion", grid)

    def step(now: Node, new: Node) -> Row:
        if new.is_data:
            return denoise_to_data(now)
        ratio, variance, _ = transition(now, new)
        pull = 0.5 * (1 + eta**2) * variance / now.sigma**2
        noise = eta * math.sqrt(variance)
        return Row(now, e=linear(e=2 - ratio - pull, m=(pull * now.alpha,), z=noise))

    return make_table([step(*nodes) for nodes in grid.steps()], grid.nodes[-1])


def discrete_ancestral(
    grid: Grid,
    *,
    variance: Literal["small", "large"] = "small",
    transition: Transitions = exact_transition,
) -> StepTable:
    """Ancestral sampling with given transitions (arXiv 2011.13456, eq. 4, appendix F).

    x' = (x + variance score) / ratio + noise z,  with noise^2 the posterior's variance (small: that
    of VE) or the transition's own (large: that of VP). With the nodes' own transitions this is
    `ddim.ancestral`.
    """
    if variance not in ("small", "large"):
        raise UserError(f"discrete_ancestral: variance must be small or large, got {variance!r}")
    _needs_signal("discrete_ancestral", grid)

    def step(now: Node, new: Node) -> Row:
        if new.is_data:
            return denoise_to_data(now)
        ratio, forward, posterior = transition(now, new)
        pull = forward / now.sigma**2
        noise = math.sqrt(posterior if variance == "small" else forward)
        return Row(now, e=linear(e=(1 - pull) / ratio, m=(pull * now.alpha / ratio,), z=noise))

    return make_table([step(*nodes) for nodes in grid.steps()], grid.nodes[-1])


Diffusion = Callable[[Node], float]


def constant(at: Node, *, norm: float = 1.0) -> float:
    """w = norm."""
    return norm


def proportional_to_sigma(at: Node, *, norm: float = 1.0) -> float:
    """w = norm sigma: SiT's choice for sampling."""
    return norm * at.sigma


def linear_in_t(at: Node, *, norm: float = 1.0) -> float:
    """w = norm t."""
    return norm * at.t


def decreasing(at: Node, *, norm: float = 1.0) -> float:
    """w = (1 - norm cos(pi t))^2 / 4, which falls from noise to data; for t in [0, 1]."""
    return 0.25 * (1 - norm * math.cos(math.pi * at.t)) ** 2


def increasing_decreasing(at: Node, *, norm: float = 1.0) -> float:
    """w = norm sin(pi t)^2, zero at both ends; for t in [0, 1]."""
    return norm * math.sin(math.pi * at.t) ** 2


def matched(at: Node, *, norm: float = 1.0) -> float:
    """w = norm g^2 / 2: the process's own reverse SDE at norm = 1; infinite where alpha = 0."""
    if at.alpha == 0:
        raise UserError(f"matched: g^2 is infinite where alpha = 0, at t={at.t:g}; start below it")
    return 0.5 * norm * _diffusion2(at)


def flow_sde(
    grid: Grid,
    *,
    diffusion: Diffusion = proportional_to_sigma,
    method: Literal["euler", "heun", "heun_noise_first"] = "euler",
    last_step: Literal["tweedie", "mean", "euler"] = "tweedie",
) -> StepTable:
    """Equation (2) with a diffusion w that may be chosen freely (SiT, arXiv 2401.08740).

    euler: Euler-Maruyama, one evaluation a step. heun: two, the trapezoid of the drift and of w at
    both ends of the step, with one noise in both stages; of weak order 2. heun_noise_first: as the
    published code has it, the step's noise comes before the first of its two evaluations, by w at
    its start; of weak order 1. The first step's noise is then the table's start, no Brownian path
    carries it, and `sample_prior` would take it for churn: start from your own x.

    The step to data, one evaluation: x0_hat (tweedie), the drift without noise (mean), or the
    velocity alone (euler).
    """
    if method not in ("euler", "heun", "heun_noise_first"):
        raise UserError(f"flow_sde: method must be euler, heun or heun_noise_first, got {method!r}")
    if last_step not in ("tweedie", "mean", "euler"):
        raise UserError(f"flow_sde: last_step must be tweedie, mean or euler, got {last_step!r}")
    steps = [(now, new) for now, new in grid.steps() if not new.is_data]
    if method == "heun_noise_first":
        start, rows = _heun_noise_first(steps, diffusion)
    else:
        make = _em_step if method == "euler" else _heun_step
        start, rows = 0.0, [row for now, new in steps for row in make(now, new, diffusion)]
    if grid.nodes[-1].is_data:
        rows.append(_last_flow_row(grid.nodes[-2], last_step, diffusion))
    return make_table(rows, grid.nodes[-1], start=(1.0, start))


def flow_stochastic(grid: Grid) -> StepTable:
    """x' = alpha' x0_hat + sigma' z: the estimate, noised afresh to the new level in every step.

    Consistency models sample so (Song et al., arXiv 2303.01469, algorithm 1), and diffusers' flow
    matching scheduler with `stochastic_sampling`.
    """

    def step(now: Node, new: Node) -> Row:
        if new.is_data:
            return denoise_to_data(now)
        return Row(now, e=linear(m=(new.alpha,), z=new.sigma))

    return make_table([step(*nodes) for nodes in grid.steps()], grid.nodes[-1])


def _em_step(now: Node, new: Node, diffusion: Diffusion) -> list[Row]:
    e = linear(e=1.0, m=(new.t - now.t,), z=_noise(now, new, diffusion(now)))
    return [Row(now, e=e, keep=_drift(now, diffusion(now)))]


def _heun_step(now: Node, new: Node, diffusion: Diffusion) -> list[Row]:
    mean = 0.5 * (diffusion(now) + diffusion(new))  # the trapezoid for the noise's variance, too
    return _trapezoid(now, new, diffusion, _noise(now, new, mean))


def _trapezoid(now: Node, new: Node, diffusion: Diffusion, noise: float) -> list[Row]:
    h = new.t - now.t
    predict, base = linear(e=1.0, m=(h,), z=noise), linear(e=1.0, z=noise)
    return [
        Row(now, e=predict, b=base, keep=_drift(now, diffusion(now))),
        Row(new, e=linear(b=1.0, m=(h / 2, h / 2)), keep=_drift(new, diffusion(new))),
    ]


def _heun_noise_first(
    steps: list[tuple[Node, Node]], diffusion: Diffusion
) -> tuple[float, list[Row]]:
    """The start's noise and the rows: each step's noise is added by the row before it."""
    noises = [_noise(now, new, diffusion(now)) for now, new in steps]
    rows = []
    for k, (now, new) in enumerate(steps):
        predict, correct = _trapezoid(now, new, diffusion, 0.0)
        if k + 1 < len(steps):
            e = correct.e + linear(z=noises[k + 1])
            correct = correct._replace(e=e, over=steps[k + 1])
        rows += [predict, correct]
    return (noises[0] if noises else 0.0), rows


def _noise(now: Node, new: Node, w: float) -> float:
    if not w >= 0:
        raise UserError(f"flow_sde: the diffusion must not be negative, got {w} at t={now.t:g}")
    return math.sqrt(2 * w * (now.t - new.t))


def _last_flow_row(now: Node, last_step: str, diffusion: Diffusion) -> Row:
    if last_step == "tweedie":
        return denoise_to_data(now)
    w = diffusion(now) if last_step == "mean" else 0.0
    return Row(now, e=linear(e=1.0, m=(-now.t,)), keep=_drift(now, w))


def _drift(at: Node, w: float) -> tuple[float, float]:
    """Remember v - w score, the drift of equation (2)."""
    of_x, of_x0 = keep_velocity(at)
    pull = w / at.sigma**2
    return of_x + pull, of_x0 - pull * at.alpha


def _diffusion2(at: Node) -> float:
    """g^2 of the forward process."""
    return 2 * at.sigma * (at.dsigma - at.dalpha / at.alpha * at.sigma)


def _needs_signal(name: str, grid: Grid) -> None:
    first = grid.nodes[0]
    if first.alpha < 1e-10:
        raise UserError(
            f"{name}: the reverse SDE is singular where alpha = 0, at t={first.t:g} of "
            f"{type(grid.process).__name__}; start at a smaller t_start, or use flow_sde"
        )
