"""Augmentation on the host, one example at a time, and scaling on the device, one batch at a time.

Images travel as uint8: a quarter of the bytes of float32, and converting them on the host costs
more than decoding them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import jax.numpy as jnp
import numpy as np

from scorediff.errors import UserError
from scorediff.types import Array, Batch

Example = Mapping[str, np.ndarray]


class Augmentation(Protocol):
    """A frozen dataclass: what it does to one example is a function of the example and `rng`."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomFlip:
    """Mirrors example[key] [h, w, c] left to right with this probability."""

    key: str = "image"
    probability: float = 0.5

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise UserError(f"RandomFlip: probability {self.probability} is not in [0, 1]")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= self.probability:
            return example
        return {**example, self.key: example[self.key][:, ::-1]}


def as_x0(batch: Batch, *, key: str = "x0") -> Array:
    """batch[key] as it is, float32: x0 for the loss, of points that need no scaling."""
    return jnp.asarray(batch[key], jnp.float32)


def to_unit_range(
    batch: Batch, *, key: str = "image", low: float = 0.0, high: float = 255.0
) -> Array:
    """batch[key] with [low, high] mapped to [-1, 1], float32: x0 for the loss."""
    _check_range(low, high)
    return (jnp.asarray(batch[key], jnp.float32) - low) * (2 / (high - low)) - 1


def to_uint8(x0: Array, *, low: float = 0.0, high: float = 255.0) -> Array:
    """The inverse of `to_unit_range`: [-1, 1] to the nearest integer in [low, high], uint8."""
    _check_range(low, high)
    values = (jnp.asarray(x0, jnp.float32) + 1) * ((high - low) / 2) + low
    return jnp.clip(jnp.round(values), low, high).astype(jnp.uint8)


def _check_range(low: float, high: float) -> None:
    if not low < high:
        raise UserError(f"pixel range: low {low} is not below high {high}")
