"""Nearest neighbours against a k-d tree, and the memorisation share on constructed cases."""

import numpy as np
import pytest
import scipy.spatial

from scorediff.evaluation.neighbours import memorisation, nearest


def images(rng, n):
    return rng.integers(0, 256, size=(n, 4, 4, 1), dtype=np.uint8)


def test_agrees_with_a_kd_tree():
    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(1100, 3)) + 1e4, rng.normal(size=(300, 3)) + 1e4
    distance, index = scipy.spatial.cKDTree(references).query(queries)
    found = nearest(queries, references)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-12)


def test_a_copy_is_found_at_distance_zero():
    train = images(np.random.default_rng(1), 40)
    found = nearest(train[[7, 3]], train)
    assert found.index.tolist() == [7, 3]
    assert found.distance.tolist() == [0.0, 0.0]


def test_copies_are_memorised_and_new_images_are_not():
    rng = np.random.default_rng(2)
    train, held_out, new = images(rng, 200), images(rng, 400), images(rng, 400)
    assert memorisation(train, train, held_out).near == 1.0
    fresh = memorisation(new, train, held_out, quantile=0.1)
    assert fresh.near == pytest.approx(0.1, abs=0.06)  # same distribution as the held-out ones
    assert fresh.distance == pytest.approx(fresh.held_out_distance, rel=0.05)
    mixed = memorisation(np.concatenate([new, train[:100]]), train, held_out, quantile=0.1)
    assert mixed.near == pytest.approx((fresh.near * 400 + 100) / 500)


def test_distance_is_zero_to_one_whatever_the_size():
    black, white = np.zeros((3, 8, 8, 3), np.uint8), np.full((2, 8, 8, 3), 255, np.uint8)
    found = memorisation(white, black, white)
    assert found.distance == found.held_out_distance == pytest.approx(1.0)


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="16 values, references 9"):
        nearest(np.ones((2, 4, 4)), np.ones((2, 3, 3)))
    with pytest.raises(ValueError, match="quantile"):
        memorisation(np.ones((2, 4)), np.ones((2, 4)), np.ones((2, 4)), quantile=1.5)
