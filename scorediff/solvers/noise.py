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


def independent(keys: Key, stream: Array, over: Array, x: Array) -> Array:
    """Fresh noise in every row."""
    return normal(stream_of(keys, stream), x)


def brownian_path(keys: Key, stream: Array, over: Array, x: Array) -> Array:
    """Normalised increments of one Brownian path per sample, on the clock log(alpha/sigma).

    Runs of any number of steps follow the same path, so they converge to the same image (strong
    convergence). The path is a `diffrax.VirtualBrownianTree`: nothing of it is stored.
    """
    import diffrax  # takes a second, which runs of independent noise need not wait for

    low, high = over[0] + _CLOCK, over[1] + _CLOCK

    def increment(key: Key) -> Array:
        path = diffrax.VirtualBrownianTree(
            0.0, 2 * _CLOCK, tol=1e-4, shape=jax.ShapeDtypeStruct(x.shape[1:], x.dtype), key=key
        )
        return path.evaluate(low, high) / jnp.sqrt(high - low)

    return jax.vmap(increment)(stream_of(keys, 0))


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
