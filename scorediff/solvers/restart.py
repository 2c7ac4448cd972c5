"""Restart sampling: go back up to noise inside an interval and solve it down again, several times.

Xu et al., arXiv 2306.14878, section 3.1. A deterministic solver runs down the main grid. Each time
it arrives at the low end of an interval, forward noise takes the state back to the high end,

    x <- (alpha_high / alpha_low) x + sqrt(sigma_high^2 - (alpha_high sigma_low / alpha_low)^2) z,

and the solver runs down from there; this is repeated. The noise contracts the errors that the
solver has made so far, while the steps stay those of an ODE.
"""

from typing import NamedTuple

import numpy as np

from scorediff.errors import UserError
from scorediff.solvers.grid import DATA, Grid, Node, Spacing, make_grid, nodes_at
from scorediff.solvers.runge_kutta import heun
from scorediff.solvers.sample import Solver
from scorediff.solvers.spacing import karras
from scorediff.solvers.table import StepTable, join, noised_up


class Interval(NamedTuple):
    """One restart interval: times low < high, how often, and the steps of one descent."""

    low: float
    high: float
    repeats: int
    steps: int


def restart(
    grid: Grid,
    *,
    solver: Solver = heun,
    intervals: tuple[tuple[float, float, int, int], ...] = (),
    spacing: Spacing = karras,
    noise_scale: float = 1.0,
) -> StepTable:
    """`solver` on the grid, with restarts in intervals (t_low, t_high, repeats, steps).

    t_low becomes the nearest node of the grid below its first; the descents from t_high place
    their own nodes with `spacing`. Intervals may nest. They must leave room: 0 < t_low < t_high.
    `noise_scale` multiplies the forward noise. Without intervals this is the solver itself.
    """
    chosen = sorted((_checked(grid, Interval(*i)) for i in intervals), key=lambda i: -i.low)
    lows = [_nearest(grid, interval.low) for interval in chosen]
    table, done = None, 0
    for interval, low in zip(chosen, lows, strict=True):
        if low > done:
            table, done = _then(table, solver(_part(grid, done, low))), low
        table = _descend(table, grid, grid.nodes[low], interval, solver, spacing, noise_scale)
    return _then(table, solver(_part(grid, done, len(grid)))) if done < len(grid) else table


def _descend(
    table: StepTable,
    grid: Grid,
    low: Node,
    interval: Interval,
    solver: Solver,
    spacing: Spacing,
    noise_scale: float,
) -> StepTable:
    """The table, which ends at the low node, followed by every repeat of one interval."""
    (high,) = nodes_at(grid.process, np.array([interval.high]))
    inner = make_grid(
        grid.process, spacing, interval.steps, to_data=False, t_start=high.t, t_end=low.t
    )
    down = solver(Grid(process=grid.process, nodes=(high, *inner.nodes[1:-1], low)))
    for _ in range(interval.repeats):
        table = join(noised_up(table, high, noise_scale=noise_scale), down)
    return table


def _then(first: StepTable | None, second: StepTable) -> StepTable:
    return second if first is None else join(first, second)


def _part(grid: Grid, first: int, last: int) -> Grid:
    return Grid(process=grid.process, nodes=grid.nodes[first : last + 1])


def _nearest(grid: Grid, t: float) -> int:
    """Index of the node nearest to t, neither the first nor data."""
    times = np.array([node.t for node in grid.nodes[1:] if node is not DATA])
    if not times.size:
        raise UserError("restart: the grid has no node between its first and data; use more steps")
    return 1 + int(np.argmin(np.abs(times - t)))


def _checked(grid: Grid, interval: Interval) -> Interval:
    low, high, repeats, steps = interval
    if not 0 < low < high:
        raise UserError(f"restart: an interval needs 0 < t_low < t_high, got ({low}, {high})")
    if repeats < 1 or steps < 1:
        raise UserError(f"restart: repeats and steps must be at least 1, got {repeats}, {steps}")
    node = grid.nodes[_nearest(grid, low)]
    if not node.t < high:
        raise UserError(
            f"restart: the node nearest to t_low={low} is t={node.t:g}, not below t_high={high}; "
            "use more steps or a wider interval"
        )
    return interval
