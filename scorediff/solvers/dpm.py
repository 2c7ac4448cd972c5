"""DPM-Solver and DPM-Solver++ multistep, orders 1 to 3, as ODE or SDE solvers.

Both extrapolate the network's last answers through the exact solution of `exponential`: eps_hat
(DPM-Solver, equation 2 there) or x0_hat (DPM-Solver++, equation 1). With the moments M_i of
equation (3), order 2 has two published forms,

    taylor:     M_0, M_1;        midpoint:    M_0, M_0/2   (the line, read at the step's middle).

Order 3 has M_0, M_1, M_2. The published codes halve its second difference, so they have M_2/2 and
are of second order.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np

from scorediff.errors import UserError, check_choice
from scorediff.solvers.exponential import (
    Prediction,
    Scheme,
    Step,
    form_of,
    multistep,
    step_orders,
    weights,
)
from scorediff.solvers.grid import Grid, Node
from scorediff.solvers.table import StepTable

Form = Literal["midpoint", "taylor"]
ThirdOrder = Literal["consistent", "published", "diffusers_sde"]


def dpmpp_multistep(
    grid: Grid,
    *,
    order: int = 2,
    eta: float = 0.0,
    form: Form = "midpoint",
    third_order: ThirdOrder = "consistent",
    lower_order_final: bool = True,
    orders: tuple[int, ...] | None = None,
    noise_scale: float = 1.0,
) -> StepTable:
    """DPM-Solver++ multistep, one evaluation a step (Lu et al., arXiv 2211.01095, algorithm 2).

    Warms up with orders 1, 2, ... The step to data is always of order 1; with `lower_order_final`,
    the default, the order also falls to 1 towards the end (min(order, steps left)), which matters
    at 5 to 20 evaluations and costs the asymptotic order of order 3.

    eta: the noise added, as a multiple of ancestral sampling's rate: 0 is the ODE, 1 the paper's
      SDE-DPM-Solver++ (its section 5); any eta is k-diffusion's 2M and 3M SDE. At order 1 eta = 1
      is `ancestral`.
    form: of order-2 steps, those of the warm-up included.
    third_order: consistent, or the published codes' half second difference, which is of second
      order. diffusers_sde is diffusers' sde-dpmsolver++ with its wrong sign (M_2/2 - 1), so that
      errors can grow with the number of steps; only for comparison, with eta > 0.
    orders: the order of each step, in place of warm-up and lower_order_final.
    noise_scale: multiplies the noise (s_noise of k-diffusion).
    """
    return _multistep(
        "dpmpp_multistep",
        grid,
        "x0",
        order=order,
        eta=eta,
        form=form,
        third_order=third_order,
        lower_order_final=lower_order_final,
        orders=orders,
        noise_scale=noise_scale,
    )


def dpm_multistep(
    grid: Grid,
    *,
    order: int = 2,
    eta: float = 0.0,
    form: Form = "midpoint",
    third_order: ThirdOrder = "consistent",
    lower_order_final: bool = True,
    orders: tuple[int, ...] | None = None,
    noise_scale: float = 1.0,
) -> StepTable:
    """DPM-Solver multistep, which extrapolates eps_hat (Lu et al., arXiv 2206.00927, 2211.01095).

    Options as in `dpmpp_multistep`; eta = 1 is SDE-DPM-Solver. Unlike the data form, the SDE adds a
    little variance at each step: the noise form is exact for constant eps_hat, but new noise
    changes eps_hat. Refuses a first node with alpha = 0, whose eps_hat says nothing of the data.
    """
    return _multistep(
        "dpm_multistep",
        grid,
        "eps",
        order=order,
        eta=eta,
        form=form,
        third_order=third_order,
        lower_order_final=lower_order_final,
        orders=orders,
        noise_scale=noise_scale,
    )


def _multistep(
    solver: str,
    grid: Grid,
    prediction: Prediction,
    *,
    order: int,
    eta: float,
    form: Form,
    third_order: ThirdOrder,
    lower_order_final: bool,
    orders: Sequence[int] | None,
    noise_scale: float,
) -> StepTable:
    check_choice(f"{solver}: form", form, get_args(Form))
    check_choice(f"{solver}: third_order", third_order, get_args(ThirdOrder))
    if eta < 0:
        raise UserError(f"{solver}: eta must be at least 0, got {eta}")
    if third_order == "diffusers_sde" and not eta:
        raise UserError(f"{solver}: third_order='diffusers_sde' is of the SDE, but eta=0")
    exact, keep = form_of(solver, prediction, grid)

    def advance(now: Node, new: Node) -> Step:
        step = exact(now, new, eta=eta)
        return step._replace(noise=noise_scale * step.noise)

    predict = partial(extrapolate, form=form, third_order=third_order)
    scheme = Scheme(advance=advance, keep=keep, predict=predict)
    plan = step_orders(
        solver, grid, order=order, highest=3, lower_order_final=lower_order_final, orders=orders
    )
    return multistep(grid, scheme, plan)


def extrapolate(
    step: Step, u: Sequence[float], *, form: Form, third_order: ThirdOrder
) -> np.ndarray:
    """Weights of one, two or three values, with the moments that the options name."""
    moments = step.moments[: len(u)].copy()
    if len(u) == 2 and form == "midpoint":
        moments[1] = moments[0] / 2
    if len(u) == 3 and third_order != "consistent":
        moments[2] = moments[2] / 2 - (third_order == "diffusers_sde")
    return weights(moments, u)
