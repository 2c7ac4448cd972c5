"""From densities to bits per dimension of data with finitely many values.

Data are integers v in 0 ... L - 1 (L = `levels`, 256 for images); a model knows densities of real
x. Two ways lead from log p(x) to a bound on log P(v); each is named in the result, with what it
adds.

`uniform`: x = 2 (v + u)/L - 1 with u uniform in [0, 1) fills the bin of v, whose width is 2/L, so
that by Jensen's inequality (Theis et al., arXiv 1511.01844, section 3.1)

    -log2 P(v)/D <= E_u[-log2 p(x)]/D + log2(L/2),        7 bits for L = 256.                   (1)

`decoder`: the noise of the smallest time t, x_t = alpha x0 + sigma eps with x0 = 2 v/(L - 1) - 1,
is the dequantisation, and a decoder P(v | x_t) undoes it:

    -log2 P(v)/D <= E_eps[-log2 p_t(x_t) - log2 P(v | x_t)]/D - log2(2 pi e sigma^2)/2.         (2)
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.diffusion.process import Marginal
from scorediff.errors import UserError
from scorediff.solvers.noise import normal, stream_of
from scorediff.types import Array, Key

_UNIFORM, _SMALLEST = (1 << 22) + 1, (1 << 22) + 2  # streams of a sample's own key


class Dequantisation(NamedTuple):
    """How discrete data became real numbers, and the bits per dimension to add for it."""

    name: str
    offset: float


NONE = Dequantisation("none", 0.0)


@dataclass(frozen=True, kw_only=True)
class BitsPerDim:
    """A likelihood in bits per dimension, with how it was come by; lower is better."""

    method: str  # what computed log p, such as "probability-flow ODE"
    dequantisation: str
    offset: float  # bits per dimension that the dequantisation adds; part of the mean
    examples: int
    mean: float
    standard_error: float  # of the mean over the examples
    nfe: float  # network evaluations for each example

    def __str__(self) -> str:
        return (
            f"{self.mean:.4f} +- {self.standard_error:.4f} bits/dim ({self.method};"
            f" dequantisation {self.dequantisation}, offset {self.offset:+.4f};"
            f" {self.examples} examples, {self.nfe:g} NFE)"
        )


def bits_per_dim(
    logp, *, dim: int, method: str, nfe: float, dequantisation: Dequantisation = NONE
) -> BitsPerDim:
    """Collect log-likelihoods [n] in nats of examples with `dim` numbers each.

    dequantisation: `uniform_cost()` or `decoder_cost(sigma)`, where x was made in that way.
    """
    bits = -np.asarray(logp, np.float64) / (dim * np.log(2)) + dequantisation.offset
    if bits.ndim != 1 or len(bits) < 2:
        raise UserError(f"bits_per_dim needs log-likelihoods [n], n >= 2; got shape {bits.shape}")
    return BitsPerDim(
        method=method,
        dequantisation=dequantisation.name,
        offset=float(dequantisation.offset),
        examples=len(bits),
        mean=float(bits.mean()),
        standard_error=float(bits.std(ddof=1) / np.sqrt(len(bits))),
        nfe=float(nfe),
    )


def uniform(values: Array, keys: Key, *, levels: int = 256) -> Array:
    """x = 2 (v + u)/levels - 1 for values [b, *d] in 0 ... levels - 1; keys [b]; float32."""
    draw = jax.vmap(lambda key: jax.random.uniform(key, values.shape[1:], jnp.float32))
    return 2 * (values + draw(stream_of(keys, _UNIFORM))) / levels - 1


def uniform_cost(*, levels: int = 256) -> Dequantisation:
    """Equation (1): log2(levels / 2) bits per dimension."""
    return Dequantisation("uniform", float(np.log2(levels / 2)))


def noised(values: Array, keys: Key, m: Marginal, *, levels: int = 256) -> Array:
    """x_t = alpha x0 + sigma eps for values [b, *d] in 0 ... levels - 1, m at t_min; keys [b]."""
    x0 = centred(values, levels=levels)
    return m.alpha * x0 + m.sigma * normal(stream_of(keys, _SMALLEST), x0)


def decoder_cost(sigma: float) -> Dequantisation:
    """Equation (2) at noise sigma: minus the entropy of the noise, in bits per dimension."""
    return Dequantisation("decoder", float(-0.5 * np.log2(2 * np.pi * np.e * sigma**2)))


def centred(values: Array, *, levels: int = 256) -> Array:
    """The data of the network for values [b, *d] in 0 ... levels - 1: 2 v/(levels - 1) - 1."""
    return 2 * jnp.asarray(values, jnp.result_type(float)) / (levels - 1) - 1


def decoder_logp(values: Array, x0_hat: Array, std: Array, *, levels: int = 256) -> Array:
    """log P(v | x_t) in nats [b]: N(x0_hat, std^2) over the bin of each value.

    Ho et al., arXiv 2006.11239, eq. 13. The outermost bins are open, so the probabilities of all
    values sum to one. values, x0_hat: [b, *d]; std: [] or broadcastable, sigma/alpha at t_min.
    """
    centre = centred(values, levels=levels).astype(x0_hat.dtype)
    half = 1 / (levels - 1)
    upper = jnp.where(values >= levels - 1, jnp.inf, (centre + half - x0_hat) / std)
    lower = jnp.where(values <= 0, -jnp.inf, (centre - half - x0_hat) / std)
    return _log_interval(lower, upper).reshape(len(values), -1).sum(axis=1)


def _log_interval(lower: Array, upper: Array) -> Array:
    """log(Phi(upper) - Phi(lower)), mirrored to the left tail, where the difference is exact."""
    mirrored = lower > 0
    left = jnp.where(mirrored, -upper, lower)
    right = jnp.where(mirrored, -lower, upper)
    log_left, log_right = jax.scipy.stats.norm.logcdf(left), jax.scipy.stats.norm.logcdf(right)
    return log_right + jnp.log1p(-jnp.exp(log_left - log_right))
