"""Precision, recall, density and coverage on sets whose answer is known."""

import numpy as np
import pytest

from scorediff.evaluation.precision_recall import (
    density_coverage,
    precision_recall,
    squared_radii,
)


def blobs(rng, centres, n, scale=0.1):
    centres = np.asarray(centres, float)
    return np.repeat(centres, n, axis=0) + scale * rng.normal(size=(n * len(centres), 2))


def test_identical_sets_are_perfect():
    points = np.random.default_rng(0).normal(size=(700, 5)) + 100
    assert precision_recall(points, points) == (1.0, 1.0)
    assert density_coverage(points, points).coverage == 1.0


def test_disjoint_sets_share_nothing():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(200, 3)), rng.normal(size=(150, 3)) + 50
    assert precision_recall(a, b) == (0.0, 0.0)
    assert density_coverage(a, b) == (0.0, 0.0)


def test_half_the_modes_halve_recall_and_not_precision():
    rng = np.random.default_rng(2)
    modes = [(0, 0), (10, 0), (0, 10), (10, 10)]
    real, samples = blobs(rng, modes, 250), blobs(rng, modes[:2], 500)
    precision, recall = precision_recall(real, samples)
    assert precision > 0.9
    assert 0.42 < recall <= 0.5
    assert 0.42 < density_coverage(real, samples).coverage <= 0.5
    # and the other way round: half of the samples are of modes that the data do not have
    precision, recall = precision_recall(samples, real)
    assert 0.42 < precision <= 0.5
    assert recall > 0.9


def test_density_is_about_one_for_equal_distributions():
    # exactly: each of n samples is in a given ball of m points' k-th neighbour with mean k / m
    rng = np.random.default_rng(3)
    found = [
        density_coverage(rng.normal(size=(400, 2)), rng.normal(size=(400, 2))).density
        for _ in range(10)
    ]
    assert np.mean(found) == pytest.approx(1.0, abs=0.05)


def test_by_hand_on_a_line():
    real = np.array([[0.0], [1.0], [2.0], [10.0]])  # radii for k = 1: 1, 1, 1, 8
    assert np.sqrt(squared_radii(real, 1)).tolist() == [1, 1, 1, 8]
    samples = np.array([[-0.5], [2.5], [30.0]])  # in one ball, in two, in none; radii 3, 3, 27.5
    assert precision_recall(real, samples, k=1) == (pytest.approx(2 / 3), 1.0)
    assert density_coverage(real, samples, k=1) == (pytest.approx(1.0), pytest.approx(3 / 4))


def test_k_must_fit():
    with pytest.raises(ValueError, match="k = 4"):
        precision_recall(np.ones((4, 2)), np.ones((9, 2)), k=4)
