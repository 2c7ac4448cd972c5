"""DPM-Solver++ multistep: the exact solution of the linear part, a polynomial for x0_hat.

In lambda = log(alpha/sigma) the probability-flow ODE has the exact solution (Lu et al., arXiv
2211.01095, eq. 9)

    x' = (sigma'/sigma) x + alpha' int_0^h e^-(h-s) x0_hat(lambda + s) ds,      h = lambda' -
    lambda.       (1)

Order k replaces x0_hat along the step by a polynomial through the last k evaluations. With
phi_1(h) = (1 - e^-h)/h and the further phi_k, a Taylor term x0^(j) s^j/j! integrates to
h^(j+1) phi_(j+1)(h).
"""

import math

import numpy as np

from scorediff.errors import UserError
from scorediff.solvers.grid import Grid, Node
from scorediff.solvers.table import Row, StepTable, denoise_to_data, linear, make_table


def dpmpp_multistep(grid: Grid, *, order: int = 2, lower_order_final: bool = True) -> StepTable:
    """DPM-Solver++ of order 1, 2 or 3, one evaluation a step (arXiv 2211.01095, algorithm 2).

    Warms up with orders 1, 2, ... The step to data is always of order 1; with `lower_order_final`,
    the default, the order also falls to 1 towards the end (min(order, steps left)), which matters
    at 5 to 20 evaluations and costs the asymptotic order of order 3.

    Order 2 is the published midpoint form. Order 3 takes the full quadratic through three
    evaluations, and is of third order; the published code halves its second difference and is of
    second.
    """
    if order not in (1, 2, 3):
        raise UserError(f"dpmpp_multistep: order must be 1, 2 or 3, got {order}")
    rows, past = [], []
    for k, (now, new) in enumerate(grid.steps()):
        past = [now, *past[: order - 1]]
        left = len(grid) - k if lower_order_final else order
        rows.append(_step(past[: max(1, min(order, left))], new))
    return make_table(rows, grid.nodes[-1])


def _step(past: list[Node], new: Node) -> Row:
    """The row at past[0], whose x0_hat is extrapolated from all of `past`, newest first."""
    now = past[0]
    if new.is_data:
        return denoise_to_data(now)
    keep = new.sigma / now.sigma
    weight = new.alpha - keep * now.alpha  # alpha' (1 - e^-h), finite also where h is infinite
    if len(past) == 1 or now.alpha == 0:
        return Row(now, e=linear(e=keep, m=(weight,)))
    h = new.logsnr_half - now.logsnr_half
    backs = [now.logsnr_half - node.logsnr_half for node in past[1:]]
    if len(past) == 2:
        half = 0.5 * weight * h / backs[0]
        return Row(now, e=linear(e=keep, m=(weight + half, -half)))
    return Row(now, e=linear(e=keep, m=tuple(new.alpha * _quadratic_weights(h, *backs))))


def _quadratic_weights(h: float, near: float, far: float) -> np.ndarray:
    """Integrals of equation (1) of the Lagrange polynomials on s = 0, -near, -far.

    A node at infinite distance (alpha = 0) drops out, which leaves the line through the other two.
    """
    one, two, three = h * phi(1, h), h**2 * phi(2, h), h**3 * phi(3, h)
    if math.isinf(far):
        return np.array([one + two / near, -two / near, 0.0])
    # slope and second derivative at s = 0 of each polynomial, from divided differences
    slopes = np.array(
        [1 / near + 1 / far, -far / (near * (far - near)), near / (far * (far - near))]
    )
    bends = 2 * np.array([1 / (near * far), -1 / (near * (far - near)), 1 / (far * (far - near))])
    return np.array([one, 0.0, 0.0]) + two * slopes + three * bends


def phi(k: int, h: float) -> float:
    """int_0^1 e^-(h (1-s)) s^(k-1)/(k-1)! ds, by its series where recursion would cancel."""
    if h < 1:
        return sum((-h) ** j / math.factorial(j + k) for j in range(20))
    if k == 1:
        return -math.expm1(-h) / h
    return (1 / math.factorial(k - 1) - phi(k - 1, h)) / h
