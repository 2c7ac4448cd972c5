"""The exponential step and the one loop that DPM-Solver, UniPC, DEIS, LMS and SA-Solver share.

Let lambda = log(alpha/sigma), let h be its growth over a step and u in [0, 1] the way through it.
Take the reverse SDE that adds noise at eta times the ancestral rate (eta = 0 is the
probability-flow ODE). Its linear part has an exact solution, in either of two forms (Lu et al.,
arXiv 2211.01095, eq. 9 and section 5; arXiv 2206.00927, eq. 3.4):

    data:   x' = (sigma'/sigma) e^(-eta h) x + alpha' int_0^1 K e^(-K (1-u)) x0_hat du
                 + sigma' sqrt(1 - e^(-2 eta h)) z,                        K = (1 + eta) h,      (1)
    noise:  x' = (alpha'/alpha) x + (1 + eta) sigma' int_0^1 K e^(-K (1-u)) eps_hat du
                 + sigma' sqrt(eta (e^(2h) - 1)) z,                        K = -h.               (2)

A polynomial through the values m_j that are known at u_j stands in for the network. Its integral
is sum_j w_j m_j with the weights that are right for every power of u:

    sum_j w_j u_j^i = M_i,    M_i = int_0^1 K e^(-K (1-u)) u^i du = i! K phi_(i+1)(K).           (3)

So a scheme is its nodes u_j and its moments M_i: the published schemes differ in which M_i they
replace by a simpler number of the same leading order. As K goes to 0, M_i/K becomes 1/(i+1), and
the weights those of Adams and Bashforth.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from scorediff.errors import UserError, check_choice
from scorediff.solvers.grid import Grid, Node
from scorediff.solvers.table import (
    HISTORY,
    Row,
    StepTable,
    denoise_to_data,
    keep_eps,
    linear,
    make_table,
)

Prediction = Literal["x0", "eps"]


class Step(NamedTuple):
    """x' = decay x + gain sum_j w_j m_j + noise z, where w follows from the moments."""

    decay: float
    gain: float
    noise: float
    moments: np.ndarray  # M_0 ... M_4 of equation (3), or what a scheme has in their place
    rate: float = 0.0  # K of equation (3); 0 where there is no exponential


def data_step(now: Node, new: Node, *, eta: float = 0.0) -> Step:
    """Equation (1), finite also from alpha = 0, where the whole weight lies on the step's end."""
    h = new.logsnr_half - now.logsnr_half
    lost = eta * h if eta else 0.0
    return Step(
        decay=new.sigma / now.sigma * math.exp(-lost),
        gain=new.alpha,
        noise=new.sigma * math.sqrt(-math.expm1(-2 * lost)),
        moments=exponential_moments(h + lost),
        rate=h + lost,
    )


def noise_step(now: Node, new: Node, *, eta: float = 0.0) -> Step:
    """Equation (2); needs alpha > 0."""
    h = new.logsnr_half - now.logsnr_half
    return Step(
        decay=new.alpha / now.alpha,
        gain=(1 + eta) * new.sigma,
        noise=new.sigma * math.sqrt(eta * math.expm1(2 * h)),
        moments=exponential_moments(-h),
        rate=-h,
    )


def exponential_moments(rate: float) -> np.ndarray:
    """M_0 ... M_4 of equation (3) at K = rate."""
    if math.isinf(rate):
        return np.ones(HISTORY)
    return _FACTORIALS[:HISTORY] * rate * [phi(i + 1, rate) for i in range(HISTORY)]


_TERMS = 26
_FACTORIALS = np.array([float(math.factorial(i)) for i in range(_TERMS + HISTORY)])


def phi(k: int, h: float) -> float:
    """int_0^1 e^-(h (1-s)) s^(k-1)/(k-1)! ds, by its series where recursion would cancel."""
    if abs(h) < 2:
        return float(np.sum((-h) ** np.arange(_TERMS) / _FACTORIALS[k : k + _TERMS]))
    if k == 1:
        return -math.expm1(-h) / h
    return (1 / math.factorial(k - 1) - phi(k - 1, h)) / h


def weights(moments: Sequence[float], u: Sequence[float]) -> np.ndarray:
    """The weights of values at positions u [n], from the first n moments (equation 3)."""
    powers = np.vander(u, increasing=True).T
    return np.linalg.solve(powers, np.asarray(moments)[: len(u)])


# --- the multistep loop


def keep_x0(at: Node) -> tuple[float, float]:
    """Remember x0_hat."""
    return 0.0, 1.0


def logsnr_clock(at: Node) -> float:
    """lambda, in which the exponential schemes interpolate."""
    return at.logsnr_half


