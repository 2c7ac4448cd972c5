"""Real examples as a model sees them, and as the whole numbers that they were before."""

import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from scorediff.data.pipeline import load_all
from scorediff.data.source import Source
from scorediff.data.transforms import as_x0, to_unit_range
from scorediff.errors import UserError
from scorediff.solvers import sample_keys
from scorediff.training.mesh import batch_sharding, make_mesh
from scorediff.types import Array, Cond, Key

INTEGERS = "iu"


class Examples(NamedTuple):
    """n examples of a source.

    x0: [n, *d] float32, as in training. cond: their conditions, leaves [n, ...].
    values: the same as whole numbers 0 ... levels - 1, [n, *d]; None for data that are real.
    """

    x0: np.ndarray
    cond: Cond
    values: np.ndarray | None
    levels: int | None


class Batch(NamedTuple):
    """Examples [b, *d] with their keys [b] and conditions."""

    data: Array
    keys: Key
    cond: Cond


def batches(data: np.ndarray, cond: Cond, *, seed: int, size: int) -> Iterator[tuple[Batch, int]]:
    """Equal batches of data [n, *d], on all devices, and how many of each are to be kept.

    The last one is filled up from the start; example i has the key (seed, i) in every batch.
    """
    mesh, key, n = make_mesh(), jax.random.key(seed), len(data)
    size = -(-min(size, n) // mesh.size) * mesh.size
    for start in range(0, n, size):
        index = np.arange(start, start + size) % n
        some = jax.tree.map(operator.itemgetter(index), cond)
        batch = Batch(data[index], sample_keys(key, index), some)
        yield jax.device_put(batch, batch_sharding(mesh)), n - start


def read_examples(
    source: Source, to_x0: Callable, cond_keys: Sequence[str], *, n: int, shape: Sequence[int]
) -> Examples:
    """The first n examples of a source (all, where it has fewer), without augmentation.

    Raises UserError where they do not have this shape, or lack a condition.
    """
    columns = load_all(source, limit=n)
    x0 = np.asarray(to_x0(columns))
    if x0.shape[1:] != tuple(shape):
        raise UserError(f"config.data.shape is {tuple(shape)}, but the data set has {x0.shape[1:]}")
    missing = [key for key in cond_keys if key not in columns]
    if missing:
        raise UserError(f"config.loss.cond_keys: the data set has no {', '.join(missing)}")
    cond = {key: columns[key] for key in cond_keys} or None
    return Examples(x0, cond, *whole_numbers(columns, to_x0, x0))


def whole_numbers(
    columns: Mapping[str, np.ndarray], to_x0: Callable, x0: np.ndarray
) -> tuple[np.ndarray | None, int | None]:
    """(values, levels): the column that `to_x0` reads as 0 ... levels - 1; (None, None) if real.

    `to_unit_range` is what knows the range of whole numbers. Raises UserError where x0 comes from
    whole numbers by any other way, or they lie outside of that range.
    """
    function = to_x0.func if isinstance(to_x0, functools.partial) else to_x0
    given = _arguments(to_x0)
    known = function in (to_unit_range, as_x0)
    whole = [k for k, c in columns.items() if c.dtype.kind in INTEGERS and c.shape == x0.shape]
    whole = [key for key in whole if not known or key == given["key"]]
    if not whole:
        return None, None
    if function is not to_unit_range:
        raise UserError(
            f"config.loss.to_x0 takes whole numbers ({whole[0]!r}), but does not say their range; "
            "likelihoods need to_unit_range there"
        )
    low, high, values = given["low"], given["high"], columns[whole[0]].astype(np.int32)
    if low % 1 or high % 1 or values.min() < low or values.max() > high:
        raise UserError(
            f"config.loss.to_x0 has the range {low:g} to {high:g}, but {whole[0]!r} holds whole "
            f"numbers from {values.min()} to {values.max()}"
        )
    return values - int(low), int(high - low) + 1


def _arguments(function: Callable) -> dict[str, Any]:
    """Defaults and what is bound, by name."""
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}
