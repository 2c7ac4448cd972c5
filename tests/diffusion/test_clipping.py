"""Static and dynamic thresholding."""

import jax
import numpy as np
import pytest

from scorediff.diffusion.clipping import clipped, dynamically_clipped
from scorediff.errors import UserError

SCALES = np.float32([[1.0], [0.2], [10.0]])
X = np.linspace(-3, 3, 102, dtype=np.float32) * SCALES


def same(x, t, cond=None):
    return x


def test_static_thresholding_cuts_off():
    np.testing.assert_array_equal(clipped(same)(X, 0.5), np.clip(X, -1, 1))
    np.testing.assert_array_equal(clipped(same, limit=0.5)(X, 0.5), np.clip(X, -0.5, 0.5))


def test_dynamic_thresholding_scales_each_sample_by_its_own_quantile():
    """Over all dimensions of a sample, without an upper bound on s; within the range it is off."""
    images = X.reshape(3, 17, 2, 3)
    for limit in (1.0, 0.7):
        rule = jax.jit(dynamically_clipped(same, quantile=0.9, limit=limit))
        found = np.asarray(rule(images, 0.5)).reshape(X.shape)
        for i in (0, 2):
            s = np.quantile(np.abs(X[i]), 0.9)
            assert s > 2
            wanted = np.clip(X[i], -s, s) / s * limit
            np.testing.assert_allclose(found[i], wanted, rtol=1e-5)
        np.testing.assert_array_equal(found[1], X[1])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: clipped(same, limit=-1.0), r"clipped.*-1\.0"),
        (lambda: dynamically_clipped(same, quantile=-0.5), r"quantile.*-0\.5"),
        (lambda: dynamically_clipped(same, quantile=1.5), r"quantile.*1\.5"),
        (lambda: dynamically_clipped(same, limit=0.0), r"limit.*0\.0"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(UserError, match=words):
        make()
