"""Cutting arrays of any rank into patches: one interface for signals, images, video and voxels.

A patch is a box with a side along every axis of space, and becomes one token, which keeps its place
in a coarser grid: [b, *space, c] <-> [b, *grid, features]. Sides of 1 make every position a token,
as a set of points needs it.
"""

import math

from scorediff.errors import UserError
from scorediff.types import Array

AXIS_NAMES = {1: ("length",), 2: ("height", "width"), 3: ("time or depth", "height", "width")}


def patch_sides(size: int | tuple[int, ...], space: tuple[int, ...]) -> tuple[int, ...]:
    """The side of a patch along each axis of `space`; one number stands for all axes.

    Raises UserError where the sides are not one an axis, or do not divide the space.
    """
    sides = (size,) * len(space) if isinstance(size, int) else tuple(size)
    if len(sides) != len(space):
        raise UserError(
            f"patch_size {sides} has {len(sides)} sides, but the data have {len(space)} axes of "
            f"space, {space}: give one side for each, or one number for all"
        )
    for length, side, name in zip(space, sides, _names(len(space)), strict=True):
        if length % side:
            raise UserError(
                f"a {name} of {length} cannot be cut into patches of side {side}: set patch_size "
                f"to divisors of {space}"
            )
    return sides


def patchify(x: Array, sides: tuple[int, ...]) -> Array:
    """[b, *space, c] -> [b, *grid, prod(sides) c]; a patch's values row-major, channels last."""
    b, *space, c = x.shape
    rank = len(space)
    grid = [length // side for length, side in zip(space, sides, strict=True)]
    pairs = [n for pair in zip(grid, sides, strict=True) for n in pair]
    order = (0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
    return x.reshape(b, *pairs, c).transpose(order).reshape(b, *grid, math.prod(sides) * c)


def unpatchify(tokens: Array, sides: tuple[int, ...]) -> Array:
    """The inverse of `patchify`: [b, *grid, prod(sides) c] -> [b, *space, c]."""
    b, *grid, features = tokens.shape
    rank, c = len(grid), features // math.prod(sides)
    order = (0, *(axis for i in range(1, rank + 1) for axis in (i, rank + i)), 2 * rank + 1)
    space = [n * side for n, side in zip(grid, sides, strict=True)]
    return tokens.reshape(b, *grid, *sides, c).transpose(order).reshape(b, *space, c)


def _names(rank: int) -> tuple[str, ...]:
    return AXIS_NAMES.get(rank) or tuple(f"axis {i}" for i in range(rank))