def by_moments(step: Step, u: Sequence[float]) -> np.ndarray:
    """Weights from the step's own moments: the polynomial through all the values."""
    return weights(step.moments, u)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What distinguishes one linear multistep method from another.

    advance: the step between two nodes. keep: what is remembered of an evaluation. clock: the
      variable of the polynomial. predict, correct: (step, positions of the values) -> weights, the
      newest value first; the corrector's newest value is at the end of the step, u = 1.
    extrapolate: step to data as to any node, where others take x0_hat itself.
    """

    advance: Callable[[Node, Node], Step] = data_step
    keep: Callable[[Node], tuple[float, float]] = keep_x0
    clock: Callable[[Node], float] = logsnr_clock
    predict: Callable[[Step, Sequence[float]], np.ndarray] = by_moments
    correct: Callable[[Step, Sequence[float]], np.ndarray] = by_moments
    extrapolate: bool = False

    def positions(self, nodes: Sequence[Node], now: Node, new: Node) -> list[float]:
        """Where nodes lie on the way from now (0) to new (1); those infinitely far are left out.

        Such are old ones with alpha = 0. No polynomial of finite slope feels them.
        """
        start, end = self.clock(now), self.clock(new)

        def place(node: Node) -> float:
            if node is now or node is new:
                return float(node is new)
            return (self.clock(node) - start) / (end - start)

        return [u for u in map(place, nodes) if math.isfinite(u)]


def multistep(
    grid: Grid, scheme: Scheme, orders: Sequence[int], corrector: Sequence[int] | None = None
) -> StepTable:
    """One evaluation a step; step k extrapolates from the last orders[k] values.

    With a corrector, step k is made again once the value at its end is known, from that value and
    older ones, corrector[k] in all (0: not at all). The value itself is kept (PEC). Register b then
    holds the step's linear part and noise, to which either sum of values is added.
    """
    rows, past, before = [], [], None
    for k, (now, new) in enumerate(grid.steps()):
        past = [now, *past[: HISTORY - 1]]
        if new.is_data and not scheme.extrapolate:
            rows.append(denoise_to_data(now))
            continue
        corrected = bool(corrector) and k > 0 and corrector[k - 1] > 0
        state = linear(e=1.0)
        if corrected:
            u = scheme.positions(past[: corrector[k - 1]], past[1], now)
            state = linear(b=1.0, m=before.gain * scheme.correct(before, u))
        before = scheme.advance(now, new)
        moved = before.decay * state + linear(z=before.noise)
        u = scheme.positions(past[: orders[k]], now, new)
        update = moved + linear(m=before.gain * scheme.predict(before, u))
        row = Row(now, e=update, keep=scheme.keep(now))
        rows.append(row._replace(b=moved) if corrector and corrector[k] else row)
    return make_table(rows, grid.nodes[-1])


def step_orders(
    solver: str,
    grid: Grid,
    *,
    order: int,
    highest: int,
    lower_order_final: bool,
    orders: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """The order of each step: 1, 2, ... up to `order`, and down again to the end if so wished.

    Explicit `orders` replace all that; a step has no more values than steps made before it, plus 1.
    """
    n = len(grid)
    if order not in range(1, highest + 1):
        raise UserError(f"{solver}: order must be 1 to {highest}, got {order}")
    if orders is None:
        left = [n - k if lower_order_final else order for k in range(n)]
        return tuple(min(order, k + 1, left[k]) for k in range(n))
    if len(orders) != n:
        raise UserError(f"{solver}: orders names {len(orders)} steps, but the grid has {n}")
    for k, wanted in enumerate(orders):
        if not 1 <= wanted <= min(highest, k + 1):
            raise UserError(
                f"{solver}: orders[{k}]={wanted}, but step {k} can have order 1 to "
                f"{min(highest, k + 1)}"
            )
    return tuple(orders)


def form_of(solver: str, prediction: Prediction, grid: Grid) -> tuple[Callable, Callable]:
    """(advance, keep) of the data or the noise form; the latter cannot start at alpha = 0."""
    check_choice(f"{solver}: prediction", prediction, ("x0", "eps"))
    if prediction == "x0":
        return data_step, keep_x0
    refuse_pure_noise(solver, grid)
    return noise_step, keep_eps


def refuse_pure_noise(solver: str, grid: Grid) -> None:
    """Solvers that extrapolate eps_hat divide by alpha, which flow matching starts at 0."""
    first = grid.nodes[0]
    if first.alpha < 1e-10:
        raise UserError(
            f"{solver}: extrapolating eps_hat needs alpha > 0, but alpha={first.alpha:.1e} at "
            f"t={first.t:g} of {type(grid.process).__name__}; start at a smaller t_start or use a "
            "solver on x0_hat, such as dpmpp_multistep"
        )
