"""Where the noise of a solver comes from.

A source is called as (keys [b], stream, over [2], x) and returns standard normal noise like x
[b, *d]. `keys` are the samples' own, so an image depends on its index only; `stream` numbers the
draws of a run; `over` are the values of log(alpha/sigma) between which the noise acts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.errors import UserError
from scorediff.solvers.table import NOISE, StepTable
from scorediff.types import Array, Key

NoiseSource = Callable[[Key, Array, Array, Array], Array]

_CLOCK = 20.0  # log(alpha/sigma) of a path runs from -20 to 20; tables are clipped to that
_PATH = 1 << 21  # stream of a sample's path; `sample` numbers its own from 0 and from 1 << 20
_HALVINGS = 20  # of that range: cells of 4e-5, far below a step


def independent(keys: Key, stream: Array, over: Array, x: Array) -> Array:
    """Fresh noise in every row."""
    return normal(stream_of(keys, stream), x)


def brownian_path(keys: Key, stream: Array, over: Array, x: Array) -> Array:
    """Normalised increments of one Brownian path per sample, on the clock log(alpha/sigma).

    Runs of any number of steps follow the same path, so they converge to the same image (strong
    convergence). Nothing is stored: the path is a virtual Brownian tree (Li et al., arXiv
    2001.01328, section 4), halved 20 times around each end of `over`, which costs about 40 draws
    of noise where `independent` costs one.
    """
    ends = (over + _CLOCK) / (2 * _CLOCK)

    def increment(key: Key) -> Array:
        low, high = jax.vmap(lambda r: _path_at(key, r, x.shape[1:], x.dtype))(ends)
        return (high - low) / jnp.sqrt(ends[1] - ends[0])

    return jax.vmap(increment)(stream_of(keys, _PATH))


def _path_at(key: Key, r: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """The path at r in [0, 1], of unit variance at 1: halve around r, drawing each midpoint.

    Between two known points it is a Brownian bridge, also where it is read off in the last cell, so
    that the variance of every increment longer than a cell is exact.
    """
    first, tree = jax.random.split(key)

    def look(level, cell):
        key, start, width, left, right, _ = cell
        draw, *children = jax.random.split(key, 3)
        there = jnp.clip((r - start) / width, 0, 1)  # r = 1 may have been rounded up
        part = jnp.where(level < _HALVINGS, 0.5, there)
        deviation = jnp.sqrt(width * part * (1 - part))
        point = left + part * (right - left) + deviation * jax.random.normal(draw, shape, dtype)
        above = there >= 0.5
        return (
            jnp.where(above, *reversed(children)),
            jnp.where(above, start + 0.5 * width, start),
            0.5 * width,
            jnp.where(above, point, left),
            jnp.where(above, right, point),
            point,
        )

    origin, end = jnp.zeros(shape, dtype), jax.random.normal(first, shape, dtype)
    cell = (tree, jnp.zeros((), dtype), jnp.ones((), dtype), origin, end, end)
    return jax.lax.fori_loop(0, _HALVINGS + 1, look, cell)[-1]


def check_path(table: StepTable) -> None:
    """Refuse a table whose noise no Brownian path carries (on the host)."""
    noisy = (table.e[:, NOISE] != 0) | (table.b[:, NOISE] != 0)
    lost = noisy & ~(table.over[:, 1] > table.over[:, 0])
    if lost.any() or table.start[1]:
        raise UserError(
            "a Brownian path cannot carry noise that leads back up (churn, restart); use "
            f"independent noise; first such row: {int(np.argmax(lost)) if lost.any() else 0}"
        )


def stream_of(keys: Key, stream) -> Key:
    """The samples' keys [b] for one use of randomness."""
    return jax.vmap(lambda key: jax.random.fold_in(key, stream))(keys)


def normal(keys: Key, x: Array) -> Array:
    """Standard normal noise like x [b, *d], one key a sample."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
