"""Explicit Runge-Kutta methods on the probability-flow ODE, from their Butcher tableaux.

The ODE is straight in one of two frames, in which a step runs over h from "now" to "new":

    clock:     dx/dt = alpha' x0_hat + sigma' eps_hat,                    h = t' - t,           (1)
    straight:  dy/ds = eps_hat,    y = x / alpha,  s = sigma / alpha,     h = s' - s.           (2)

They are one equation on two clocks, and the same where alpha = 1 and sigma = t (EDM). In either
one, stage i is evaluated at the position p_i = p + c_i h, on

    y_i = y + h sum_j a_ij k_j    and    y' = y + h sum_j b_j k_j,    k_j the slope at stage j.  (3)

In a table the history keeps the slopes, register b the state that the step started from. The clock
frame works on any process, at alpha = 0 too, and carries (alpha, sigma) along exactly only where
they are straight in t (EDM, flow matching); the straight frame does everywhere, but needs alpha >
0. Any sigma(t) and s(t) of Karras et al., arXiv 2206.00364, is the process alpha = s(t), sigma =
s(t) sigma(t) in the clock frame.

The last step, to data, takes x0_hat (`last_step="denoise"`): one evaluation. "euler" makes one
step of Euler's method there instead, as Karras et al. do (the same where alpha and sigma are
straight), and "full" all stages, as generic ODE solvers do; a stage at sigma = 0 takes eps_hat = 0
there, the limit for data with a density.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from scorediff.diffusion.process import Process
from scorediff.errors import UserError, check_choice
from scorediff.solvers.churn import Churn, churned_table, raise_nodes
from scorediff.solvers.grid import Grid, Node, nodes_at
from scorediff.solvers.table import (
    Row,
    StepTable,
    denoise_to_data,
    keep_eps,
    keep_velocity,
    linear,
)

FrameName = Literal["clock", "straight"]
LastStep = Literal["denoise", "euler", "full"]


class Tableau(NamedTuple):
    """c [stages]; a: rows of stages 1, 2, ..., lower triangular; b [stages]."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


