"""Small data sets of every kind, made and not downloaded: video, audio, point sets and voxels.

Each is drawn as `scorediff.data.source.Sampled` asks for it: `sample_host(rng, n)` gives
(x0 [n, *shape] float32 within [-1, 1], label [n] int32), so example i is a function of (seed, i).
"""

import dataclasses

import numpy as np

from scorediff.errors import UserError

Drawn = tuple[np.ndarray, np.ndarray]


def _check_sizes(owner: object, *, least: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < least:
            raise UserError(f"{type(owner).__name__}.{name} must be at least {least}, got {size}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MovingShapes:
    """Video [frames, size, size, 1] of a disc (label 0) or a square (1) that bounces off the walls.

    It is 1 on -1, with edges one pixel soft; its radius, place and constant speed are random.
    """

    frames: int = 8
    size: int = 16

    def __post_init__(self):
        _check_sizes(self, least=1, frames=self.frames)
        _check_sizes(self, least=8, size=self.size)

    def sample_host(self, rng: np.random.Generator, n: int) -> Drawn:
        label = rng.integers(0, 2, n, np.int32)
        radius = rng.uniform(0.12, 0.2, (n, 1)) * self.size
        start = rng.uniform(0, self.size, (n, 1, 2))
        speed = rng.uniform(-0.15, 0.15, (n, 1, 2)) * self.size
        wall = radius[..., None], self.size - 1 - radius[..., None]
        centre = _bounced(start + speed * np.arange(self.frames)[:, None], *wall)
        away = np.abs(np.arange(self.size) - centre[..., None])  # [n, frames, 2, size]
        rows, columns = away[:, :, 0, :, None], away[:, :, 1, None, :]
        square = (label == 1)[:, None, None, None]
        distance = np.where(square, np.maximum(rows, columns), np.hypot(rows, columns))
        return _solid(radius[..., None, None] - distance)[..., None], label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tones:
    """Audio [length, 1]: a chord of label + 1 different tones, of equal loudness and random phase.

    Every tone makes a whole number of turns, 1 to `highest`, in the signal's length.
    """

    length: int = 64
    highest: int = 12
    num_classes: int = 3

    def __post_init__(self):
        _check_sizes(self, least=1, num_classes=self.num_classes)
        if not self.num_classes <= self.highest < self.length / 2:
            raise UserError(
                f"Tones: highest={self.highest} must be below half of length={self.length}, and "
                f"at least num_classes={self.num_classes}"
            )

    def sample_host(self, rng: np.random.Generator, n: int) -> Drawn:
        label = rng.integers(0, self.num_classes, n, np.int32)
        turns = 1 + rng.random((n, self.highest)).argsort(axis=1)[:, : self.num_classes]
        phase = rng.random((n, self.num_classes, 1))
        waves = np.sin(
            2 * np.pi * (turns[..., None] * np.arange(self.length) / self.length + phase)
        )
        sounds = np.arange(self.num_classes) <= label[:, None]
        signal = (waves * sounds[..., None]).sum(axis=1) / (label[:, None] + 1)
        return signal[..., None].astype(np.float32), label


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurfacePoints:
    """Sets [points, 3], uniform on a sphere (label 0) or a cube (1) of random size at the origin.

    The radius, or half of the edge, is between 0.5 and 1. The order of the points means nothing.
    """

    points: int = 64

    def __post_init__(self):
        _check_sizes(self, least=1, points=self.points)

    def sample_host(self, rng: np.random.Generator, n: int) -> Drawn:
        label = rng.integers(0, 2, n, np.int32)
        sphere = rng.standard_normal((n, self.points, 3))
        sphere /= np.linalg.norm(sphere, axis=-1, keepdims=True)
        cube = rng.uniform(-1, 1, (n, self.points, 3))
        face = np.eye(3, dtype=bool)[rng.integers(0, 3, (n, self.points))]
        cube = np.where(face, np.sign(cube), cube)
        unit = np.where((label == 1)[:, None, None], cube, sphere)
        return (rng.uniform(0.5, 1, (n, 1, 1)) * unit).astype(np.float32), label


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoxelBalls:
    """Voxels [size, size, size, 1] with one ball (label 0) or two (1), 1 inside and -1 outside.

    Edges are one voxel soft; two balls may overlap.
    """

    size: int = 8

    def __post_init__(self):
        _check_sizes(self, least=8, size=self.size)

    def sample_host(self, rng: np.random.Generator, n: int) -> Drawn:
        label = rng.integers(0, 2, n, np.int32)
        radius = rng.uniform(0.15, 0.25, (n, 2, 1, 1, 1)) * self.size
        centre = rng.uniform(radius[..., 0, 0], self.size - 1 - radius[..., 0, 0], (n, 2, 3))
        away = np.square(np.arange(self.size) - centre[..., None])  # [n, 2, 3, size]
        x, y, z = (
            away[:, :, 0, :, None, None],
            away[:, :, 1, None, :, None],
            away[:, :, 2, None, None],
        )
        depth = radius - np.sqrt(x + y + z)
        deeper = np.where((label == 1)[:, None, None, None], depth.max(axis=1), depth[:, 0])
        return _solid(deeper)[..., None], label


def _solid(depth: np.ndarray) -> np.ndarray:
    """1 inside of a surface and -1 outside, from the depth below it in pixels; float32."""
    return (2 * np.clip(depth + 0.5, 0, 1) - 1).astype(np.float32)


def _bounced(place: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A place on an endless line as one that is reflected at two walls."""
    span = high - low
    return high - np.abs(span - (place - low) % (2 * span))
