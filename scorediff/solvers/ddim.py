"""DDIM and DDPM's ancestral sampling, for any (alpha, sigma).

Both draw from q(x' | x, x0) with x0 replaced by its estimate. That posterior has variance sigma'^2
(1 - r^2) with r = (alpha/sigma) / (alpha'/sigma'), primes marking the end of a step; r = e^-h in
the logSNR step h. r = 0 at alpha = 0, so every coefficient is finite there.
"""

import math
from typing import Literal

import numpy as np

from scorediff.errors import UserError
from scorediff.solvers.grid import DATA, Grid, Node, nodes_at
from scorediff.solvers.table import Row, StepTable, denoise_to_data, linear, make_table


def ddim(grid: Grid, *, eta: float = 0.0, stride: float | None = None) -> StepTable:
    """DDIM (Song et al., arXiv 2010.02502, eq. 12): eta = 0 is the ODE, eta = 1 ancestral sampling.

    x' = alpha' x0_hat + sqrt(sigma'^2 - s^2) eps_hat + s z,   s = eta sigma' sqrt(1 - r^2)   (their
    eq. 16)

    stride: every step lands `stride` lower in t (at data where that is 0 or less), wherever the
      next node is; the network is then told a noise level that x does not have. None: at the next
      node. diffusers' DDIM has stride (N // n) / N for n steps of N, which is wrong for `linspace`
      spacing and for `trailing` where n does not divide N; for comparison only.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"ddim: eta must be in [0, 1], got {eta}")
    if stride is not None and not stride > 0:
        raise UserError(f"ddim: stride must be positive, got {stride}")

    def step(now: Node, new: Node) -> Row:
        if new.is_data:
            return denoise_to_data(now)
        s = eta * posterior_sigma(now, new) if eta else 0.0
        keep = math.sqrt(new.sigma**2 - s**2) / now.sigma
        return Row(now, e=linear(e=keep, m=(new.alpha - keep * now.alpha,), z=s))

    landings = grid.nodes[1:] if stride is None else _lower(grid, stride)
    rows = [step(*nodes) for nodes in zip(grid.nodes[:-1], landings, strict=True)]
    return make_table(rows, landings[-1])


def _lower(grid: Grid, stride: float) -> list[Node]:
    """Where each step from a node lands that goes `stride` down in t."""
    times = np.array([node.t for node in grid.nodes[:-1]]) - stride
    reached = nodes_at(grid.process, np.maximum(times, grid.process.t_min))
    return [node if t > 1e-9 else DATA for t, node in zip(times, reached, strict=True)]


def ancestral(grid: Grid, *, variance: Literal["small", "large"] = "small") -> StepTable:
    """DDPM's sampler (Ho et al., arXiv 2006.11239, eq. 6 and 7, and section 3.2).

    x' = mean of q(x' | x, x0_hat) + noise of the posterior's variance sigma'^2 (1 - r^2) (small:
    right for data that is one point) or of the forward step's, 1 - (alpha/alpha')^2 where the
    process preserves variance (large: right for standard normal data).
    """
    if variance not in ("small", "large"):
        raise UserError(f"ancestral: variance must be small or large, got {variance!r}")

    def step(now: Node, new: Node) -> Row:
        if new.is_data:
            return denoise_to_data(now)
        r = snr_root_ratio(now, new)
        toward_x = r * new.sigma / now.sigma
        toward_x0 = new.alpha * (1 - r**2)
        noise = posterior_sigma(now, new)
        if variance == "large":
            noise *= now.sigma / new.sigma
        return Row(now, e=linear(e=toward_x, m=(toward_x0,), z=noise))

    return make_table([step(*nodes) for nodes in grid.steps()], grid.nodes[-1])


def posterior_sigma(now: Node, new: Node) -> float:
    """Deviation of q(x' | x, x0), sigma' sqrt(1 - r^2); UserError where it goes up in noise."""
    r = snr_root_ratio(now, new)
    if r > 1:
        raise UserError(f"a step from t={now.t:g} up to t={new.t:g} cannot add ancestral noise")
    return new.sigma * math.sqrt(1 - r**2)


def snr_root_ratio(now: Node, new: Node) -> float:
    """r = (alpha/sigma) / (alpha'/sigma'), in [0, 1)."""
    return (now.alpha * new.sigma) / (now.sigma * new.alpha)
