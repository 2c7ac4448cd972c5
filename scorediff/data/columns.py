"""Examples, one dict each, become columns, one array a key."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from scorediff.errors import UserError

HASHED = 16  # examples in the hash of a source
CHUNK = 512  # examples read at once when a whole set is
THREADS = 4

Columns = dict[str, np.ndarray]


class Examples(Protocol):
    """Random access to examples; reading many at once is cheaper than one by one."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]: ...


def stack(examples: Sequence[Mapping[str, Any]], keys: Sequence[str] | None = None) -> Columns:
    """Column per key; `keys` None takes every number and array, leaving out text.

    int64 becomes int32, as it would on the device, but not silently if it does not fit.
    Raises UserError for a missing key and for shapes that differ.
    """
    return {key: _column(examples, key) for key in keys or numeric_keys(examples[0])}


def numeric_keys(example: Mapping[str, Any]) -> list[str]:
    """Keys whose values can go to a device."""
    return [key for key, value in example.items() if np.asarray(value).dtype.kind in "biuf"]


def _column(examples: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    if key not in examples[0]:
        raise UserError(f"examples have no {key!r}, only {', '.join(examples[0])}")
    _check_shapes(key, [np.shape(example[key]) for example in examples])
    column = np.stack([example[key] for example in examples])
    if column.dtype != np.int64:
        return column
    if column.min() < -(2**31) or column.max() >= 2**31:
        raise UserError(f"{key!r} holds integers beyond 32 bits: leave it out with `keys`")
    return column.astype(np.int32)


def _check_shapes(key: str, shapes: Sequence[tuple[int, ...]]) -> None:
    different = list(dict.fromkeys(shapes))
    if len(different) > 1:
        some = ", ".join(map(str, different[:3]))
        raise UserError(f"{key!r} differs in shape between examples ({some}): bring all to one")


def content_hash(examples: Examples) -> str:
    """Hash of up to 16 evenly spaced examples, as decoded."""
    chosen = sorted({i * len(examples) // HASHED for i in range(HASHED)})
    digest = hashlib.sha256()
    for example in examples.__getitems__(chosen):
        for key in sorted(numeric_keys(example)):
            value = np.asarray(example[key])
            digest.update(f"{key} {value.dtype} {value.shape}".encode() + value.tobytes())
    return digest.hexdigest()[:16]


def read_all(
    examples: Examples, *, keys: Sequence[str] | None = None, limit: int | None = None
) -> Columns:
    """Columns of the first `limit` examples (None: all), in order. Memory: the columns, once."""
    count = len(examples) if limit is None else min(limit, len(examples))
    first = stack(examples.__getitems__([0]), keys)
    columns = {key: np.empty((count, *one.shape[1:]), one.dtype) for key, one in first.items()}

    def fill(start: int) -> None:
        indices = range(start, min(start + CHUNK, count))
        for key, part in stack(examples.__getitems__(indices), list(columns)).items():
            _check_shapes(key, [columns[key].shape[1:], part.shape[1:]])
            columns[key][start : start + CHUNK] = part

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fill, range(0, count, CHUNK)))
    return columns


def one_pass(
    examples: Examples, *, batch_size: int, keys: Sequence[str] | None = None
) -> Iterator[Columns]:
    """Every example once, in order, in batches; the last batch is what is left."""
    for start in range(0, len(examples), batch_size):
        indices = range(start, min(start + batch_size, len(examples)))
        yield stack(examples.__getitems__(indices), keys)
