"""Where in time a network is trained: distributions of t, each as its quantile function.

A distribution maps u, uniform in [0, 1), to (t, weight). The weight is 1 where the density is part
of the recipe (log-normal, logit-normal), and 1 / density where a distribution only lowers the
variance of an integral over uniform t (importance sampling). Because all start from u, the way u
itself is drawn, independent, stratified or antithetic, is one separate choice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax.scipy.special import ndtri

from scorediff.diffusion.process import Process
from scorediff.types import Array, Draws

_TINY = 1e-6  # keeps u away from 0 and 1, where the normal quantile is infinite


class Times(NamedTuple):
    """Training times and the factor on each example's loss, both [b]."""

    t: Array
    weight: Array


Quantile = Callable[[Process, Array], Times]


def uniform(process: Process, u: Array) -> Times:
    """t uniform in [t_min, t_max]."""
    return _plain(process.t_min + u * (process.t_max - process.t_min))


def uniform_logsnr(process: Process, u: Array) -> Times:
    """logSNR uniform between its values at t_min and t_max."""
    return _plain(_logsnr_quantile(process, u)[0])


def likelihood_importance(process: Process, u: Array) -> Times:
    """Density proportional to g^2/sigma^2, with its weight (arXiv 2101.09258, section 4.2).

    g^2/sigma^2 = -logSNR', so this *is* uniform logSNR; what differs is that losses stay integrals
    over uniform t, up to the constant t_max - t_min.
    """
    t, span = _logsnr_quantile(process, u)
    return Times(t, -span / process(t).dlogsnr / (process.t_max - process.t_min))


def log_normal_sigma(process: Process, u: Array, *, mean: float = -1.2, std: float = 1.2) -> Times:
    """log(sigma/alpha) normal (Karras et al., arXiv 2206.00364, table 1)."""
    ratio = jnp.exp(mean + std * _normal_quantile(u))
    return _plain(_within(process, process.when(jnp.ones_like(ratio), ratio)))


def logit_normal(process: Process, u: Array, *, mean: float = 0.0, std: float = 1.0) -> Times:
    """logit of t / t_max normal (Esser et al., arXiv 2403.03206, eq. 19)."""
    position = 1 / (1 + jnp.exp(-mean - std * _normal_quantile(u)))
    return _plain(_within(process, process.t_max * position))


@dataclass(frozen=True, kw_only=True)
class TimeSampler:
    """Draws the training times of a batch: a distribution and how its u is drawn.

    `stratified` puts one u into each of b equal strata (lower variance, still unbiased);
    `antithetic` pairs u with 1 - u; `independent` is what most published recipes did.
    """

    distribution: Quantile = uniform
    u: Literal["independent", "stratified", "antithetic"] = "stratified"

    def __post_init__(self):
        if self.u not in ("independent", "stratified", "antithetic"):
            raise ValueError(f"u is independent, stratified or antithetic, got {self.u!r}")

    def __call__(self, process: Process, draws: Draws, stream: int) -> Times:
        return self.distribution(process, self._uniforms(draws, stream))

    def _uniforms(self, draws: Draws, stream: int) -> Array:
        if self.u == "stratified":
            return draws.stratified(stream)
        if self.u == "independent":
            return draws.uniform(stream)
        # both members of a pair draw with the pair's index, the odd one mirrored
        u = draws._replace(index=draws.index // 2).uniform(stream)
        return jnp.where(draws.index % 2 == 0, u, 1 - u)


def _plain(t: Array) -> Times:
    return Times(t, jnp.ones_like(t))


def _within(process: Process, t: Array) -> Array:
    return jnp.clip(t, process.t_min, process.t_max)


def _normal_quantile(u: Array) -> Array:
    return ndtri(jnp.clip(u, _TINY, 1 - _TINY))


def _logsnr_quantile(process: Process, u: Array) -> tuple[Array, Array]:
    """(t, logSNR range) for logSNR falling linearly in u."""
    ends = process(jnp.array([process.t_min, process.t_max])).logsnr
    span = ends[0] - ends[1]
    return _within(process, process.time(ends[0] - u * span)), span
