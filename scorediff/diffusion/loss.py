"""The denoising loss, for any process, target, weighting and distribution of times."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax.numpy as jnp

from scorediff.diffusion.denoiser import Denoiser
from scorediff.diffusion.process import expand_to
from scorediff.diffusion.target import determinant
from scorediff.diffusion.times import TimeSampler
from scorediff.diffusion.weighting import Weighting, eps_uniform
from scorediff.errors import UserError
from scorediff.types import Array, Batch, Cond, Draws, Metrics, Params

_TIMES, _NOISE, _DROP_COND, _DROPOUT = range(4)  # streams of a step's randomness


@dataclass(frozen=True, kw_only=True)
class DenoisingLoss:
    """Mean over batch and dimensions of weight |target_hat - target|^2; a `LossFn`.

    `to_x0` takes the clean samples [b, *d] out of a batch, on the device. `cond_keys` names the
    batch's entries that condition the network; with probability `drop_rate` an example gets those
    of `null_cond` instead, which is what classifier-free guidance needs (arXiv 2207.12598,
    algorithm 1).
    """

    denoiser: Denoiser
    to_x0: Callable[[Batch], Array]
    times: TimeSampler = field(default_factory=TimeSampler)
    weighting: Weighting = eps_uniform
    cond_keys: tuple[str, ...] = ()
    null_cond: Mapping[str, float] = field(default_factory=dict)
    drop_rate: float = 0.0

    def __post_init__(self):
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"drop_rate must be in [0, 1), got {self.drop_rate}")
        missing = set(self.cond_keys) - set(self.null_cond)
        if self.drop_rate and missing:
            raise ValueError(f"null_cond lacks {sorted(missing)}, which drop_rate > 0 needs")

    def __call__(self, params: Params, batch: Batch, draws: Draws) -> tuple[Array, Metrics]:
        """Loss (a scalar) and its metrics; UserError for a denoiser with learned variance."""
        if self.denoiser.learned_variance:
            raise UserError("DenoisingLoss trains no learned variance; set learned_variance=False")
        x0 = self.to_x0(batch)
        t, importance = self.times(self.denoiser.process, draws, _TIMES)
        m = self.denoiser.process(t).expand(x0)
        noise = draws.normal(_NOISE, x0.shape[1:])
        y = self.denoiser.predict(
            params,
            m.alpha * x0 + m.sigma * noise,
            t,
            self.condition(batch, draws),
            dropout=draws.shared(_DROPOUT),
        )
        a, b = self.denoiser.target(m)
        gain = self.weighting(m) / determinant(self.denoiser.target, m) ** 2  # target, equation (2)
        error = jnp.square(y - (a * x0 + b * noise))
        loss = jnp.mean(gain * error * expand_to(importance, x0))
        return loss, {"target_mse": jnp.mean(error)}

    def condition(self, batch: Batch, draws: Draws) -> Cond:
        """The batch's condition, with some examples' replaced by the null condition."""
        if not self.cond_keys:
            return None
        cond = {key: batch[key] for key in self.cond_keys}
        if not self.drop_rate:
            return cond
        drop = draws.uniform(_DROP_COND) < self.drop_rate
        return {
            key: jnp.where(
                expand_to(drop, leaf), jnp.asarray(self.null_cond[key], leaf.dtype), leaf
            )
            for key, leaf in cond.items()
        }
