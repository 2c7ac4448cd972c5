"""Halving and doubling the size of [b, *space, c], in any number of axes, without parameters.

A filter is given by its taps along one axis; the window is their outer product, of sum 1. (1, 1)
is the mean of two and nearest-neighbour doubling; (1, 3, 3, 1) is the filter of NCSN++ (arXiv
2011.13456, appendix H.1, after Zhang, arXiv 1904.11486), with zeros beyond the border.
"""

from functools import reduce

import jax.numpy as jnp
import numpy as np
from jax import lax

from scorediff.errors import UserError, check_choice
from scorediff.types import Array

BOX = (1, 1)
RESAMPLINGS = ("none", "up", "down")


def resample(x: Array, direction: str, taps: tuple[int, ...] = BOX) -> Array:
    """x [b, *space, c] at twice ("up") or half ("down") the size, or as it is ("none")."""
    check_choice("resample", direction, RESAMPLINGS)
    if direction == "none":
        return x
    return upsample(x, taps) if direction == "up" else downsample(x, taps)


def upsample(x: Array, taps: tuple[int, ...] = BOX) -> Array:
    """Twice the size along every axis of space: zeros between the values, then the filter."""
    if taps == BOX:
        for axis in range(1, x.ndim - 1):
            x = jnp.repeat(x, 2, axis=axis)
        return x
    spare = len(taps) - 2
    # One more at the end: a dilated array ends with its last value, not with the zero behind it.
    padding = (spare + 1) // 2 + 1, spare // 2 + 1
    return _filtered(x, taps, gain=2.0 ** (x.ndim - 2), padding=padding, dilation=2)


def downsample(x: Array, taps: tuple[int, ...] = BOX) -> Array:
    """Half the size along every axis of space: the filter, then every second value.

    Raises UserError at an odd size.
    """
    if any(size % 2 for size in x.shape[1:-1]):
        raise UserError(f"a size of {x.shape[1:-1]} cannot be halved")
    if taps == BOX:
        shape = [n for size in x.shape[1:-1] for n in (size // 2, 2)]
        halves = tuple(range(2, 2 * (x.ndim - 2) + 1, 2))
        return x.reshape(x.shape[0], *shape, x.shape[-1]).mean(axis=halves)
    spare = len(taps) - 2
    return _filtered(x, taps, padding=((spare + 1) // 2, spare // 2), stride=2)


def _filtered(
    x: Array,
    taps: tuple[int, ...],
    *,
    gain: float = 1.0,
    padding: tuple[int, int],
    stride: int = 1,
    dilation: int = 1,
) -> Array:
    """Every channel of x correlated with the same window."""
    rank, channels = x.ndim - 2, x.shape[-1]
    window = reduce(np.multiply.outer, [np.asarray(taps, np.float64) / sum(taps)] * rank)
    kernel = jnp.asarray(np.repeat(gain * window[..., None, None], channels, -1), x.dtype)
    space = "xyz"[:rank]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride,) * rank,
        padding=(padding,) * rank,
        lhs_dilation=(dilation,) * rank,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=channels,
    )
