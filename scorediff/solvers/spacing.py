"""Where a grid puts its nodes.

A spacing maps u in [0, 1], equally spaced, to times falling from t_start to t_end: float64 NumPy on
the host. It is called as spacing(process, u, t_start, t_end).
"""

import numpy as np

from scorediff.diffusion.process import Process
from scorediff.errors import UserError


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
