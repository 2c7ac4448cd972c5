"""The processes of the literature, each a few lines on top of `Process`."""

import functools
import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from scipy.interpolate import PchipInterpolator

from scorediff.diffusion.process import Process
from scorediff.types import Array


@dataclass(frozen=True, kw_only=True)
class _LinearBeta(Process):
    """Shared by VP and sub-VP: B(t), the integral of beta_min + t (beta_max - beta_min)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(f"needs 0 < beta_min < beta_max, got {self.beta_min}, {self.beta_max}")

    def integral(self, t: Array) -> Array:
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def integral_inverse(self, value: Array) -> Array:
        rise = 2 * (self.beta_max - self.beta_min)
        return 2 * value / (self.beta_min + jnp.sqrt(self.beta_min**2 + rise * value))

    def alpha(self, t: Array) -> Array:
        return jnp.exp(-0.5 * self.integral(t))


@dataclass(frozen=True, kw_only=True)
class VPLinear(_LinearBeta):
    """Variance preserving, linear beta(t) (Song et al., arXiv 2011.13456, eq. 32 to 33)."""

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(-self.integral(t)))

    def when(self, alpha: Array, sigma: Array) -> Array:
        return self.integral_inverse(jnp.log1p((sigma / alpha) ** 2))


@dataclass(frozen=True, kw_only=True)
class SubVP(_LinearBeta):
    """sub-VP: sigma = 1 - alpha^2 (Song et al., arXiv 2011.13456, eq. 29 and 34)."""

    def sigma(self, t: Array) -> Array:
        return -jnp.expm1(-self.integral(t))

    def when(self, alpha: Array, sigma: Array) -> Array:
        # sigma / alpha = 1/alpha - alpha = 2 sinh(B/2)
        return self.integral_inverse(2 * jnp.arcsinh(0.5 * sigma / alpha))


@dataclass(frozen=True, kw_only=True)
class VPCosine(Process):
    """Variance preserving, cosine (Nichol & Dhariwal, arXiv 2102.09672, eq. 17).

    With u = (t + s) / (1 + s) pi/2 and u0 = u(0): alpha = cos u / cos u0. The end is cut off where
    logSNR is about -9.6, as in DPM-Solver (arXiv 2206.00927, appendix D.4); alpha(1) would be 0.
    """

    s: float = 0.008
    t_max: float = 0.9946

    def alpha(self, t: Array) -> Array:
        return jnp.cos(self._start + self._angle(t)) / math.cos(self._start)

    def sigma(self, t: Array) -> Array:
        # cos(u0)^2 - cos(u)^2 as a product, which does not cancel near t = 0
        angle = self._angle(t)
        product = jnp.sin(angle) * jnp.sin(angle + 2 * self._start)
        return jnp.sqrt(product) / math.cos(self._start)

    def when(self, alpha: Array, sigma: Array) -> Array:
        norm = jnp.sqrt(alpha**2 + sigma**2)
        c, s = alpha / norm, sigma / norm
        sin0, cos0 = math.sin(self._start), math.cos(self._start)
        sin_u = jnp.sqrt(sin0**2 + (s * cos0) ** 2)
        # sin and cos of u - u0, again without cancellation
        sine = cos0 * s**2 / (sin_u + c * sin0)
        cosine = c * cos0**2 + sin_u * sin0
        return jnp.arctan2(sine, cosine) * (1 + self.s) * 2 / math.pi

    @property
    def _start(self) -> float:
        return self.s / (1 + self.s) * math.pi / 2

    def _angle(self, t: Array) -> Array:
        return t / (1 + self.s) * math.pi / 2


def linear_betas(*, num: int = 1000, start: float = 1e-4, end: float = 0.02) -> tuple[float, ...]:
    """DDPM's betas (Ho et al., arXiv 2006.11239, section 4)."""
    return tuple(np.linspace(start, end, num).tolist())


def scaled_linear_betas(
    *, num: int = 1000, start: float = 0.00085, end: float = 0.012
) -> tuple[float, ...]:
    """Linear in sqrt(beta), the schedule of latent and Stable Diffusion."""
    return tuple((np.linspace(start**0.5, end**0.5, num) ** 2).tolist())


def cosine_betas(*, num: int = 1000, s: float = 0.008, largest: float = 0.999) -> tuple[float, ...]:
    """Discrete cosine betas, clipped (Nichol & Dhariwal, arXiv 2102.09672, section 3.2)."""
    u = (np.arange(num + 1) / num + s) / (1 + s) * np.pi / 2
    product = np.cos(u) ** 2
    return tuple(np.minimum(1 - product[1:] / product[:-1], largest).tolist())


@dataclass(frozen=True, kw_only=True)
class VPDiscrete(Process):
    """The process of a discrete-time model with N betas, on the clock t = (index + 1) / N.

    At the N nodes it is exactly DDPM's; between them log alpha is interpolated by monotone cubics,
    so that continuous-time solvers see a smooth process. Past t = 1 the last slope goes on.
    """

    betas: tuple[float, ...]

    def __post_init__(self):
        super().__post_init__()
        wrong = [beta for beta in self.betas if not 0 < beta < 1]
        if len(self.betas) < 2 or wrong:
            raise ValueError(
                f"betas must be at least two numbers in (0, 1), got {wrong[:3] or self.betas}"
            )

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self._log_alpha(t))

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(2 * self._log_alpha(t)))

    @property
    def bracket(self) -> tuple[float, float]:
        """Beyond the nodes on both sides, for what wraps this process (`Shifted`)."""
        return 0.0, 10 * self.t_max

    @functools.cached_property
    def _cubics(self) -> np.ndarray:
        """Coefficients [N + 1, 4], lowest power first; the last piece continues straight on."""
        nodes = np.arange(len(self.betas) + 1) / len(self.betas)
        log_alpha = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-np.array(self.betas)))])
        spline = PchipInterpolator(nodes, log_alpha)
        beyond = [log_alpha[-1], spline.derivative()(1.0), 0.0, 0.0]
        return np.concatenate([spline.c[::-1].T, [beyond]])

    def _log_alpha(self, t: Array) -> Array:
        num = len(self.betas)
        piece = jnp.clip(jnp.floor(t * num).astype(int), 0, num)
        u = t - piece / num
        c0, c1, c2, c3 = jnp.moveaxis(jnp.asarray(self._cubics)[piece], -1, 0)
        return c0 + u * (c1 + u * (c2 + u * c3))


