"""Estimates kept within the range of the data: static and dynamic thresholding.

Saharia et al., arXiv 2205.11487, section 2.3. For data in [-limit, limit], whose posterior mean
lies there too; latents have no such range. It is the guided estimate that needs it, so this wraps
the guidance: clipped(classifier_free(...)).
"""

import jax.numpy as jnp

from scorediff.errors import UserError
from scorediff.types import Array, Cond, DenoiseFn


def clipped(denoise: DenoiseFn, *, limit: float = 1.0) -> DenoiseFn:
    """x0_hat cut off at -limit and limit (static thresholding)."""
    _check_limit("clipped", limit)

    def within(x: Array, t: Array, cond: Cond = None) -> Array:
        return jnp.clip(denoise(x, t, cond), -limit, limit)

    return within


def dynamically_clipped(
    denoise: DenoiseFn, *, quantile: float = 0.995, limit: float = 1.0
) -> DenoiseFn:
    """x0_hat cut off at s and scaled by limit / s, s = max(quantile of |x0_hat|, limit) per sample.

    Dynamic thresholding: contrast is saved where cutting off alone would saturate. s has no upper
    bound, as in the paper; an estimate within the range is left alone.
    """
    _check_limit("dynamically_clipped", limit)
    if not 0 < quantile <= 1:
        raise UserError(f"dynamically_clipped: quantile must be in (0, 1], got {quantile}")

    def within(x: Array, t: Array, cond: Cond = None) -> Array:
        x0_hat = denoise(x, t, cond)
        dims = tuple(range(1, x.ndim))
        s = jnp.quantile(jnp.abs(x0_hat), quantile, axis=dims, keepdims=True)
        s = jnp.maximum(s, limit)
        return jnp.clip(x0_hat, -s, s) * (limit / s)

    return within


def _check_limit(rule: str, limit: float) -> None:
    if not limit > 0:
        raise UserError(f"{rule}: limit must be positive, got {limit}")
