"""UniPC: a multistep predictor, and a corrector that costs no evaluation.

Zhao et al. (arXiv 2302.04867) extrapolate as DPM-Solver does. When the network has answered at the
end of a step, that answer serves twice: the next step extrapolates from it, and the step just made
is made again with it (their algorithms 1 and 2). UniPC-p so has order p + 1.

In the terms of `exponential`, equation (3), both halves are the weights of the values at hand, p
for the predictor and p + 1 for the corrector. The paper's B(h) matters only where two values are
used; there it replaces M_1, avoiding the division by h:

    bh1: B = K:  M_1 = K/2;      bh2: B = 1 - e^-K:  M_1 = M_0/2;      vary_coeff: M_1 itself.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np

from scorediff.errors import UserError, check_choice
from scorediff.solvers.exponential import (
    Prediction,
    Scheme,
    Step,
    by_moments,
    form_of,
    multistep,
    step_orders,
    weights,
)
from scorediff.solvers.grid import Grid
from scorediff.solvers.table import StepTable

Variant = Literal["bh1", "bh2", "vary_coeff", "vary_coeff_published"]


def unipc(
    grid: Grid,
    *,
    order: int = 3,
    variant: Variant = "bh2",
    prediction: Prediction = "x0",
    corrector: bool = True,
    lower_order_final: bool = True,
    orders: tuple[int, ...] | None = None,
) -> StepTable:
    """UniPC of order 1 to 4, one evaluation a step (Zhao et al., arXiv 2302.04867).

    Warms up with orders 1, 2, ...; with `lower_order_final` the order also falls to 1 towards the
    end. The last step is not corrected, and the step to data takes x0_hat.

    variant: what stands for B(h), see the module. vary_coeff_published is that of the
      published code, whose corrector leaves out terms and is of first order; for comparison only.
    prediction: what is extrapolated; eps needs alpha > 0 at the first node.
    corrector: without it, this is UniP, of order p.
    orders: the order of each step, in place of warm-up and lower_order_final.
    """
    check_choice("unipc: variant", variant, get_args(Variant))
    if variant == "bh1" and corrector and grid.nodes[0].alpha == 0:
        raise UserError(
            "unipc: variant='bh1' weighs the first correction by the step in log(alpha/sigma), "
            "which is infinite from alpha=0; use bh2 or start at a smaller t_start"
        )
    orders = step_orders(
        "unipc",
        grid,
        order=order,
        highest=4,
        lower_order_final=lower_order_final,
        orders=orders,
    )
    advance, keep = form_of("unipc", prediction, grid)
    predict = correct = partial(_with_b, variant=variant)
    if variant.startswith("vary_coeff"):
        predict, correct = by_moments, by_moments
    if variant == "vary_coeff_published":
        correct = _published_corrector
    scheme = Scheme(advance=advance, keep=keep, predict=predict, correct=correct)
    return multistep(grid, scheme, orders, [p + 1 for p in orders] if corrector else None)


def _with_b(step: Step, u: Sequence[float], *, variant: Variant) -> np.ndarray:
    """Weights in which B(h) / 2 stands for M_1 where there are two values."""
    if len(u) != 2:
        return weights(step.moments, u)
    b = step.rate if variant == "bh1" else step.moments[0]
    return weights([step.moments[0], b / 2], u)


def _published_corrector(step: Step, u: Sequence[float]) -> np.ndarray:
    """The published code's vary_coeff corrector, of first order.

    With D_k = (m_k - m_now)/u_k, the derivatives at the step's start are j! sum_k A_jk D_k, where
    A inverts the powers u_k^(j-1). The code sums j and k only up to p - 1 and adds one single term
    for the new value, with a row of A that a loop variable happened to leave behind.
    """
    new, _, *old = u  # positions 1, 0 and negative ones
    p = len(u) - 1
    if len(u) < 2 or math.isinf(step.rate):
        return weights(step.moments, u)
    inverse = np.linalg.inv(np.vander([*old, new], increasing=True))
    row = max(p - 1, 1)
    for_new = step.moments[p] / math.factorial(p) * math.factorial(row) * inverse[row - 1, p - 1]
    for_old = step.moments[1:p] @ inverse[: p - 1, : p - 1] / np.array(old)
    return np.array([for_new, step.moments[0] - for_new - for_old.sum(), *for_old])
