"""What a network predicts: a row (a, b) of target = a x0 + b eps.

Together with x_t = alpha x0 + sigma eps this is a 2x2 system, so one solve converts any prediction:

    x0  = (b x_t - sigma y) / det,      eps = (alpha y - a x_t) / det,      det = alpha b - sigma a.
    (1)

An error dy in the prediction is an error dx0 = -sigma dy / det, hence the relation between losses

    |dy|^2 = det^2 |dx0 / sigma|^2,
    (2)

on which `weighting` builds. To add a target, write a function from `Marginal` to its row.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from scorediff.diffusion.process import Marginal, Process
from scorediff.errors import UserError
from scorediff.types import Array

Target = Callable[[Marginal], tuple[Array, Array]]

_NO_DETERMINANT = 1e-6


def x0(m: Marginal) -> tuple[Array, Array]:
    """The clean sample."""
    return jnp.ones_like(m.alpha), jnp.zeros_like(m.alpha)


def eps(m: Marginal) -> tuple[Array, Array]:
    """The noise (Ho et al., arXiv 2006.11239, eq. 14)."""
    return jnp.zeros_like(m.alpha), jnp.ones_like(m.alpha)


def score(m: Marginal) -> tuple[Array, Array]:
    """grad log p(x_t) = -E[eps | x_t] / sigma (Song et al., arXiv 2011.13456, eq. 7)."""
    return jnp.zeros_like(m.alpha), -1 / m.sigma


def v(m: Marginal) -> tuple[Array, Array]:
    """alpha eps - sigma x0 (Salimans & Ho, arXiv 2202.00512, appendix D)."""
    return -m.sigma, m.alpha


def velocity(m: Marginal) -> tuple[Array, Array]:
    """dx_t/dt at fixed x0 and eps (Lipman et al., arXiv 2210.02747, eq. 15)."""
    return m.dalpha, m.dsigma


def to_data(m: Marginal) -> tuple[Array, Array]:
    """x0 - eps, the velocity on a clock that runs from noise to data (SiT, arXiv 2401.08740)."""
    return jnp.ones_like(m.alpha), -jnp.ones_like(m.alpha)


def scaled_score(m: Marginal) -> tuple[Array, Array]:
    """-eps, the score times sigma (EDM's VE networks, arXiv 2206.00364, table 1)."""
    return jnp.zeros_like(m.alpha), -jnp.ones_like(m.alpha)


def edm(*, sigma_data: float = 0.5) -> Target:
    """EDM's F, of unit variance for data of deviation sigma_data (arXiv 2206.00364, eq. 7).

    There alpha = 1; for other processes c_skip and c_out are those of the rescaled x_t / alpha.
    """

    def row(m: Marginal) -> tuple[Array, Array]:
        norm = jnp.sqrt(m.sigma**2 + (m.alpha * sigma_data) ** 2)
        return m.sigma / (sigma_data * norm), -m.alpha * sigma_data / norm

    return row


def determinant(target: Target, m: Marginal) -> Array:
    """det of equation (1)."""
    a, b = target(m)
    return m.alpha * b - m.sigma * a


def check_determined(what: str, process: Process, target: Target, times: Sequence[float]) -> None:
    """Refuse times at which a prediction and x_t do not determine x0, as eps where alpha = 0."""
    times = np.asarray(times, np.float64)
    dets = np.broadcast_to(determinant(target, process.host(times)), times.shape)
    wrong = ~(np.isfinite(dets) & (np.abs(dets) > _NO_DETERMINANT))
    if wrong.any():
        t, det = times[wrong][0], dets[wrong][0]
        raise UserError(
            f"{what}: {getattr(target, '__name__', 'the target')} does not determine x0_hat at "
            f"t={t:g} of {type(process).__name__} (determinant {det:.1g}); stay away from that time"
            " or choose another target"
        )


def solve(target: Target, m: Marginal, x: Array, y: Array) -> tuple[Array, Array]:
    """The (x0, eps) that explain both x_t = x and the prediction y; equation (1)."""
    a, b = target(m)
    det = m.alpha * b - m.sigma * a
    return (b / det) * x - (m.sigma / det) * y, (m.alpha / det) * y - (a / det) * x


def convert(y: Array, x: Array, m: Marginal, *, source: Target, target: Target) -> Array:
    """A prediction y of `source` at x_t = x, said as `target`."""
    x0_hat, eps_hat = solve(source, m, x, y)
    a, b = target(m)
    return a * x0_hat + b * eps_hat
