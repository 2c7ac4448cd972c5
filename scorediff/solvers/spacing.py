"""Where a grid puts its nodes.

A spacing maps u in [0, 1], equally spaced, to times falling from t_start to t_end: float64 NumPy on
the host. It is called as spacing(process, u, t_start, t_end). Those of discrete-time checkpoints
(`leading`, `linspace`, `trailing`) have ends of their own.
"""

import numpy as np
from scipy import special

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


def exponential(process: Process, u: np.ndarray, t_start: float, t_end: float) -> np.ndarray:
    """Equal steps in log sigma, as k-diffusion calls it: `logsnr` under its other name."""
    return logsnr(process, u, t_start, t_end)


def trigonometric(process: Process, u: np.ndarray, t_start: float, t_end: float) -> np.ndarray:
    """Equal steps in the angle atan2(sigma, alpha); finite at alpha = 0 and at sigma = 0."""
    ends = process.host(np.array([t_start, t_end]))
    start, end = np.arctan2(ends.sigma, ends.alpha)
    angle = start + u * (end - start)
    return process.host_when(np.cos(angle), np.sin(angle))


def shifted(
    process: Process, u: np.ndarray, t_start: float, t_end: float, *, shift: float = 3.0
) -> np.ndarray:
    """Equal steps on the straight path, then sigma/alpha times `shift` between the two ends.

    The timestep shift of Stable Diffusion 3 (Esser et al., arXiv 2403.03206, section 5.3.2), for
    any process: with tau = sigma/(alpha + sigma), tau' = shift tau / (1 + (shift - 1) tau). shift >
    1 spends more steps at high noise.
    """
    if not shift > 0:
        raise UserError(f"shifted spacing: shift must be positive, got {shift}")
    ends = process.host(np.array([t_start, t_end]))
    start, end = ends.sigma / (shift * ends.alpha + ends.sigma)
    tau = start + u * (end - start)
    return process.host_when(1 - tau, shift * tau)


def beta(
    process: Process,
    u: np.ndarray,
    t_start: float,
    t_end: float,
    *,
    a: float = 0.6,
    b: float = 0.6,
) -> np.ndarray:
    """Quantiles of a beta distribution in t: more steps at both ends (arXiv 2407.12173)."""
    return t_end + (t_start - t_end) * special.betaincinv(a, b, 1 - u)


def listed(
    process: Process,
    u: np.ndarray,
    t_start: float,
    t_end: float,
    *,
    times: tuple[float, ...] = (),
    levels: tuple[float, ...] = (),
) -> np.ndarray:
    """An explicit list, falling: `times`, or `levels` of the noise sigma/alpha.

    As published for one number of nodes; for another, levels are interpolated in their logarithm,
    as for "align your steps" (Sabour et al., arXiv 2404.14507, appendix), and times linearly. The
    list's own ends count, not t_start and t_end.
    """
    if (not times) == (not levels):
        raise UserError("listed spacing needs either times=(...) or levels=(...)")
    given = np.array(times or levels, np.float64)
    if len(given) < 2 or not (np.diff(given) < 0).all() or given[-1] <= 0:
        raise UserError(f"listed spacing: needs falling positive numbers, got {given.tolist()}")
    at = np.linspace(0, 1, len(given))
    if times:
        return np.interp(u, at, given)
    return process.host_when(np.ones_like(u), np.exp(np.interp(u, at, np.log(given))))


def leading(
    process: Process,
    u: np.ndarray,
    t_start: float,
    t_end: float,
    *,
    train_steps: int = 1000,
    offset: int = 0,
) -> np.ndarray:
    """Timesteps 0, s, 2s, ... + offset with s = train_steps // n, of a discrete-time checkpoint.

    The last node is timestep `offset`, the first is short of the end: DDIM's and Stable Diffusion's
    (offset = 1) own choice. Timestep i is t = (i + 1) / train_steps.
    """
    stride = train_steps // len(u)
    return _integer(np.arange(len(u))[::-1] * stride + offset, train_steps)


def linspace(
    process: Process, u: np.ndarray, t_start: float, t_end: float, *, train_steps: int = 1000
) -> np.ndarray:
    """Timesteps round(linspace(train_steps - 1, 0, n)) (arXiv 2102.09672, section 4)."""
    return _integer(np.round((1 - u) * (train_steps - 1)), train_steps)


def trailing(
    process: Process, u: np.ndarray, t_start: float, t_end: float, *, train_steps: int = 1000
) -> np.ndarray:
    """From the last timestep, train_steps / n apart (Lin et al., arXiv 2305.08891, table 2)."""
    stride = train_steps / len(u)
    return _integer(np.round(train_steps - stride * np.arange(len(u))) - 1, train_steps)


def _integer(timesteps: np.ndarray, train_steps: int) -> np.ndarray:
    if timesteps[0] >= train_steps or len(set(timesteps.tolist())) < len(timesteps):
        raise UserError(
            f"{len(timesteps)} different timesteps do not fit into {train_steps}: "
            f"{timesteps.astype(int).tolist()[:8]}..."
        )
    return (timesteps + 1) / train_steps


def _noise_ratios(process: Process, t_start: float, t_end: float, spacing: str) -> np.ndarray:
    ends = process.host(np.array([t_start, t_end]))
    if ends.alpha[0] < 1e-10 or ends.sigma[1] == 0:
        raise UserError(
            f"{spacing} spacing needs finite logSNR at both ends, but {type(process).__name__} has "
            f"alpha={ends.alpha[0]:.1e} at t={t_start:g}, sigma={ends.sigma[1]:.1e} at t={t_end:g};"
            " start at a smaller t_start or use uniform spacing"
        )
    return ends.sigma / ends.alpha
