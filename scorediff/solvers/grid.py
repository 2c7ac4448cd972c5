"""The nodes of a solver, and the process's values there; `spacing` says where they lie.

Everything is float64 NumPy, worked out on the host. A grid may end in *data*: one more node with
alpha = 1 and sigma = 0, which the network never sees, since the step to it takes x0_hat itself.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scorediff.diffusion.process import Process
from scorediff.errors import UserError


class Node(NamedTuple):
    """A time and the process there; `logsnr_half` is log(alpha/sigma), infinite at the ends."""

    t: float
    alpha: float
    sigma: float
    dalpha: float
    dsigma: float

    @property
    def logsnr_half(self) -> float:
        with np.errstate(divide="ignore"):
            return float(np.log(self.alpha) - np.log(self.sigma))

    @property
    def is_data(self) -> bool:
        return self.sigma == 0


DATA = Node(t=0.0, alpha=1.0, sigma=0.0, dalpha=np.nan, dsigma=np.nan)

Spacing = Callable[[Process, np.ndarray, float, float], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The nodes of a solver, from noise to data, and the process that they lie on."""

    process: Process
    nodes: tuple[Node, ...]

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.nodes) - 1

    def steps(self) -> Iterator[tuple[Node, Node]]:
        """Each step as (from, to)."""
        return zip(self.nodes[:-1], self.nodes[1:], strict=True)


def nodes_at(process: Process, t: np.ndarray) -> tuple[Node, ...]:
    """The process at times [n]."""
    columns = [np.asarray(t, np.float64), *process.host(t)]
    return tuple(Node(*row) for row in np.stack(columns, axis=-1).tolist())


def make_grid(
    process: Process,
    spacing: Spacing,
    n: int,
    *,
    to_data: bool = True,
    t_start: float | None = None,
    t_end: float | None = None,
) -> Grid:
    """A grid of n steps from t_start (t_max) to t_end (t_min).

    With `to_data`, the default, the last of the n steps goes from t_end to clean data, so the
    spacing makes n nodes; without it, the spacing makes n + 1 nodes and samples keep the noise of
    t_end.
    """
    if n < 1:
        raise UserError(f"a grid needs at least one step, got n={n}")
    t_start = process.t_max if t_start is None else t_start
    t_end = process.t_min if t_end is None else t_end
    if not t_start > t_end:
        raise UserError(f"a grid falls in t, got t_start={t_start}, t_end={t_end}")
    count = n if to_data else n + 1
    u = np.linspace(0, 1, count)
    t = _snapped(np.array(spacing(process, u, t_start, t_end), np.float64), t_start, t_end)
    if not (np.diff(t) < 0).all() or t[-1] < 0:
        shown = ", ".join(f"{time:.5g}" for time in t[:8])
        raise UserError(f"the spacing gives times that do not fall towards 0: {shown} ...")
    tail = (DATA,) if to_data else ()
    return Grid(process=process, nodes=nodes_at(process, t) + tail)


def _snapped(t: np.ndarray, t_start: float, t_end: float) -> np.ndarray:
    """Ends off by rounding only become those asked for; integer timesteps have their own."""
    for index, end in ((0, t_start), (-1, t_end)) if len(t) > 1 else ((0, t_start),):
        if math.isclose(t[index], end, rel_tol=1e-9, abs_tol=1e-12):
            t[index] = end
    return t


def upward(grid: Grid) -> Grid:
    """The same nodes from data to noise, for inversion and likelihood; without the data node."""
    nodes = tuple(node for node in grid.nodes if not node.is_data)
    return Grid(process=grid.process, nodes=nodes[::-1])