EULER = Tableau((0.0,), (), (1.0,))
MIDPOINT = Tableau((0.0, 1 / 2), ((1 / 2,),), (0.0, 1.0))
RK3 = Tableau((0.0, 1 / 3, 2 / 3), ((1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4))
RK4 = {
    "classic": Tableau(
        (0.0, 1 / 2, 1 / 2, 1.0),
        ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
    "three_eighths": Tableau(
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
}


def euler(
    grid: Grid,
    *,
    frame: FrameName = "clock",
    last_step: LastStep = "denoise",
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> StepTable:
    """Euler's method; in the straight frame it is DDIM (arXiv 2010.02502, eq. 14).

    Churn is that of `heun`.
    """
    churning = Churn(churn, churn_min, churn_max, churn_noise)
    return _table(grid, _always(EULER), frame, last_step, churning)


def midpoint(
    grid: Grid, *, frame: FrameName = "clock", last_step: LastStep = "denoise"
) -> StepTable:
    """The explicit midpoint rule: second order, two evaluations a step."""
    return _table(grid, _always(MIDPOINT), frame, last_step)


def heun(
    grid: Grid,
    *,
    alpha: float = 1.0,
    frame: FrameName = "clock",
    last_step: LastStep = "denoise",
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> StepTable:
    """Heun's method and the general second-order family (arXiv 2206.00364, algorithms 1 and 3).

    Two evaluations a step; the step to data is a single one, so n steps to data cost 2n - 1. The
    second stage lies at the fraction `alpha` of the step: 1 is Heun's, 1/2 the midpoint rule, 2/3
    Ralston's. Before a step whose noise level sigma/alpha lies in [churn_min, churn_max], noise
    raises that level by the factor 1 + min(churn / n, sqrt(2) - 1) (their algorithm 2).
    """
    if not 0 < alpha <= 1:
        raise UserError(f"heun: alpha must be in (0, 1], got {alpha}")
    tableau = Tableau((0.0, alpha), ((alpha,),), (1 - 0.5 / alpha, 0.5 / alpha))
    churning = Churn(churn, churn_min, churn_max, churn_noise)
    return _table(grid, _always(tableau), frame, last_step, churning)


def rk3(grid: Grid, *, frame: FrameName = "clock", last_step: LastStep = "denoise") -> StepTable:
    """Heun's third-order method, three evaluations a step."""
    return _table(grid, _always(RK3), frame, last_step)


def rk4(
    grid: Grid,
    *,
    rule: Literal["classic", "three_eighths"] = "classic",
    frame: FrameName = "clock",
    last_step: LastStep = "denoise",
) -> StepTable:
    """Kutta's fourth-order methods, four evaluations a step: the classic one or the 3/8 rule."""
    check_choice("rk4: rule", rule, RK4)
    return _table(grid, _always(RK4[rule]), frame, last_step)


def dpm2(
    grid: Grid,
    *,
    frame: FrameName = "clock",
    last_step: Literal["denoise", "euler"] = "denoise",
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> StepTable:
    """The midpoint rule with its inner node at the middle of the step in log(alpha/sigma).

    k-diffusion's DPM2, after the midpoint of DPM-Solver-2 (arXiv 2206.00927, algorithm 1) but
    without its exponential integration; second order. Churn is that of `heun`.
    """
    check_choice(
        "dpm2: last_step", last_step, ("denoise", "euler")
    )  # log sigma has no end to halve
    churning = Churn(churn, churn_min, churn_max, churn_noise)
    return _table(grid, _log_midpoints, frame, last_step, churning)


class _Frame(NamedTuple):
    """A clock to step on: position of a node, its inverse, x in units of y, and the slope kept."""

    position: Callable[[Node], float]
    nodes: Callable[[Process, np.ndarray], tuple[Node, ...]]
    scale: Callable[[Node], float]
    slope: Callable[[Node], tuple[float, float]]


def _at_noise_levels(process: Process, levels: np.ndarray) -> tuple[Node, ...]:
    return nodes_at(process, process.host_when(np.ones_like(levels), levels))


def _velocity(at: Node) -> tuple[float, float]:
    if not at.is_data:
        return keep_velocity(at)
    if not math.isfinite(at.dsigma):
        raise UserError(
            'last_step="full" evaluates dx/dt at sigma = 0, where this process has an infinite '
            'sigma\'; use last_step="denoise" or frame="straight"'
        )
    return 0.0, at.dalpha


def _eps(at: Node) -> tuple[float, float]:
    return (0.0, 0.0) if at.is_data else keep_eps(at)


def _noise_level(node: Node) -> float:
    return node.sigma / node.alpha


_FRAMES = {
    "clock": _Frame(lambda node: node.t, nodes_at, lambda node: 1.0, _velocity),
    "straight": _Frame(_noise_level, _at_noise_levels, lambda node: node.alpha, _eps),
}

_NO_CHURN = Churn()
_Steps = Sequence[tuple[Node, Node]]
_Tableaux = Callable[[Process, _Frame, _Steps], list[Tableau]]


def _always(tableau: Tableau) -> _Tableaux:
    return lambda process, frame, steps: [tableau] * len(steps)


def _log_midpoints(process: Process, frame: _Frame, steps: _Steps) -> list[Tableau]:
    """The two-stage tableaux whose inner node halves log(alpha/sigma)."""
    _needs_signal("dpm2", steps)
    levels = [math.sqrt(a.sigma / a.alpha * b.sigma / b.alpha) for a, b in steps]
    middles = _at_noise_levels(process, np.array(levels))
    fractions = [
        (frame.position(middle) - frame.position(now)) / (frame.position(new) - frame.position(now))
        for middle, (now, new) in zip(middles, steps, strict=True)
    ]
    return [Tableau((0.0, c), ((c,),), (0.0, 1.0)) for c in fractions]


def _table(
    grid: Grid,
    tableaux: _Tableaux,
    frame_name: FrameName,
    last_step: LastStep,
    churn: Churn = _NO_CHURN,
) -> StepTable:
    check_choice("frame", frame_name, _FRAMES)
    check_choice("last_step", last_step, ("denoise", "euler", "full"))
    frame = _FRAMES[frame_name]
    starts = raise_nodes(grid, churn)
    steps = [*zip(starts, grid.nodes[1:], strict=True)]
    if frame_name == "straight":
        _needs_signal('frame="straight"', steps)
    whole, last = steps, []
    if grid.nodes[-1].is_data and last_step == "full":
        whole = [*steps[:-1], (starts[-1], _end_of_clock(grid.process))]
    elif grid.nodes[-1].is_data:
        whole, last = steps[:-1], [_last_row(frame, *steps[-1], last_step)]
    made = _all_stages(grid.process, frame, tableaux(grid.process, frame, whole), whole)
    return churned_table(grid, starts, [*made, last] if last else made, churn.noise)


def _all_stages(
    process: Process, frame: _Frame, tableaux: Sequence[Tableau], steps: _Steps
) -> list[list[Row]]:
    """The rows of each step; the process is asked once for the inner nodes of them all."""
    fractions = [c for tableau in tableaux for c in tableau.c]
    ends = [pair for pair, tableau in zip(steps, tableaux, strict=True) for _ in tableau.c]
    positions = [
        frame.position(now) + c * (frame.position(new) - frame.position(now))
        for c, (now, new) in zip(fractions, ends, strict=True)
    ]
    inner = iter(frame.nodes(process, np.array(positions)) if positions else ())
    made = []
    for tableau, (now, new) in zip(tableaux, steps, strict=True):
        between = [next(inner) for _ in tableau.c]
        known = {0.0: now, 1.0: new}  # to the last digit, and with the grid's own derivatives
        points = [known.get(c, node) for c, node in zip(tableau.c, between, strict=True)]
        made.append(_stages(frame, tableau, points, new))
    return made


def _stages(frame: _Frame, tableau: Tableau, points: Sequence[Node], new: Node) -> list[Row]:
    """The rows of one step: equation (3), in x = scale y."""
    now = points[0]
    h = frame.position(new) - frame.position(now)
    rows = []
    weights, targets = (*tableau.a, tableau.b), (*points[1:], new)
    for i, (at, to, weight) in enumerate(zip(points, targets, weights, strict=True)):
        state = frame.scale(to) / frame.scale(now)
        slopes = [frame.scale(to) * h * w for w in reversed(weight)]
        keep = frame.slope(at)
        if i == 0:
            rows.append(Row(at, e=linear(e=state, m=slopes), b=linear(e=1.0), keep=keep))
        else:
            rows.append(Row(at, e=linear(b=state, m=slopes), keep=keep))
    return rows


def _last_row(frame: _Frame, now: Node, data: Node, last_step: LastStep) -> Row:
    """One evaluation that ends in data."""
    if last_step == "denoise":
        return denoise_to_data(now)
    return _stages(frame, EULER, [now], data)[0]


def _end_of_clock(process: Process) -> Node:
    """The process at t = 0, with its derivatives, for stages that are evaluated there."""
    (end,) = nodes_at(process, np.zeros(1))
    if end.sigma != 0:
        raise UserError(
            f'last_step="full" steps to t = 0, where {type(process).__name__} still has sigma='
            f'{end.sigma:g}; use last_step="denoise"'
        )
    return end


def _needs_signal(what: str, steps: _Steps) -> None:
    for node in (node for pair in steps for node in pair):
        if node.alpha < 1e-10:
            raise UserError(
                f"{what} needs alpha > 0, but alpha = 0 at t={node.t:g}, where sigma/alpha is "
                'infinite; start at a smaller t_start, or use another solver with frame="clock"'
            )
