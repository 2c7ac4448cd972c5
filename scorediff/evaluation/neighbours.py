"""Which real image is a sample nearest to, and is it nearer than an unseen real image would be?

A model that has learned the distribution makes images that are about as far from the training set
as real images it has not seen. A model that copies makes images that lie nearer. So the distances
of held-out real images to the training set are the yardstick: take their q-quantile as "near", and
count the samples that are nearer than that. A model that copies nothing has a share of about q;
one that returns training images has a share of 1.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

CHUNK = 512  # queries at a time: bounds the distance matrix in memory


class Neighbours(NamedTuple):
    """The nearest reference of each query."""

    index: np.ndarray  # [n] int, into the references
    distance: np.ndarray  # [n] float64, in the units of the input


class Memorisation(NamedTuple):
    """How near the samples are to the training set, with held-out real images as the yardstick."""

    near: float  # share of samples nearer than `threshold`; about `quantile` if nothing is copied
    quantile: float
    threshold: float  # the quantile of the held-out images' distances
    distance: float  # median distance of a sample to its nearest training image
    held_out_distance: float  # median distance of a held-out image to its nearest training image


def flatten(points: np.ndarray) -> np.ndarray:
    """Points [n, ...] as float64 rows [n, d]."""
    points = np.asarray(points)
    if points.ndim < 2 or len(points) == 0:
        raise ValueError(f"expected at least one point in rows [n, ...], got shape {points.shape}")
    return points.reshape(len(points), -1).astype(np.float64)


def squared_distances(queries: np.ndarray, references: np.ndarray) -> Iterator[np.ndarray]:
    """Squared Euclidean distances of queries [n, d] to references [m, d], in chunks [<= 512, m].

    |q|^2 - 2 q.r + |r|^2 loses digits where points are close together and far from the origin, so
    both are first moved to the middle of the references. Float64 throughout.
    """
    centre = references.mean(axis=0)
    queries, references = queries - centre, references - centre
    norms = np.sum(references**2, axis=1)
    for start in range(0, len(queries), CHUNK):
        part = queries[start : start + CHUNK]
        squares = np.sum(part**2, axis=1)[:, None] - 2.0 * part @ references.T + norms
        yield np.maximum(squares, 0.0)


def nearest(queries: np.ndarray, references: np.ndarray) -> Neighbours:
    """Nearest reference of each query in Euclidean distance, by brute force.

    Args:
        queries: [n, ...], any numeric type.
        references: [m, ...] with the same trailing shape.
    """
    queries, references = flatten(queries), flatten(references)
    if queries.shape[1] != references.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} values, references {references.shape[1]}"
        )
    found = [np.argmin(chunk, axis=1) for chunk in squared_distances(queries, references)]
    index = np.concatenate(found)
    # the distance of the pair itself, exact also where it is zero
    return Neighbours(index, np.linalg.norm(queries - references[index], axis=1))


def memorisation(
    samples: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    white: float = 255,
    quantile: float = 0.05,
) -> Memorisation:
    """Share of samples that are nearer to a training image than held-out images usually are.

    Args:
        samples: images [n, h, w, c] in 0..white; `train` and `held_out` alike, real ones.
        white: what counts as distance 1: distances are the root mean square over pixels and
            channels, as a share of the way from black to white.
        quantile: the share of held-out images that count as near by definition, in (0, 1).
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile must be between 0 and 1, got {quantile}")
    unit = white * np.sqrt(train[0].size)
    ours = nearest(samples, train).distance / unit
    yardstick = nearest(held_out, train).distance / unit
    threshold = float(np.quantile(yardstick, quantile))
    return Memorisation(
        near=float(np.mean(ours < threshold)),
        quantile=quantile,
        threshold=threshold,
        distance=float(np.median(ours)),
        held_out_distance=float(np.median(yardstick)),
    )
