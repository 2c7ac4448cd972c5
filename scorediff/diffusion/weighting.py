"""Loss weightings: functions of the marginal, whatever the network predicts.

A weighting is the factor on |(x0_hat - x0) / sigma|^2, the squared error of the denoised sample in
units of the noise. Chosen so, every weighting below is finite at both ends, sigma = 0 and alpha =
0, and the factor on the network's own error follows from one gain, equation (2) of `target`:

    weight(m) |dx0 / sigma|^2  =  weight(m) / det^2 |dy|^2.

Since eps_hat - eps = -alpha dx0 / sigma, a paper's weight on the eps error is multiplied by alpha^2
here, and its weight on the x0 error by sigma^2. To add a weighting, write one such function.
"""

from collections.abc import Callable

import jax.numpy as jnp

from scorediff.diffusion.process import Marginal
from scorediff.types import Array

Weighting = Callable[[Marginal], Array]


def eps_uniform(m: Marginal) -> Array:
    """1 on the eps error: L_simple (Ho et al., arXiv 2006.11239, eq. 14)."""
    return m.alpha**2


def x0_uniform(m: Marginal) -> Array:
    """1 on the x0 error."""
    return m.sigma**2


def velocity_uniform(m: Marginal) -> Array:
    """1 on the error of dx_t/dt: flow matching (Lipman et al., arXiv 2210.02747, eq. 9)."""
    return (m.alpha * m.dsigma - m.sigma * m.dalpha) ** 2


def likelihood(m: Marginal) -> Array:
    """g^2 on the score error (Song et al., arXiv 2101.09258, eq. 8); infinite at sigma = 0."""
    return m.diffusion2 * (m.alpha / m.sigma) ** 2


def elbo(m: Marginal) -> Array:
    """-logSNR'/2 on the eps error: the continuous-time bound in nats (arXiv 2107.00630, eq. 17)."""
    return -0.5 * m.dlogsnr * m.alpha**2


def edm(m: Marginal, *, sigma_data: float = 0.5) -> Array:
    """1 on the error of EDM's F (Karras et al., arXiv 2206.00364, eq. 8: 1 / c_out^2)."""
    return m.alpha**2 + (m.sigma / sigma_data) ** 2


def min_snr(m: Marginal, *, gamma: float = 5.0) -> Array:
    """min(SNR, gamma) on the x0 error (Hang et al., arXiv 2303.09556, eq. 6)."""
    return jnp.minimum(m.alpha**2, gamma * m.sigma**2)


def soft_min_snr(m: Marginal, *, gamma: float = 5.0) -> Array:
    """SNR gamma / (SNR + gamma) on the x0 error (Crowson et al., arXiv 2401.11605, section 4.2)."""
    return gamma * (m.alpha * m.sigma) ** 2 / (m.alpha**2 + gamma * m.sigma**2)


def sigmoid(m: Marginal, *, bias: float = 2.0) -> Array:
    """sigmoid(bias - logSNR) on the eps error (Kingma & Gao, arXiv 2303.00848, appendix D)."""
    return (m.alpha * m.sigma) ** 2 / (m.sigma**2 + jnp.exp(-bias) * m.alpha**2)
