"""DPM-Solver and DPM-Solver++ singlestep: one, two or three evaluations a step, without history.

A step of order k evaluates at its start and at k - 1 inner nodes; each inner point, and the step's
end, is extrapolated from the evaluations so far through the exact solution of `exponential`. With
r_j the place of inner node j on the way in lambda, and the moments M_i of equation (3) there,

    to inner node 1:  M_0;      to inner node 2:  M_0, M_1 at (0, r_1/r_2);
    to the end, order 2:  M_0, M_1 at (0, r_1); `midpoint` has M_0/2 for M_1;
    to the end, order 3:  M_0, M_1 at (0, r_2), which is of third order for r_2 = 2/3; `taylor` has
                          M_0, M_1, M_2 at (0, r_1, r_2).

These are algorithms 1 and 2 of Lu et al., arXiv 2206.00927 (eps_hat), and their counterparts of
arXiv 2211.01095 (x0_hat).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from scorediff.errors import UserError, check_choice
from scorediff.solvers.ddim import posterior_sigma
from scorediff.solvers.dpm import Form
from scorediff.solvers.exponential import (
    Prediction,
    Step,
    form_of,
    weights,
)
from scorediff.solvers.grid import Grid, Node, Spacing, nodes_at
from scorediff.solvers.spacing import logsnr
from scorediff.solvers.table import Row, StepTable, denoise_to_data, linear, make_table


def dpm_singlestep(
    grid: Grid,
    *,
    order: int = 2,
    prediction: Prediction = "x0",
    form: Form = "midpoint",
    inner: Spacing = logsnr,
    orders: tuple[int, ...] | None = None,
    eta: float = 0.0,
    noise_scale: float = 1.0,
) -> StepTable:
    """DPM-Solver-1, -2 or -3: `order` evaluations a step of the grid (arXiv 2206.00927, alg. 1-2).

    The step to data is one evaluation, and so is a step from alpha = 0, which is infinite in
    log(alpha/sigma).

    prediction: x0 (DPM-Solver++) or eps (DPM-Solver, which blows up at very few steps).
    form: see the module; `midpoint` is the papers'.
    inner: places the inner nodes: this spacing from the step's start to its end, in `order`
      intervals. logsnr gives the papers' r_1 = 1/2, and r_1 = 1/3, r_2 = 2/3.
    orders: the order of each step, in place of `order`.
    eta: as in `ddim`: the step ends at less noise, sqrt(sigma'^2 - s^2), and s z is added (as
      k-diffusion's dpm_fast does). It never ends below the last node's noise level, so the last
      step is deterministic.
    """
    maker = _maker("dpm_singlestep", grid, prediction, form, form_of_stages="taylor")
    if eta < 0:
        raise UserError(f"dpm_singlestep: eta must be at least 0, got {eta}")
    if orders is None:
        orders = (order,) * len(grid)
    elif len(orders) != len(grid):
        raise UserError(
            f"dpm_singlestep: orders names {len(orders)} steps, but the grid has {len(grid)}"
        )
    _check_orders("dpm_singlestep", (order, *orders))
    floor = next(node for node in reversed(grid.nodes) if not node.is_data)
    rows = []
    for (now, new), wanted in zip(grid.steps(), orders, strict=True):
        if new.is_data:
            rows.append(denoise_to_data(now))
            continue
        down = _less_noisy(grid, now, new, eta, floor)
        ahead = _inner_nodes(grid, inner, now, down, wanted if now.alpha > 0 else 1)
        noise = noise_scale * math.sqrt(new.sigma**2 - down.sigma**2)
        rows += maker.rows((now, *ahead), down, new, noise)
    return make_table(rows, grid.nodes[-1])


def dpm_singlestep_mixed(
    grid: Grid,
    *,
    order: int = 3,
    prediction: Prediction = "x0",
    form: Form = "midpoint",
    stages: Form = "taylor",
    orders: tuple[int, ...] | None = None,
) -> StepTable:
    """DPM-Solver-fast: one evaluation at each node of the grid, `order` intervals to a step.

    Any number of evaluations is so spent, with a last step or two of lower order (Lu et al., arXiv
    2206.00927): for order 3 and n intervals, n mod 3 = 0, 1, 2 ends in orders 2, 1; 1; 2. The
    inner nodes are the grid's own, whatever its spacing. The step to data and one from alpha = 0
    are steps of their own.

    orders: the orders of the steps, which add up to the grid's intervals, in place of that rule.
    stages: how the second inner point of order 3 is reached: the paper's `taylor`, or `midpoint`,
      which diffusers has. Its groups 1, 2 and 1, 2, 3 are orders 2 and 3 here.
    """
    solver = "dpm_singlestep_mixed"
    maker = _maker(solver, grid, prediction, form, form_of_stages=stages)
    _check_orders(solver, (order, *(orders or ())))
    orders = _tail_rule(grid, order) if orders is None else orders
    _check_groups(grid, orders)
    rows, first = [], 0
    for size in orders:
        group, new = grid.nodes[first : first + size], grid.nodes[first + size]
        rows += [denoise_to_data(group[0])] if new.is_data else maker.rows(group, new, new, 0.0)
        first += size
    return make_table(rows, grid.nodes[-1])


@dataclass(frozen=True, kw_only=True)
class _Maker:
    """Writes the rows of a step: one for each node, which lead to `down`, where noise is added."""

    advance: Callable[[Node, Node], Step]
    keep: Callable[[Node], tuple[float, float]]
    form: Form
    form_of_stages: Form

    def rows(self, nodes: Sequence[Node], down: Node, new: Node, noise: float) -> list[Row]:
        inner = [self.row(nodes[: k + 1], target) for k, target in enumerate(nodes[1:])]
        if inner:
            inner[0] = inner[0]._replace(b=linear(e=1.0))
        return [*inner, self.row(nodes, down, noise=noise, over=(nodes[0], new), form=self.form)]

    def row(
        self,
        seen: Sequence[Node],
        target: Node,
        *,
        noise: float = 0.0,
        over: tuple[Node, Node] | None = None,
        form: Form | None = None,
    ) -> Row:
        """From the step's start seen[0] to target, with the values at `seen`; no form: a stage."""
        start = seen[0]
        step = self.advance(start, target)
        h = target.logsnr_half - start.logsnr_half
        u = [0.0, *((node.logsnr_half - start.logsnr_half) / h for node in seen[1:])]
        w = _stage_weights(step.moments, u, form or self.form_of_stages)
        base = {"e": step.decay} if len(seen) == 1 else {"b": step.decay}
        update = linear(**base, z=noise, m=step.gain * w[::-1])
        return Row(seen[-1], e=update, keep=self.keep(seen[-1]), over=over)


def _maker(
    solver: str, grid: Grid, prediction: Prediction, form: Form, form_of_stages: Form
) -> _Maker:
    check_choice(f"{solver}: form", form, get_args(Form))
    check_choice(f"{solver}: stages", form_of_stages, get_args(Form))
    advance, keep = form_of(solver, prediction, grid)
    return _Maker(advance=advance, keep=keep, form=form, form_of_stages=form_of_stages)


def _stage_weights(moments: np.ndarray, u: Sequence[float], form: Form) -> np.ndarray:
    """Weights of the values at 0, r_1, r_2; see the module."""
    if len(u) == 2 and form == "midpoint":
        return weights([moments[0], moments[0] / 2], u)
    if len(u) == 3 and form == "midpoint":
        first, last = weights(moments, [u[0], u[2]])
        return np.array([first, 0.0, last])
    return weights(moments, u)


def _inner_nodes(grid: Grid, inner: Spacing, now: Node, new: Node, order: int) -> tuple[Node, ...]:
    if order == 1:
        return ()
    t = inner(grid.process, np.linspace(0, 1, order + 1), now.t, new.t)
    return nodes_at(grid.process, t[1:-1])


def _less_noisy(grid: Grid, now: Node, new: Node, eta: float, floor: Node) -> Node:
    """Where an ancestral step ends before its noise: alpha', sqrt(sigma'^2 - s^2).

    s = eta sigma' sqrt(1 - r^2) as in `ddim`; its time is that of the same noise level.
    """
    if eta == 0 or new is floor:
        return new
    removed = min(1.0, eta * posterior_sigma(now, new) / new.sigma)
    sigma = new.sigma * math.sqrt(1 - removed**2)
    sigma = max(sigma, new.alpha * floor.sigma / floor.alpha)
    t = grid.process.host_when([new.alpha], [sigma])[0]
    return new._replace(t=float(t), sigma=sigma)


def _tail_rule(grid: Grid, order: int) -> tuple[int, ...]:
    """Steps of `order`, a tail of lower ones, and single ones where a step is infinite."""
    if len(grid) == 1:
        return (1,)
    head = (1,) if grid.nodes[0].alpha == 0 else ()
    tail = (1,) if grid.nodes[-1].is_data else ()
    n = len(grid) - len(head) - len(tail)
    full, rest = divmod(n, order)
    if order == 3 and rest == 0 and full:
        middle = (3,) * (full - 1) + (2, 1)
    else:
        middle = (order,) * full + ((rest,) if rest else ())
    return head + middle + tail


def _check_orders(solver: str, orders: Sequence[int]) -> None:
    for wanted in orders:
        if wanted not in (1, 2, 3):
            raise UserError(f"{solver}: order must be 1, 2 or 3, got {wanted}")


def _check_groups(grid: Grid, orders: Sequence[int]) -> None:
    if sum(orders) != len(grid):
        raise UserError(
            f"dpm_singlestep_mixed: orders add up to {sum(orders)}, but the grid has {len(grid)} "
            "intervals"
        )
    from_noise, to_data = grid.nodes[0].alpha == 0, grid.nodes[-1].is_data
    if (from_noise and orders[0] > 1) or (to_data and orders[-1] > 1):
        raise UserError(
            "dpm_singlestep_mixed: the step to data and the step from alpha=0 are of order 1, got "
            f"orders={orders}"
        )
