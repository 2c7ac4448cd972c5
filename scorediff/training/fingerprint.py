"""A 64-bit fingerprint of every array of a tree, and whether it is finite.

With the bits b_i of element i as an unsigned integer, two sums modulo 2^32 are kept:

    sum_i b_i (2 i + 1)        and        sum_i b_i (mix(i) | 1)

Sums of integers do not depend on order, hence not on how the array is laid over devices. A flipped
bit changes a sum by 2^k times an odd number, which is never 0 modulo 2^32: it is always seen. The
scrambled multiplier sees permutations that the regular one can miss. This finds accidents, not
attacks.

Arrays on a device are looked at there, in one pass and one compilation per shape; NumPy arrays on
the host, with the same result.
"""

import math
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from scorediff.types import Array


class Mark(NamedTuple):
    """What one look at an array's bits tells."""

    fingerprint: str  # 16 hexadecimal digits, equal if the array is bitwise equal
    finite: bool  # no NaN, no infinity


def leaf_names(tree: Any) -> list[str]:
    """Names such as "params/Dense_0/kernel", in the order of jax.tree.leaves."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def marks(tree: Any) -> dict[str, Mark]:
    """Leaf name -> Mark. Leaves: jax or NumPy arrays."""
    jax.block_until_ready(tree)
    looks = [_look(x) for x in jax.tree.leaves(tree)]
    sums = (np.asarray(look) for look in jax.device_get(looks))
    return {
        name: Mark(f"{int(plain):08x}{int(mixed):08x}", bool(finite))
        for name, (plain, mixed, finite) in zip(leaf_names(tree), sums, strict=True)
    }


def _look(x: Array | np.ndarray) -> Array | np.ndarray:
    if isinstance(x, np.ndarray):
        return _on_host(x)
    look = _on_device(x)
    # Several programs that reduce over CPU devices at once can wait for each other for ever.
    return look if len(x.sharding.device_set) == 1 else look.block_until_ready()


@jax.jit
def _on_device(x: Array) -> Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = min(8 * x.dtype.itemsize, 32)  # 64-bit types gain a last axis of two
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
    # The element's number comes from iotas: flattening would gather a sharded array.
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = jnp.uint32(math.prod(bits.shape[axis + 1 :]) % 2**32)
        index += lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * stride
    return jnp.stack([*_sums(bits, index, jnp), jnp.all(jnp.isfinite(x)).astype(jnp.uint32)])


def _on_host(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.bool_:
        x = x.astype(np.uint8)
    width = min(x.dtype.itemsize, 4)
    bits = np.ascontiguousarray(x).reshape(-1).view(f"<u{width}").astype(np.uint32)
    index = np.arange(bits.size, dtype=np.uint64).astype(np.uint32)
    return np.array([*_sums(bits, index, np), np.isfinite(x).all()], np.uint32)


def _sums(bits: Any, index: Any, xp: ModuleType) -> tuple[Any, Any]:
    plain = xp.sum(bits * (2 * index + 1), dtype=xp.uint32)
    mixed = xp.sum(bits * (_mix(index) | 1), dtype=xp.uint32)
    return plain, mixed


def _mix(i: Any) -> Any:
    """Scrambles uint32 numbers one to one (the finaliser of MurmurHash3)."""
    i = (i ^ (i >> 16)) * np.uint32(0x85EBCA6B)
    i = (i ^ (i >> 13)) * np.uint32(0xC2B2AE35)
    return i ^ (i >> 16)
