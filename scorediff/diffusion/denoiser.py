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
from scorediff.errors import UserError
from scorediff.types import Array, Cond, DenoiseFn, Key, Network, Params

ScaleIn = Callable[[Marginal], Array]
NoiseIn = Callable[[Array, Marginal], Array]
VarianceFn = Callable[[Array, Array, Cond], tuple[Array, Array]]  # like a DenoiseFn: (x0_hat, v)


def unscaled(m: Marginal) -> Array:
    """The network sees x_t itself."""
    return jnp.ones_like(m.alpha)


def unit_variance(m: Marginal, *, sigma_data: float = 0.5) -> Array:
    """c_in: x_t scaled to unit variance for data of deviation sigma_data (EDM, table 1)."""
    return jax.lax.rsqrt(m.sigma**2 + (m.alpha * sigma_data) ** 2)


def scaled_time(t: Array, m: Marginal, *, scale: float = 1000.0) -> Array:
    """The network is told t, in the range that sinusoidal embeddings expect."""
    return scale * t


def timestep_index(t: Array, m: Marginal, *, steps: int = 1000) -> Array:
    """The index 0 .. steps - 1 of a discrete-time network, at t = (index + 1) / steps."""
    return steps * t - 1


def time_from_noise(t: Array, m: Marginal) -> Array:
    """1 - t: a clock that runs from noise to data (SiT, arXiv 2401.08740)."""
    return 1 - t


def noise_level(t: Array, m: Marginal) -> Array:
    """sigma/alpha itself."""
    return m.sigma / m.alpha


def log_noise(t: Array, m: Marginal, *, scale: float = 0.25, unit: float = 1.0) -> Array:
    """c_noise: scale log(sigma / alpha / unit) (EDM, arXiv 2206.00364, table 1); for alpha > 0."""
    return scale * (jnp.log(m.sigma) - jnp.log(m.alpha * unit))


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A network with the process it was trained on and the conventions that connect the two.

    learned_variance: the network answers with twice the channels of x, and the second half says
      which variance a step of ancestral sampling should have (ADM, DiT; see `bind_variance`).
    """

    network: Network
    process: Process
    target: Target = targets.eps
    scale_in: ScaleIn = unscaled
    noise_in: NoiseIn = scaled_time
    learned_variance: bool = False

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
            return self._estimate(params, x, t, cond)[0]

        return denoise

    def bind_variance(self, params: Params) -> VarianceFn:
        """This network as `(x, t, cond) -> (x0_hat, v)`, v [b, *d] from its second half r.

        v = (r + 1) / 2 chooses between the two variances of a step (Nichol & Dhariwal, arXiv
        2102.09672, eq. 15): 0 the posterior's, 1 the forward step's. As there, r is not held within
        [-1, 1].
        """
        if not self.learned_variance:
            raise UserError("bind_variance needs a Denoiser with learned_variance=True")

        def denoise(x: Array, t: Array, cond: Cond = None) -> tuple[Array, Array]:
            x0_hat, r = self._estimate(params, x, t, cond)
            return x0_hat, (r + 1) / 2

        return denoise

    def _estimate(self, params: Params, x: Array, t: Array, cond: Cond) -> tuple[Array, Array]:
        """x0_hat, and the rest of the answer: the second half of the channels, or none of them."""
        t = jnp.broadcast_to(t, x.shape[:1]).astype(x.dtype)
        y = self.predict(params, x, t, cond)
        channels = (2 if self.learned_variance else 1) * x.shape[-1]
        if y.shape[-1] != channels:
            raise UserError(
                f"with learned_variance={self.learned_variance} the network should answer x of "
                f"shape {x.shape} with {channels} channels, but its answer has {y.shape[-1]}"
            )
        y, rest = jnp.split(y, [x.shape[-1]], axis=-1)
        return targets.solve(self.target, self.process(t).expand(x), x, y)[0], rest
