"""Averages of the parameters over training, several profiles at once.

A profile says which share of the new parameters enters the average at the t-th update:

    ema_t = ema_{t-1} + rate(t) (params_t - ema_{t-1}),        t = 1, 2, ...

The share, not the decay, is the primitive, because 1 - decay loses its digits in float32 when the
decay is near one. t counts updates that were applied; a step skipped as not finite is none.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.errors import UserError
from scorediff.types import Array, Params


class EMAProfile(Protocol):
    """A rule for one average."""

    def rate(self, update: Array) -> Array:
        """Share of the new parameters at update number `update` (from 1). float32 [] to same."""
        ...


def _check_decay(decay: float, owner: str) -> None:
    if not 0.0 <= decay < 1.0:
        raise UserError(f"{owner}: decay must lie in [0, 1), got {decay}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantEMA:
    """Exponential average with one decay, starting from the initial parameters."""

    decay: float = 0.9999

    def __post_init__(self):
        _check_decay(self.decay, "ConstantEMA")

    def rate(self, update: Array) -> Array:
        return jnp.full_like(update, 1.0 - self.decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupEMA:
    """Exponential average whose decay is min(decay, (1 + t) / (10 + t)).

    The rule of TensorFlow's ExponentialMovingAverage(num_updates), with t counted as score_sde
    (arXiv 2011.13456, published code) does: the first update has t = 1.
    """

    decay: float = 0.9999

    def __post_init__(self):
        _check_decay(self.decay, "WarmupEMA")

    def rate(self, update: Array) -> Array:
        return jnp.maximum(1.0 - self.decay, 9.0 / (10.0 + update))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerEMA:
    """Average with weights that grow as a power of time, tau^gamma.

    EDM2, arXiv 2312.02696, section 3.1 and appendix C.

    Its decay is (1 - 1/t)^(gamma + 1), so the initial parameters have no weight at all and the
    profile keeps its shape however long training runs. `sigma_rel` is the standard deviation of the
    profile relative to the time trained so far; 0.05 and 0.10 are EDM2's pair.
    """

    sigma_rel: float = 0.10

    def __post_init__(self):
        if not 0.0 < self.sigma_rel < 1.0 / math.sqrt(12.0):
            raise UserError(
                "PowerEMA: sigma_rel must lie between 0 and 0.2886 (the plain average), "
                f"got {self.sigma_rel}"
            )

    @property
    def gamma(self) -> float:
        """The exponent; largest root of (gamma+2)^2 (gamma+3) sigma_rel^2 = gamma+1 (app. C)."""
        inverse = self.sigma_rel**-2
        return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())

    def rate(self, update: Array) -> Array:
        return -jnp.expm1((self.gamma + 1.0) * jnp.log1p(-1.0 / update))


def start_average(params: Params) -> Params:
    """The average before any update: the parameters in float32, in memory of their own.

    A copy, because the train state is donated and one buffer cannot be given away twice.
    """
    return jax.tree.map(lambda p: jnp.array(p, dtype=jnp.float32, copy=True), params)


def update_average(profile: EMAProfile, average: Params, params: Params, update: Array) -> Params:
    """One update of one average. update: [] number of this update, from 1."""
    rate = profile.rate(jnp.asarray(update, jnp.float32))
    return jax.tree.map(lambda e, p: e + rate * (p.astype(jnp.float32) - e), average, params)
