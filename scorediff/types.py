"""The shared vocabulary: aliases, the two protocols, and the randomness of one training step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array  # one typed PRNG key, []
Params = Any  # a pytree of arrays
Cond = Mapping[str, Array] | None  # every leaf [b, ...]
Batch = Mapping[str, Array]  # every leaf [b, ...], as the data set gives it (images uint8)
Metrics = Mapping[str, Array]  # scalars


class DenoiseFn(Protocol):
    """The one currency: (x [b, *d], t [b] or [], cond) -> E[x0 | x_t = x] [b, *d], float32."""

    def __call__(self, x: Array, t: Array, cond: Cond = None) -> Array: ...


class Network(Protocol):
    """A Linen module: (x [b, *d], noise [b], cond) -> [b, *d] in its own target space."""

    def __call__(self, x: Array, noise: Array, cond: Cond, *, train: bool = False) -> Array: ...


class Draws(NamedTuple):
    """The randomness of one step for the examples at hand.

    Every number is a pure function of (step key, stream, position in the global batch), so a step
    gives the same result however its batch is cut: over devices, under pmap, or by gradient
    accumulation. `stream` is a small integer that names one use of randomness.
    """

    key: Key  # the step's key, the same for every part of the batch
    index: Array  # [b] positions of these examples in the global batch
    size: int  # size of the global batch

    def keys(self, stream: int) -> Array:
        """One key per example, [b]."""
        key = jax.random.fold_in(self.key, stream)
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(self.index)

    def normal(self, stream: int, shape: tuple[int, ...]) -> Array:
        """Standard normal noise [b, *shape], float32."""
        return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(self.keys(stream))

    def uniform(self, stream: int) -> Array:
        """Independent uniform numbers in [0, 1), [b]."""
        return jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(self.keys(stream))

    def stratified(self, stream: int) -> Array:
        """Uniform numbers, one in each of `size` equal strata up to a common rotation, [b].

        Low-discrepancy sampling of times (VDM, arXiv 2107.00630, appendix I.1).
        """
        start = jax.random.uniform(jax.random.fold_in(self.key, stream), (), jnp.float32)
        return (start + self.index / self.size) % 1.0

    def shared(self, stream: int) -> Key:
        """One key for draws that are not per example; each part of a batch has its own."""
        return jax.random.fold_in(jax.random.fold_in(self.key, stream), self.index[0])


LossFn = Callable[[Params, Batch, Draws], tuple[Array, Metrics]]
