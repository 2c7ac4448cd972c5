"""Where a solver puts its nodes: a spacing of n intervals in time, and the process's values there.

A spacing maps u in [0, 1] to times falling from t_start to t_end. Everything is float64 NumPy,
worked out on the host. A grid may end in *data*: one more node with alpha = 1 and sigma = 0, which
the network never sees, since the step to it takes x0_hat itself.
"""

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
    t = np.asarray(spacing(process, u, t_start, t_end), np.float64)
    t[0] = t_start
    if count > 1:
        t[-1] = t_end
    tail = (DATA,) if to_data else ()
    return Grid(process=process, nodes=nodes_at(process, t) + tail)


def uniform(process: Process, u: np.ndarray, t_start: float, t_end: float) -> np.ndarray:
    """Equal steps in t."""
    return t_start + u * (t_end - t_start)


def quadratic(process: Process, u: np.ndarray, t_start: float, t_end: float) -> np.ndarray:
    """Equal steps in sqrt(t) (Song et al., arXiv 2010.02502, appendix D.2)."""
    return (t_start**0.5 + u * (t_end**0.5 - t_start**0.5)) ** 2


def logsnr(process: Process, u: np.ndarray, t_start: float, t_end: float) -> np.ndarray:
    """Equal steps in log(alpha/sigma) (Lu et al., arXiv 2206.00927, section 3.4)."""
    log_start, log_end = np.log(_noise_ratios(process, t_start, t_end, "logsnr"))
    return process.host_when(np.ones_like(u), np.exp(log_start + u * (log_end - log_start)))


def karras(
    process: Process, u: np.ndarray, t_start: float, t_end: float, *, rho: float = 7.0
) -> np.ndarray:
    """Equal steps in (sigma/alpha)^(1/rho) (Karras et al., arXiv 2206.00364, eq. 5)."""
    start, end = _noise_ratios(process, t_start, t_end, "karras") ** (1 / rho)
    return process.host_when(np.ones_like(u), (start + u * (end - start)) ** rho)


def _noise_ratios(process: Process, t_start: float, t_end: float, spacing: str) -> np.ndarray:
    ends = process.host(np.array([t_start, t_end]))
    if ends.alpha[0] < 1e-10 or ends.sigma[1] == 0:
        raise UserError(
            f"{spacing} spacing needs finite logSNR at both ends, but {type(process).__name__} has "
            f"alpha={ends.alpha[0]:.1e} at t={t_start:g}, sigma={ends.sigma[1]:.1e} at t={t_end:g};"
            " start at a smaller t_start or use uniform spacing"
        )
    return ends.sigma / ends.alpha
