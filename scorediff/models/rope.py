"""Rotary positions, RoPE (Su et al., arXiv 2104.09864, section 3.2), along any number of axes.

Channels i and i + d / 2 of a head are a plane, which is turned by the token's position times a
frequency of its own. A product of a query and a key then depends on the difference of their
positions only, and no length changes. With several axes, each has its own planes, equally many
(axial RoPE; Heo et al., arXiv 2403.13298); planes left over are not turned.
"""

import jax.numpy as jnp
import numpy as np

from scorediff.errors import UserError
from scorediff.models.embeddings import MAX_PERIOD, island
from scorediff.types import Array


def axial_angles(grid: tuple[int, ...], head_dim: int, *, period: float = MAX_PERIOD) -> np.ndarray:
    """By how much each plane of each token is turned, float64 [prod(grid), head_dim / 2].

    Tokens are row-major in `grid`. The k-th of an axis' p planes turns by position period^(-k / p).
    Raises UserError for a head that is odd or too narrow for the axes.
    """
    planes = head_dim // 2 // len(grid)
    if head_dim % 2 or planes < 1:
        raise UserError(
            f"rotary positions along {len(grid)} axes need heads of an even width of at least "
            f"{2 * len(grid)}, got {head_dim}"
        )
    frequency = period ** (-np.arange(planes) / planes)
    places = np.meshgrid(*map(np.arange, grid), indexing="ij")
    turned = [place.reshape(-1, 1) * frequency for place in places]
    rest = np.zeros((turned[0].shape[0], head_dim // 2 - planes * len(grid)))
    return np.concatenate([*turned, rest], axis=1)


def rotate(x: Array, angles: np.ndarray) -> Array:
    """x [b, n, heads, d] with its planes turned by angles [n, d / 2]; in float32 at least."""
    dtype = island(x.dtype)
    cos, sin = (jnp.asarray(wave(angles), dtype)[:, None, :] for wave in (np.cos, np.sin))
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.astype(x.dtype)
