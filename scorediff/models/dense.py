"""A matrix applied to tokens, with a kernel gradient that a CPU computes quickly."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from scorediff.models.hardware import on_cpu
from scorediff.types import Array


def rows_times_kernel(
    x: Array, kernel: Array, dimension_numbers: tuple, precision: lax.PrecisionLike = None
) -> Array:
    """x [..., c] times kernel [c, features]; what `Dense` calls to multiply.

    On a CPU all rows are first laid in one matrix: with several leading axes, XLA copies the whole
    gradient of y into another order before it multiplies, which takes half as long again.
    """
    if not on_cpu() or x.ndim < 3:
        return lax.dot_general(x, kernel, dimension_numbers, precision=precision)
    y = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel, precision=precision)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


Dense = partial(nn.Dense, dot_general=rows_times_kernel)
