"""Where examples come from: prepared data sets, and distributions that are sampled.

A source is a frozen dataclass with `open()`, which gives random access to examples (dicts), and
`describe()`, a dict of JSON values that two sources share only if they give the same examples in
the same order. It holds a hash of some decoded examples, so that it follows the content and not
how and where the content is stored.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from scorediff.data import prepared
from scorediff.data.columns import Examples, content_hash
from scorediff.errors import StorageError, UserError

BLOCK = 256  # draws made at once by `Sampled`


class Source(Protocol):
    """What a pipeline reads from."""

    def open(self) -> Examples: ...

    def describe(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDS:
    """A data set prepared by TFDS as array_record, by name and split.

    name: `cifar10`, or `image_folder/cats` where the data set has configurations.
    split: `train`, or a part of one: `train[:90%]`, `train[100:200]`.
    data_dir: default: the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets.
    version: default: the newest prepared.

    Nothing is ever downloaded: `open` raises a UserError where the data set is not prepared.
    """

    name: str
    split: str = "train"
    data_dir: str | None = None
    version: str | None = None

    def open(self) -> "Records":
        return Records(prepared.load(self.name, self.data_dir, self.version), self.split)

    def describe(self) -> dict[str, Any]:
        records = self.open()
        return {
            "name": self.name,
            "version": records.version,
            "split": self.split,
            "examples": len(records),
            "content": content_hash(records),
        }


class Records:
    """The examples of one split; a damaged record is named, with its file, when it is met."""

    def __init__(self, builder: Any, split: str):
        self.version = str(builder.info.version)
        self._records = prepared.open_split(builder, split)
        self._parts = builder.info.splits[split].file_instructions
        self._ends = list(itertools.accumulate(part.examples_in_shard for part in self._parts))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        indices = [int(i) for i in indices]
        try:
            return self._records.__getitems__(indices)
        except Exception as error:  # readers of records and images raise whatever they like
            raise self._blame(indices, error) from error

    def _blame(self, indices: list[int], error: Exception) -> StorageError:
        """Reads again one by one, to name the record that cannot be read."""
        for index in indices:
            try:
                self._records[index]
            except Exception as own:
                return StorageError(
                    f"{self._place(index)} cannot be read ({prepared.one_line(own)}); "
                    f"the file is damaged: prepare the data set again"
                )
        return StorageError(f"{self._place(indices[0])} and others: {prepared.one_line(error)}")

    def _place(self, index: int) -> str:
        shard = bisect.bisect_right(self._ends, index)
        part = self._parts[shard]
        return f"{part.filename}: record {part.skip + index - ([0, *self._ends])[shard]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """`size` draws of an exact distribution as if they were a data set.

    distribution: has `sample_host(rng, n) -> (x0 [n, *d] float32, label [n] int32)`, as those of
      `scorediff.data.toy`.
    Example i is {"x0": [*d] float32, "label": int32}, a pure function of (seed, i).
    """

    distribution: Any
    size: int
    seed: int = 0

    def __post_init__(self):
        if not hasattr(self.distribution, "sample_host"):
            raise UserError(f"Sampled: {self.distribution!r} cannot be sampled (no sample_host)")
        if self.size < 1 or self.seed < 0:
            raise UserError(f"Sampled: size {self.size} must be > 0, seed {self.seed} >= 0")

    def open(self) -> "Draws":
        return Draws(self)

    def describe(self) -> dict[str, Any]:
        return {
            "name": type(self.distribution).__qualname__,
            "examples": self.size,
            "seed": self.seed,
            "content": content_hash(self.open()),
        }


class Draws:
    """Made in blocks: one draw alone costs nearly as much as a block of them."""

    def __init__(self, source: Sampled):
        self._source = source

    def __len__(self) -> int:
        return self._source.size

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        places = [divmod(int(i), BLOCK) for i in indices]
        blocks = {k: self._block(k) for k in {block for block, _ in places}}
        return [{"x0": blocks[k][0][i], "label": blocks[k][1][i]} for k, i in places]

    def _block(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self._source.seed, k])
        return self._source.distribution.sample_host(rng, BLOCK)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomImages:
    """Uniform random pixels with labels in turn: for checking shapes and speed without a data set.

    Example i is {"image": uint8 [*shape], "label": int32}, a pure function of (seed, i).
    """

    shape: tuple[int, ...]
    classes: int = 10
    size: int = 1000
    seed: int = 0

    def __post_init__(self):
        if len(self.shape) != 3 or self.classes < 1 or self.size < 1:
            raise UserError(
                f"RandomImages: shape {self.shape} must be (height, width, channels), classes "
                f"{self.classes} and size {self.size} > 0"
            )

    def open(self) -> "Pixels":
        return Pixels(self)

    def describe(self) -> dict[str, Any]:
        return {"name": "RandomImages", **dataclasses.asdict(self), "shape": list(self.shape)}


class Pixels:
    """The examples of `RandomImages`."""

    def __init__(self, source: RandomImages):
        self._source = source

    def __len__(self) -> int:
        return self._source.size

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        rng = np.random.default_rng([self._source.seed, int(index)])
        image = rng.integers(0, 256, self._source.shape, np.uint8)
        return {"image": image, "label": np.int32(index % self._source.classes)}

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        return [self[i] for i in indices]
