"""What the text encoders share: their answer, the checks of their input, and masks."""

from typing import NamedTuple

import jax.numpy as jnp

from scorediff.errors import UserError
from scorediff.types import Array


class Encoded(NamedTuple):
    """A text encoder's answer, at least float32. Under `jax.jit` what is not used costs nothing.

    last_hidden_state: [b, n, width], after the last normalisation.
    hidden_states:     [layers + 1, b, n, width]: the embeddings, then every layer's output.
    pooled:            one vector a text, or None where the encoder has none.
    """

    last_hidden_state: Array
    hidden_states: Array
    pooled: Array | None = None


def check_tokens(ids: Array, mask: Array | None, longest: int | None = None) -> None:
    """A UserError unless ids are integers [b, n], n up to `longest`, and the mask fits them."""
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise UserError(f"token ids must be integers [b, n], got {ids.dtype} {list(ids.shape)}")
    if longest is not None and ids.shape[1] > longest:
        raise UserError(f"the encoder has {longest} positions, got {ids.shape[1]} tokens")
    if mask is not None and mask.shape != ids.shape:
        raise UserError(f"a mask of shape {list(mask.shape)} for ids of shape {list(ids.shape)}")


def closed(keep: Array, dtype) -> Array:
    """What hides keys: 0 where `keep`, else the lowest finite number of `dtype`.

    With nothing to keep, every key counts alike; minus infinity would give NaN.
    """
    return jnp.where(keep, 0, jnp.finfo(dtype).min).astype(dtype)
