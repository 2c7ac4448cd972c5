"""Images as tokens: square patches in row-major order, and fixed positions for them."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scorediff.errors import UserError
from scorediff.models import patching
from scorediff.models.blocks import XAVIER
from scorediff.models.dense import Dense
from scorediff.models.embeddings import frequencies
from scorediff.types import Array


def patchify(x: Array, size: int) -> Array:
    """[b, h, w, c] -> [b, (h / size) (w / size), size size c], all row-major."""
    grid = patching.patchify(x, (size, size))
    return grid.reshape(x.shape[0], -1, grid.shape[-1])


def unpatchify(tokens: Array, size: int, height: int, width: int) -> Array:
    """The inverse of `patchify` for an image of height x width."""
    grid = tokens.reshape(tokens.shape[0], height // size, width // size, -1)
    return patching.unpatchify(grid, (size, size))


def embed_patches(x: Array, size: int, width: int, dtype) -> Array:
    """Patches through one matrix, "patch_in": [b, h, w, c] -> [b, n, width]."""
    dense = Dense(width, dtype=dtype, kernel_init=XAVIER, name="patch_in")
    return dense(patchify(x.astype(dtype), size))


def check_patches(network: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse what `network` cannot cut into whole patches, or what has other channels."""
    name, size = type(network).__name__, network.patch_size
    if len(shape) != 4:
        raise UserError(f"a {name} takes images [b, h, w, c], got an array of shape {shape}")
    if shape[1] % size or shape[2] % size:
        raise UserError(
            f"an image of {shape[1]} x {shape[2]} cannot be cut into patches of side {size}: "
            f"set {name}.patch_size to a divisor of both sides"
        )
    if network.in_channels not in (None, shape[3]):
        raise UserError(
            f"this {name} takes images of {network.in_channels} channels, got {shape[3]}"
        )


def stretched_positions(
    rows: int, columns: int, dim: int, trained: int, scale: float = 1.0
) -> Array:
    """Fixed 2-D positions as `grid_sincos` has them, for a network that was trained on
    `trained` x `trained` patches: float32 [rows * columns, dim].

    Position i of n stands at i trained / n, so that another size covers the same range, and all
    are divided by `scale` (PixArt-alpha, arXiv 2310.00426, section 2.3, for grids larger than the
    one that training began with). Places and waves are rounded to float32, as the published
    networks have them: more digits would be other positions.
    """
    if dim % 4:
        raise UserError(f"2-D sin-cos positions need a width divisible by 4, got {dim}")
    row, column = (_waves(n, dim // 2, trained, scale) for n in (rows, columns))
    halves = jnp.broadcast_to(column, (rows, *column.shape)), jnp.repeat(row, columns, axis=0)
    return jnp.concatenate([halves[0].reshape(halves[1].shape), halves[1]], axis=-1)


def _waves(n: int, dim: int, trained: int, scale: float) -> np.ndarray:
    """sin and cos of each of n places on one axis, float32 [n, dim]."""
    place = np.arange(n, dtype=np.float32) / np.float32(n / trained) / np.float32(scale)
    phase = place.astype(np.float64)[:, None] * frequencies(dim // 2)
    return np.concatenate([np.sin(phase), np.cos(phase)], axis=-1).astype(np.float32)


def table_positions(side: int, dim: int, trained: int) -> nn.initializers.Initializer:
    """Initializer of a table [side * side, dim] that holds `stretched_positions`."""

    def init(key, shape, dtype=jnp.float32):
        return stretched_positions(side, side, dim, trained).astype(dtype)

    return init