@dataclass(frozen=True, kw_only=True)
class VE(Process):
    """Variance exploding, geometric sigma (Song et al., arXiv 2011.13456, eq. 30)."""

    t_min: float = 0.0
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        return self.sigma_min * jnp.exp(t * math.log(self.sigma_max / self.sigma_min))

    def when(self, alpha: Array, sigma: Array) -> Array:
        rate = math.log(self.sigma_max / self.sigma_min)
        return jnp.log(sigma / alpha / self.sigma_min) / rate


@dataclass(frozen=True, kw_only=True)
class EDM(Process):
    """The clock is the noise level: alpha = 1, sigma = t (Karras et al., arXiv 2206.00364)."""

    t_min: float = 0.002
    t_max: float = 80.0

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        return t

    def when(self, alpha: Array, sigma: Array) -> Array:
        return sigma / alpha


@dataclass(frozen=True, kw_only=True)
class FlowMatching(Process):
    """The straight path alpha = 1 - t, sigma = t (Lipman et al., arXiv 2210.02747)."""

    t_min: float = 1e-4

    def alpha(self, t: Array) -> Array:
        return 1 - t

    def sigma(self, t: Array) -> Array:
        return t

    def when(self, alpha: Array, sigma: Array) -> Array:
        return sigma / (alpha + sigma)


@dataclass(frozen=True, kw_only=True)
class Trigonometric(Process):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Salimans & Ho, arXiv 2202.00512)."""

    t_min: float = 1e-4

    def alpha(self, t: Array) -> Array:
        return jnp.sin(0.5 * jnp.pi * (1 - t))  # the cosine, exactly 0 at t = 1

    def sigma(self, t: Array) -> Array:
        return jnp.sin(0.5 * jnp.pi * t)

    def when(self, alpha: Array, sigma: Array) -> Array:
        return jnp.arctan2(sigma, alpha) * (2 / jnp.pi)


@dataclass(frozen=True, kw_only=True)
class Shifted(Process):
    """Another process with sigma/alpha multiplied by `shift` at every t: logSNR - 2 log(shift).

    For a resolution `r` times the one a schedule was made for, shift = r keeps the noise per area
    (Hoogeboom et al., arXiv 2301.11093, section 3.1; the same as the timestep shift of SD3, arXiv
    2403.03206, section 5.3.2). It is the base process on a warped clock, so it keeps its
    normalisation.
    """

    process: Process
    shift: float
    t_min: float = 1e-4

    def __post_init__(self):
        super().__post_init__()
        if not self.shift > 0:
            raise ValueError(f"shift must be positive, got {self.shift}")

    def alpha(self, t: Array) -> Array:
        return self.process.alpha(self._warp(t))

    def sigma(self, t: Array) -> Array:
        return self.process.sigma(self._warp(t))

    def when(self, alpha: Array, sigma: Array) -> Array:
        return self.process.when(self.shift * alpha, sigma)

    def _warp(self, t: Array) -> Array:
        return self.process.when(self.process.alpha(t), self.shift * self.process.sigma(t))


@dataclass(frozen=True, kw_only=True)
class ZeroTerminalSNR(Process):
    """A variance-preserving process rescaled to alpha(t_max) = 0 (arXiv 2305.08891, alg. 1).

    alpha is shifted and scaled so that its last value becomes 0 and its first stays what it was.
    """

    process: Process

    def __post_init__(self):
        super().__post_init__()
        ends = self.process.host(np.array([self.t_min, self.t_max]))
        if np.abs(ends.alpha**2 + ends.sigma**2 - 1).max() > 1e-9:
            raise ValueError(
                f"needs a variance-preserving process, got {type(self.process).__name__}"
            )

    def alpha(self, t: Array) -> Array:
        (first, last), _ = self._ends
        return (self.process.alpha(t) - last) * (first / (first - last))

    def sigma(self, t: Array) -> Array:
        # 1 - alpha^2 from the base's sigma, without cancellation near t = 0
        (first, last), (first_gap, _) = self._ends
        gap = self.process.sigma(t) ** 2 / (1 + self.process.alpha(t))
        lost = (first * gap - last * first_gap) / (first - last)
        return jnp.sqrt(lost * (1 + self.alpha(t)))

    def when(self, alpha: Array, sigma: Array) -> Array:
        (first, last), (first_gap, _) = self._ends
        norm = jnp.sqrt(alpha**2 + sigma**2)
        alpha, sigma = alpha / norm, sigma / norm
        gap = (sigma**2 / (1 + alpha) * (first - last) + last * first_gap) / first
        return self.process.when(1 - gap, jnp.sqrt(gap * (2 - gap)))

    @functools.cached_property
    def _ends(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """alpha at t_min and t_max, and 1 - alpha there, as Python floats."""
        ends = self.process.host(np.array([self.t_min, self.t_max]))
        return tuple(ends.alpha.tolist()), tuple((ends.sigma**2 / (1 + ends.alpha)).tolist())
