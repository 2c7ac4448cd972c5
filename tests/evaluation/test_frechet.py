"""The Frechet distance against closed forms and an independent matrix square root."""

import numpy as np
import pytest
import scipy.linalg

from scorediff.evaluation.frechet import FeatureStatistics, feature_statistics, frechet_distance


def covariance(rng, d, rank=None):
    factor = rng.normal(size=(d, rank or 2 * d))
    return factor @ factor.T / factor.shape[1]


def gaussian(mean, cov):
    return FeatureStatistics(mean=np.asarray(mean, float), cov=np.asarray(cov, float), n=10)


def test_commuting_covariances_have_a_closed_form():
    a = gaussian([1.0, 2.0], np.diag([4.0, 9.0]))
    b = gaussian([0.0, 2.5], np.diag([1.0, 16.0]))
    assert frechet_distance(a, b) == pytest.approx(1.25 + (2 - 1) ** 2 + (3 - 4) ** 2, rel=1e-12)


def test_two_dimensions_from_trace_and_determinant():
    # tr M^(1/2) = sqrt(tr M + 2 sqrt(det M)) for a 2x2 matrix with positive eigenvalues
    a, b = np.array([[2.0, 0.6], [0.6, 1.0]]), np.array([[1.5, -0.9], [-0.9, 3.0]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a + b) - 2 * root
    assert frechet_distance(gaussian([0, 0], a), gaussian([0, 0], b)) == pytest.approx(expected)


def test_non_commuting_covariances_against_scipy():
    rng = np.random.default_rng(0)
    for d in (3, 8, 20):
        a, b, mean = covariance(rng, d), covariance(rng, d), rng.normal(size=d)
        root = np.trace(scipy.linalg.sqrtm(a @ b).real)
        expected = mean @ mean + np.trace(a + b) - 2 * root
        found = frechet_distance(gaussian(mean, a), gaussian(np.zeros(d), b))
        assert found == pytest.approx(expected, rel=1e-9)


def test_fewer_points_than_dimensions():
    # the nuclear norm of Xa^T Xb, centred, is the trace of the root without any covariance
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(12, 40)), rng.normal(size=(9, 40)) + 0.3
    ca, cb = (a - a.mean(0)) / np.sqrt(11), (b - b.mean(0)) / np.sqrt(8)
    nuclear = np.linalg.svd(ca @ cb.T, compute_uv=False).sum()
    mean = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected = mean + np.sum(ca**2) + np.sum(cb**2) - 2 * nuclear
    found = frechet_distance(feature_statistics(a), feature_statistics(b))
    assert found == pytest.approx(expected, rel=1e-10)


def test_constant_features():
    same = feature_statistics(np.ones((5, 3)))
    assert frechet_distance(same, same) == 0.0
    assert frechet_distance(same, feature_statistics(np.zeros((5, 3)))) == pytest.approx(3.0)


def test_zero_for_identical_symmetric_and_unmoved_by_rotation():
    rng = np.random.default_rng(2)
    a = rng.normal(size=(300, 10)) * np.arange(1, 11)
    b = rng.normal(size=(200, 10)) + 0.5
    turn = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    s, t = feature_statistics(a), feature_statistics(b)
    distance = frechet_distance(s, t)
    assert frechet_distance(s, s) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(t, s) == pytest.approx(distance, rel=1e-10)
    turned = frechet_distance(feature_statistics(a @ turn + 7), feature_statistics(b @ turn + 7))
    assert turned == pytest.approx(distance, rel=1e-9)


def test_statistics_are_numpys_and_float64():
    features = np.random.default_rng(3).normal(size=(50, 4)).astype(np.float32) + 1000
    found = feature_statistics(features)
    assert found.mean.dtype == found.cov.dtype == np.float64
    np.testing.assert_allclose(found.cov, np.cov(features.astype(np.float64).T), rtol=1e-9)
    assert found.digest() == feature_statistics(features).digest()
    assert found.digest() != feature_statistics(features[:-1]).digest()


def test_bad_features_are_refused():
    with pytest.raises(ValueError, match="two points"):
        feature_statistics(np.ones((1, 3)))
    with pytest.raises(ValueError, match="not finite"):
        feature_statistics(np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="not comparable"):
        frechet_distance(gaussian([0], [[1]]), gaussian([0, 0], np.eye(2)))
