"""Guidance, wrapped around `denoise`: a `DenoiseFn` goes in, a `DenoiseFn` comes out."""

from collections.abc import Mapping

import jax.numpy as jnp

from scorediff.types import Array, Cond, DenoiseFn


def classifier_free(
    denoise: DenoiseFn, *, null_cond: Mapping[str, float], scale: float
) -> DenoiseFn:
    """null + scale (conditional - null), from one evaluation of the doubled batch.

    Ho & Salimans, arXiv 2207.12598, eq. 6, whose w is scale - 1: here scale = 1 is off and returns
    the very same function, and scale = 0 is unconditional. Linear in x0_hat as it is in the score.
    """
    if scale == 1:
        return denoise

    def guided(x: Array, t: Array, cond: Cond = None) -> Array:
        null = {key: jnp.full_like(leaf, null_cond[key]) for key, leaf in cond.items()}
        both = {key: jnp.concatenate([leaf, null[key]]) for key, leaf in cond.items()}
        twice = jnp.concatenate([x, x])
        times = jnp.broadcast_to(t, x.shape[:1])
        x0_hat = denoise(twice, jnp.concatenate([times, times]), both)
        conditional, unconditional = jnp.split(x0_hat, 2)
        return unconditional + scale * (conditional - unconditional)

    return guided
