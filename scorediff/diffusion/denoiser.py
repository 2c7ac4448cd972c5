"""The one place where a network's own conventions meet the currency of the framework.

A network sees a scaled input and a number that tells it the noise, and answers in its target space.
`Denoiser` knows all three choices and turns the answer into E[x0 | x_t = x].
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from scorediff.counting import record
from scorediff.diffusion import target as targets
from scorediff.diffusion.process import Marginal, Process
from scorediff.diffusion.target import Target
from scorediff.types import Array, Cond, DenoiseFn, Key, Network, Params

ScaleIn = Callable[[Marginal], Array]
NoiseIn = Callable[[Array, Marginal], Array]


def unscaled(m: Marginal) -> Array:
    """The network sees x_t itself."""
    return jnp.ones_like(m.alpha)


def unit_variance(m: Marginal, *, sigma_data: float = 0.5) -> Array:
    """c_in: x_t scaled to unit variance for data of deviation sigma_data (EDM, table 1)."""
    return jax.lax.rsqrt(m.sigma**2 + (m.alpha * sigma_data) ** 2)


def scaled_time(t: Array, m: Marginal, *, scale: float = 1000.0) -> Array:
    """The network is told t, in the range that sinusoidal embeddings expect."""
    return scale * t


def log_noise(t: Array, m: Marginal, *, scale: float = 0.25) -> Array:
    """c_noise: log(sigma/alpha) times `scale` (EDM, arXiv 2206.00364, table 1); needs alpha > 0."""
    return scale * (jnp.log(m.sigma) - jnp.log(m.alpha))


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A network with the process it was trained on and the conventions that connect the two."""

    network: Network
    process: Process
    target: Target = targets.eps
    scale_in: ScaleIn = unscaled
    noise_in: NoiseIn = scaled_time

    def init(self, key: Key, x: Array, cond: Cond = None) -> Params:
        """Initial parameters for inputs shaped like x [b, *d]."""
        return self.network.init(key, x, jnp.zeros(x.shape[0]), cond)["params"]

    def predict(
        self, params: Params, x: Array, t: Array, cond: Cond = None, *, dropout: Key | None = None
    ) -> Array:
        """The network's answer in its target space at x [b, *d], t [b]; a key turns dropout on."""
        record(x.shape[0])
        m = self.process(t)
        return self.network.apply(
            {"params": params},
            x * self.scale_in(m.expand(x)),
            self.noise_in(t, m),
            cond,
            train=dropout is not None,
            rngs=None if dropout is None else {"dropout": dropout},
        )

    def bind(self, params: Params) -> DenoiseFn:
        """This network as `(x [b, *d], t [b] or [], cond) -> x0_hat [b, *d]`."""

        def denoise(x: Array, t: Array, cond: Cond = None) -> Array:
            t = jnp.broadcast_to(t, x.shape[:1]).astype(x.dtype)
            y = self.predict(params, x, t, cond)
            return targets.solve(self.target, self.process(t).expand(x), x, y)[0]

        return denoise
