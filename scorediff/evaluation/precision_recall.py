"""Are the samples good, and are all kinds there? Two numbers instead of one.

The support of a set of points is estimated as the union of balls around its points, each reaching
to the point's k-th nearest neighbour in its own set. *Precision* is the share of samples inside the
support of the real points (quality); *recall* the share of real points inside the support of the
samples (variety). Kynkaanniemi et al. 2019, arXiv 1904.06991, equations 1 and 2.

One far-away point has a huge ball. *Density* and *coverage* (Naeem et al. 2020, arXiv 2002.09797,
equations 3 and 4) use the real points' balls alone: density counts how many balls a sample lies in,
coverage the share of balls that hold a sample.
"""

from typing import NamedTuple

import numpy as np

from scorediff.evaluation.neighbours import flatten, squared_distances


class PrecisionRecall(NamedTuple):
    precision: float  # share of samples in the support of the real points, in [0, 1]
    recall: float  # share of real points in the support of the samples, in [0, 1]


class DensityCoverage(NamedTuple):
    density: float  # about 1 for samples of the same distribution; can exceed 1
    coverage: float  # share of real points with a sample in their ball, in [0, 1]


def squared_radii(points: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each point [m, d] to its k-th nearest other point, [m]."""
    if not 0 < k < len(points):
        raise ValueError(f"the k-th neighbour needs 0 < k < {len(points)} points, got k = {k}")
    # each point is its own nearest, at position 0
    return np.concatenate(
        [np.partition(chunk, k, axis=1)[:, k] for chunk in squared_distances(points, points)]
    )


def _hits(queries: np.ndarray, points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """In how many balls of `points` each query is, [n]; how many queries each ball has, [m]."""
    radii = squared_radii(points, k)
    inside = [chunk <= radii for chunk in squared_distances(queries, points)]
    per_query = np.concatenate([chunk.sum(axis=1) for chunk in inside])
    return per_query, np.sum([chunk.sum(axis=0) for chunk in inside], axis=0)


def precision_recall(real: np.ndarray, samples: np.ndarray, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of samples [n, d] against real points [m, d].

    Both depend on n, m and k: compare only with numbers at the same n, m, k.
    """
    real, samples = flatten(real), flatten(samples)
    in_real, _ = _hits(samples, real, k)
    in_samples, _ = _hits(real, samples, k)
    return PrecisionRecall(float(np.mean(in_real > 0)), float(np.mean(in_samples > 0)))


def density_coverage(real: np.ndarray, samples: np.ndarray, *, k: int = 5) -> DensityCoverage:
    """Density and coverage of samples [n, d] against real points [m, d]."""
    per_sample, per_ball = _hits(flatten(samples), flatten(real), k)
    return DensityCoverage(float(np.mean(per_sample)) / k, float(np.mean(per_ball > 0)))
