"""Linear multistep solvers that extrapolate eps_hat: LMS, DEIS, iPNDM and PNDM.

In y = x/alpha and rho = sigma/alpha the probability-flow ODE is dy/drho = eps_hat (Song et al.,
arXiv 2010.02502, eq. 14), so that

    x' = (alpha'/alpha) x + alpha' int eps_hat drho    over the step from rho to rho' < rho.     (1)

A polynomial through the last eps_hat stands in for it. The solvers differ in its variable: rho
(LMS, Adams-Bashforth), t or lambda = log(alpha/sigma) (DEIS), or the mere number of the step
(iPNDM, PNDM). With u the variable, scaled to 0 at the step's start and 1 at its end, the moments
of `exponential`, equation (3), are

    rho:  int_0^1 u^i du = 1/(i+1), times rho' - rho;
    t:    int u^i drho = rho' - rho for i = 0, else i int_0^1 u^(i-1) (rho' - rho(t(u))) du.     (2)

All divide by alpha, so they cannot start where alpha = 0.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from scorediff.errors import check_choice
from scorediff.solvers.exponential import (
    Scheme,
    Step,
    logsnr_clock,
    multistep,
    noise_step,
    refuse_pure_noise,
    step_orders,
    weights,
)
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

Variable = Literal["t", "rho", "log_rho"]
_EQUAL = 1 / np.arange(1.0, HISTORY + 1)  # int_0^1 u^i du
_POINTS, _SHARES = np.polynomial.legendre.leggauss(32)
_POINTS, _SHARES = (_POINTS + 1) / 2, _SHARES / 2  # Gauss-Legendre quadrature over [0, 1]


def lms(
    grid: Grid,
    *,
    order: int = 4,
    extrapolate_to_data: bool = False,
    lower_order_final: bool = False,
    orders: tuple[int, ...] | None = None,
) -> StepTable:
    """Adams-Bashforth in rho = sigma/alpha on eps_hat, orders 1 to 4, for any spacing.

    k-diffusion's LMS, and DEIS's rho-AB (Zhang & Chen, arXiv 2204.13902). Warms up with orders 1,
    2, ...

    extrapolate_to_data: the step to data follows the polynomial to rho = 0, as k-diffusion's does,
      where the default takes x0_hat, as all solvers here do.
    lower_order_final, orders: as in `dpmpp_multistep`.
    """
    refuse_pure_noise("lms", grid)
    scheme = Scheme(advance=_in_rho, keep=keep_eps, clock=_rho, extrapolate=extrapolate_to_data)
    return multistep(grid, scheme, _orders("lms", grid, order, lower_order_final, orders))


def deis(
    grid: Grid,
    *,
    order: int = 3,
    variable: Variable = "t",
    lower_order_final: bool = False,
    orders: tuple[int, ...] | None = None,
) -> StepTable:
    """DEIS of order 1 to 4 (Zhang & Chen, arXiv 2204.13902, section 3).

    variable: of the polynomial: t (tAB-DEIS, with the moments of equation (2) by Gauss-Legendre
      quadrature), rho (rho-AB, which is `lms`) or log_rho, whose orders 1 to 3 are `dpm_multistep`
      in its taylor form (diffusers' DEIS). The paper's tAB-DEIS of polynomial degree k is order
      k + 1 here.
    lower_order_final, orders: as in `dpmpp_multistep`.
    """
    check_choice("deis: variable", variable, get_args(Variable))
    refuse_pure_noise("deis", grid)

    def in_time(now: Node, new: Node) -> Step:
        along = grid.process.host(now.t + _POINTS * (new.t - now.t))
        return _step(now, new, _moments_in_time(now, new, along.sigma / along.alpha))

    advance, clock = {
        "t": (in_time, lambda node: node.t),
        "rho": (_in_rho, _rho),
        "log_rho": (noise_step, logsnr_clock),
    }[variable]
    scheme = Scheme(advance=advance, keep=keep_eps, clock=clock)
    return multistep(grid, scheme, _orders("deis", grid, order, lower_order_final, orders))


def ipndm(
    grid: Grid,
    *,
    order: int = 4,
    extrapolate_to_data: bool = False,
    lower_order_final: bool = False,
    orders: tuple[int, ...] | None = None,
) -> StepTable:
    """iPNDM: Adams-Bashforth of equal steps on eps_hat, then DDIM (arXiv 2204.13902).

    PNDM (Liu et al., arXiv 2202.09778) with a warm-up of orders 1, 2, ... instead. The coefficients
    (3, -1)/2, (23, -16, 5)/12, (55, -59, 37, -9)/24 are right for nodes equally spaced in rho; on
    other smooth spacings the solver is of second order, whatever `order`.

    extrapolate_to_data: DDIM with the extrapolated eps_hat to data as well, where the default takes
      x0_hat. lower_order_final, orders: as in `dpmpp_multistep`.
    """
    refuse_pure_noise("ipndm", grid)

    def equally_spaced(step: Step, u: Sequence[float]) -> np.ndarray:
        return _adams_bashforth(step, len(u))

    scheme = Scheme(
        advance=_in_rho,
        keep=keep_eps,
        clock=_rho,
        predict=equally_spaced,
        extrapolate=extrapolate_to_data,
    )
    return multistep(grid, scheme, _orders("ipndm", grid, order, lower_order_final, orders))


def pndm(grid: Grid, *, extrapolate_to_data: bool = False) -> StepTable:
    """PNDM's pseudo linear multistep method, as Stable Diffusion ran: n + 1 evaluations, n steps.

    Liu et al., arXiv 2202.09778, section 3: iPNDM of order 4, but the first step is a pseudo
    improved Euler step (DDIM, then again with the mean of eps_hat at both ends), and then orders 2,
    3 and 4 follow. The paper's other warm-up, three pseudo Runge-Kutta steps with 9 evaluations
    more, is not offered: order 4 after it looks back over 10 evaluations, and a table over 5.

    extrapolate_to_data: as in `ipndm`.
    """
    refuse_pure_noise("pndm", grid)
    rows: list[Row] = []
    for k, (now, new) in enumerate(grid.steps()):
        if new.is_data and not extrapolate_to_data:
            rows.append(denoise_to_data(now))
        elif k == 0:
            rows += _improved_euler(now, new)
        else:
            step = _in_rho(now, new)
            w = _adams_bashforth(step, min(4, k + 1))
            if k < 4:  # the evaluation that improved the first step is no node of its own
                w = np.insert(w, k, 0.0)
            rows.append(Row(now, e=linear(e=step.decay, m=step.gain * w), keep=keep_eps(now)))
    return make_table(rows, grid.nodes[-1])


def _improved_euler(now: Node, new: Node) -> list[Row]:
    step = _in_rho(now, new)
    whole = step.gain * step.moments[0]
    if new.is_data:
        return [Row(now, e=linear(e=step.decay, m=(whole,)), keep=keep_eps(now))]
    return [
        Row(now, e=linear(e=step.decay, m=(whole,)), b=linear(e=1.0), keep=keep_eps(now)),
        Row(new, e=linear(b=step.decay, m=(whole / 2, whole / 2)), keep=keep_eps(new)),
    ]


def _adams_bashforth(step: Step, order: int) -> np.ndarray:
    """The weights for values one step apart."""
    return weights(step.moments, -np.arange(order, dtype=float))


def _orders(
    solver: str,
    grid: Grid,
    order: int,
    lower_order_final: bool,
    orders: tuple[int, ...] | None,
) -> tuple[int, ...]:
    return step_orders(
        solver, grid, order=order, highest=4, lower_order_final=lower_order_final, orders=orders
    )


def _rho(node: Node) -> float:
    return node.sigma / node.alpha


def _in_rho(now: Node, new: Node) -> Step:
    return _step(now, new, (_rho(new) - _rho(now)) * _EQUAL)


def _step(now: Node, new: Node, moments: np.ndarray) -> Step:
    """Equation (1)."""
    return Step(decay=new.alpha / now.alpha, gain=new.alpha, noise=0.0, moments=moments)


def _moments_in_time(now: Node, new: Node, rho: np.ndarray) -> np.ndarray:
    """Equation (2), from rho at the quadrature's points."""
    ahead = _SHARES * (_rho(new) - rho)
    inner = [i * np.sum(_POINTS ** (i - 1) * ahead) for i in range(1, HISTORY)]
    return np.array([_rho(new) - _rho(now), *inner])
