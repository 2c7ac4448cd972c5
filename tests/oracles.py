"""Exact test-beds shared by the tests: plain functions, no pytest.

Bed A is a 2-D mixture of five Gaussians, bed B one 16-D Gaussian. Their parameters, starting noises
and check values (worked out independently of scorediff) lie in tests/fixtures/solvers/testbed.npz:
A_means, A_covs, A_eigvecs, A_stds, A_weights, B_mean, B_cov, B_eigvecs, B_stds, z_A [8, 2],
z_B [4, 16], z_A_big [256, 2], z_B_big [64, 16], check_*, and exact flows under VP, VE and flow
matching: exact_start_A [3, 8, 2], exact_end_A, exact_alpha_sigma_A [3, (start, end), 2], and for B.
"""

import functools
from pathlib import Path

import numpy as np

from scorediff.data.toy import ExactDistribution, Gaussian, GaussianMixture

FIXTURES = Path(__file__).parent / "fixtures"


@functools.cache
def testbed() -> dict[str, np.ndarray]:
    """Everything in testbed.npz, by name, read-only."""
    with np.load(FIXTURES / "solvers" / "testbed.npz", allow_pickle=False) as file:
        arrays = dict(file)
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


testbed.__test__ = False  # its name begins like a test's


def bed_a(labels: tuple[int, ...] | None = None) -> GaussianMixture:
    """The 2-D mixture of five; give five labels to make it class-conditional."""
    bed = testbed()
    return GaussianMixture(
        weights=tuples(bed["A_weights"]),
        means=tuples(bed["A_means"]),
        stds=tuples(bed["A_stds"]),
        axes=tuples(bed["A_eigvecs"]),
        labels=labels,
    )


def bed_b() -> Gaussian:
    """The 16-D Gaussian, stds from 0.05 to 1.5."""
    bed = testbed()
    return Gaussian(
        mean=tuples(bed["B_mean"]), stds=tuples(bed["B_stds"]), axes=tuples(bed["B_eigvecs"])
    )


def exact_flow(distribution: ExactDistribution, process, x, t_start, t_end) -> np.ndarray:
    """Where the probability-flow ODE of `process` takes x from t_start to t_end; float64.

    For the last digits call it under x64, or use `distribution.flow` with float64 (alpha, sigma).
    """
    ends = [process(np.asarray(t, np.float64)) for t in (t_start, t_end)]
    start, end = ((float(m.alpha), float(m.sigma)) for m in ends)
    return distribution.flow(x, start, end)


def tuples(array) -> tuple:
    """An array as nested tuples of floats."""
    return tuple(map(tuples, array)) if np.ndim(array) > 1 else tuple(np.asarray(array).tolist())
