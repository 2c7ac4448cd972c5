"""Batches as a pure function of (seed, step).

Position p of the stream, p = step * batch_size + offset, is example `order(p)` of the source: epoch
after epoch, each a permutation of its own, batches running across the seams so that no tail is ever
dropped. Augmentation at position p draws from a generator keyed by (seed, p). So nothing has a
state: a run resumes by asking for step n, and processes that share a batch each ask for their own
positions, in contiguous parts, so that the parts joined in process order are the batch that a
single process would have read, whatever their number.

Grain runs this function ahead of the training, in threads. Up to `LARGEST_PERMUTATION` examples the
permutations are NumPy's: in a set of 1,500 an index costs 30 us to shuffle by itself (measured) and
a thousandth of that as part of a permutation. Beyond it Grain's index shuffle is used, which needs
no memory.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from scorediff.data.columns import Columns, Examples, read_all, stack
from scorediff.data.source import Source
from scorediff.data.transforms import Augmentation
from scorediff.errors import UserError

LARGEST_PERMUTATION = 2**26  # examples; 0.5 GB
ORDER, AUGMENT = 0, 1  # streams of randomness


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """An endless stream of batches of a source.

    source: a `TFDS`, a `Sampled`, or anything with their `open` and `describe`.
    batch_size: of the global batch.
    augment: applied to each example in turn, after decoding.
    keys: what to keep of an example; None: all numbers and arrays.
    shuffle: False reads in the source's order, epoch after epoch.
    threads: that read ahead.
    cache_bytes: a source that decodes to no more than this is read once and kept in memory.
    """

    source: Source
    batch_size: int
    seed: int = 0
    augment: tuple[Augmentation, ...] = ()
    keys: tuple[str, ...] | None = None
    shuffle: bool = True
    threads: int = 4
    cache_bytes: int = 1_000_000_000

    def __post_init__(self):
        if self.batch_size < 1 or self.threads < 0:
            raise UserError(
                f"Pipeline: batch_size {self.batch_size} must be > 0, threads {self.threads} >= 0"
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"Pipeline: seed {self.seed} is not in [0, 2**32)")
        for augmentation in self.augment:
            if not dataclasses.is_dataclass(augmentation):  # else no run could tell it changed
                raise UserError(f"Pipeline: augment has {augmentation!r}, expected a dataclass")

    def batches(
        self, start_step: int = 0, *, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Columns]:
        """This process's part [batch_size / process_count, ...] of every batch from a step on.

        The iterator never ends; call its `close()` when done, or its threads stay.
        Raises UserError (from `next`, where it is about one record) as the source does.
        """
        import grain  # costs a second, which a mistyped flag need not wait for

        part = self._part(process_index, process_count)
        stream = self._stream
        threads = 0 if stream.is_cheap else self.threads
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        steps = grain.MapDataset.range(start_step, 2**62)
        return iter(steps.map(lambda step: stream.read(step, part)).to_iter_dataset(options))

    def batch(self, step: int) -> Columns:
        """The whole batch of one step."""
        return self._stream.read(step, range(self.batch_size))

    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines the stream, as JSON values: equal means the same batches."""
        return {
            "source": self.source.describe(),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "augment": [_described(augmentation) for augmentation in self.augment],
            "keys": None if self.keys is None else sorted(self.keys),
        }

    @functools.cached_property
    def _stream(self) -> "_Stream":
        return _Stream(self)

    def _part(self, index: int, count: int) -> range:
        if not 0 <= index < count or self.batch_size % count:
            raise UserError(
                f"process {index} of {count} cannot have an equal part of "
                f"batch_size {self.batch_size}: make it a multiple of the number of processes"
            )
        size = self.batch_size // count
        return range(index * size, (index + 1) * size)


class _Stream:
    """An opened pipeline: the source, or its columns in memory, and the current permutations."""

    def __init__(self, pipeline: Pipeline):
        self._pipeline = pipeline
        self._examples = pipeline.source.open()
        self._order = _order(pipeline, len(self._examples))
        self._columns = _cached(self._examples, pipeline)

    @property
    def is_cheap(self) -> bool:
        """Whether a batch is one gather, which threads would only slow down."""
        return self._columns is not None and not self._pipeline.augment

    def read(self, step: int, part: range) -> Columns:
        """The batch at `step`, of which only the positions in `part`."""
        positions = step * self._pipeline.batch_size + np.arange(part.start, part.stop)
        indices = self._order(positions)
        if self.is_cheap:
            return {key: column[indices] for key, column in self._columns.items()}
        examples = self._at(indices)
        if self._pipeline.augment:
            examples = _augmented(examples, positions, self._pipeline)
        return stack(examples, self._pipeline.keys)

    def _at(self, indices: np.ndarray) -> list[Mapping[str, Any]]:
        if self._columns is None:
            return self._examples.__getitems__(indices.tolist())
        return [{key: column[i] for key, column in self._columns.items()} for i in indices]


def _cached(examples: Examples, pipeline: Pipeline) -> Columns | None:
    """All of a small source in memory; None for a large one."""
    first = stack(examples.__getitems__([0]), pipeline.keys)
    size = sum(column.nbytes for column in first.values()) * len(examples)
    if size > pipeline.cache_bytes:
        return None
    logging.info("reading %d examples (%.1f MB) into memory", len(examples), size / 1e6)
    return read_all(examples, keys=pipeline.keys)


def _order(pipeline: Pipeline, length: int):
    """positions [n] -> indices into the source [n]."""
    if not pipeline.shuffle:
        return lambda positions: positions % length
    if length > LARGEST_PERMUTATION:
        return _index_shuffle(pipeline.seed, length)

    @functools.lru_cache(maxsize=2)  # a batch may lie across a seam
    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng([pipeline.seed, ORDER, epoch]).permutation(length)

    def order(positions: np.ndarray) -> np.ndarray:
        epochs, places = np.divmod(positions, length)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            indices[here] = permutation(epoch)[places[here]]
        return indices

    return order


def _index_shuffle(seed: int, length: int):
    import grain

    # Grain adds the epoch to the seed, so neighbouring seeds would share epochs: spread them.
    spread = int(np.random.SeedSequence([seed, ORDER]).generate_state(1)[0])
    shuffled = grain.MapDataset.range(length).shuffle(seed=spread).repeat()
    return lambda positions: np.array([shuffled[position] for position in positions.tolist()])


def _augmented(examples, positions: np.ndarray, pipeline: Pipeline) -> list[Mapping[str, Any]]:
    """Each example through every augmentation, with the randomness of its position."""
    bits = np.random.Philox(key=[pipeline.seed, AUGMENT])
    rng, fresh = np.random.Generator(bits), bits.state
    results = []
    for example, position in zip(examples, positions.tolist(), strict=True):
        # The counter's highest word is the position, so no two positions can share a number.
        # Setting the state is five times cheaper than making a generator.
        counter = np.array([0, 0, 0, position], np.uint64)
        bits.state = {**fresh, "state": {**fresh["state"], "counter": counter}}
        for augmentation in pipeline.augment:
            example = augmentation(example, rng)
        results.append(example)
    return results


def _described(augmentation: Augmentation) -> dict[str, Any]:
    kind = type(augmentation)
    return {"name": f"{kind.__module__}:{kind.__qualname__}", **dataclasses.asdict(augmentation)}


def load_all(
    source: Source, *, limit: int | None = None, keys: tuple[str, ...] | None = None
) -> Columns:
    """The first `limit` examples of a source (None: all) as arrays [n, ...], in its order."""
    return read_all(source.open(), limit=limit, keys=keys)
