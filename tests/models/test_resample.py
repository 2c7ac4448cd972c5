"""Halving and doubling against NumPy, one axis after the other."""

import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models.resample import BOX, downsample, resample, upsample

RNG = np.random.default_rng(0)
FIR = (1, 3, 3, 1)
SHAPES = [(2, 6, 3), (2, 6, 4, 3), (1, 4, 2, 6, 2)]


def halved(line, taps):
    """Zeros around, every second window: (taps - 2) zeros, the odd one in front."""
    spare = len(taps) - 2
    padded = np.concatenate([np.zeros((spare + 1) // 2), line, np.zeros(spare // 2)])
    weights = np.array(taps) / sum(taps)
    return [padded[2 * i : 2 * i + len(taps)] @ weights for i in range(len(line) // 2)]


def doubled(line, taps):
    """Each value leaves twice its weight times the taps at its place, as halving's transpose."""
    out, weights = np.zeros(2 * len(line) + len(taps)), 2 * np.array(taps) / sum(taps)
    for i, value in enumerate(line):
        out[2 * i : 2 * i + len(taps)] += value * weights
    start = (len(taps) - 2) // 2
    return out[start : start + 2 * len(line)]


@pytest.mark.parametrize("taps", [BOX, FIR])
@pytest.mark.parametrize("shape", SHAPES)
def test_resampling_equals_numpy_along_every_axis(x64, taps, shape):
    x = RNG.normal(size=shape)
    down = up = x
    for axis in range(1, len(shape) - 1):
        down = np.apply_along_axis(halved, axis, down, taps)
        up = np.apply_along_axis(doubled, axis, up, taps)
    np.testing.assert_allclose(downsample(jnp.asarray(x), taps), down, atol=1e-13)
    np.testing.assert_allclose(upsample(jnp.asarray(x), taps), up, atol=1e-13)


@pytest.mark.parametrize("taps", [BOX, FIR])
def test_a_constant_stays_one_away_from_the_border(taps):
    x = jnp.ones((1, 8, 8, 1))
    for direction, size in (("down", 4), ("up", 16)):
        inside = resample(x, direction, taps)[:, 1:-1, 1:-1]
        assert inside.shape == (1, size - 2, size - 2, 1)
        np.testing.assert_allclose(inside, 1.0, rtol=1e-6)


def test_no_direction_is_the_same_array_and_an_unknown_one_is_refused():
    x = jnp.ones((1, 2, 2, 1))
    assert resample(x, "none") is x
    with pytest.raises(UserError, match="one of none, up, down, got 'left'"):
        resample(x, "left")


def test_an_odd_size_is_refused():
    with pytest.raises(UserError, match=r"\(4, 3\) cannot be halved"):
        downsample(jnp.ones((1, 4, 3, 1)))
