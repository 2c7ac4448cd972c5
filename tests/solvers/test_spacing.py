"""Spacings against their closed forms, on several processes."""

from functools import partial

import numpy as np
import pytest
from scipy import stats

from scorediff.diffusion import EDM, VE, FlowMatching, VPDiscrete, VPLinear, linear_betas
from scorediff.errors import UserError
from scorediff.solvers import make_grid
from scorediff.solvers.spacing import (
    beta,
    exponential,
    leading,
    linspace,
    listed,
    logsnr,
    shifted,
    trailing,
    trigonometric,
    uniform,
)

DISCRETE = VPDiscrete(betas=linear_betas())


def times(process, spacing, n, **ends):
    return np.array([node.t for node in make_grid(process, spacing, n, **ends).nodes[:-1]])


def column(process, spacing, n, value):
    nodes = make_grid(process, spacing, n).nodes[:-1]
    return np.array([value(node) for node in nodes])


@pytest.mark.parametrize("process", [VPLinear(), VE(), FlowMatching(), EDM()])
def test_trigonometric_steps_are_equal_angles(process):
    angles = column(process, trigonometric, 9, lambda n: np.arctan2(n.sigma, n.alpha))
    np.testing.assert_allclose(np.diff(angles), np.diff(angles)[0], rtol=1e-7)


def test_exponential_is_log_uniform_in_sigma():
    sigmas = column(EDM(), exponential, 7, lambda n: n.sigma)
    np.testing.assert_allclose(sigmas, np.geomspace(80, 0.002, 7), rtol=1e-12)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shifted_is_the_timestep_shift_of_flow_matching(shift):
    """Esser et al., eq. 23, on u from one end to the other."""
    got = times(FlowMatching(), partial(shifted, shift=shift), 6, t_end=0.1)
    last = 0.1 / (shift - (shift - 1) * 0.1)  # what shifts to 0.1
    u = np.linspace(1, last, 6)
    np.testing.assert_allclose(got, shift * u / (1 + (shift - 1) * u), rtol=1e-12)


def test_shift_of_one_is_uniform_in_flow_matching():
    got = times(FlowMatching(), partial(shifted, shift=1.0), 5)
    np.testing.assert_allclose(got, times(FlowMatching(), uniform, 5), rtol=1e-12)


def test_beta_are_quantiles():
    process = VPLinear()
    got = (times(process, partial(beta, a=0.5, b=0.7), 8) - 1e-3) / (1 - 1e-3)
    np.testing.assert_allclose(stats.beta.cdf(got, 0.5, 0.7), np.linspace(1, 0, 8), atol=1e-7)


def test_lists_are_taken_as_they_are_and_interpolated():
    levels = (80.0, 20.0, 3.0, 0.5, 0.02)
    np.testing.assert_allclose(times(EDM(), partial(listed, levels=levels), 5), levels, rtol=1e-12)
    nine = times(EDM(), partial(listed, levels=levels), 9)
    np.testing.assert_allclose(nine[::2], levels, rtol=1e-12)
    np.testing.assert_allclose(nine[1], np.sqrt(80 * 20), rtol=1e-12)
    given = (0.9, 0.5, 0.1)
    np.testing.assert_allclose(times(VPLinear(), partial(listed, times=given), 3), given)
    twice = column(VPLinear(), partial(listed, levels=levels), 5, lambda n: n.sigma / n.alpha)
    np.testing.assert_allclose(twice, levels, rtol=1e-9)


def test_integer_timesteps():
    def steps(spacing, n):
        return (times(DISCRETE, spacing, n) * 1000 - 1).round(9).tolist()

    assert steps(leading, 5) == [800, 600, 400, 200, 0]
    assert steps(partial(leading, offset=1), 5) == [801, 601, 401, 201, 1]
    assert steps(trailing, 5) == [999, 799, 599, 399, 199]
    assert steps(linspace, 5) == [999, 749, 500, 250, 0]
    assert steps(trailing, 3) == [999, 666, 332]


@pytest.mark.parametrize("spacing", [trigonometric, uniform, shifted, beta])
def test_spacings_that_start_at_pure_noise(spacing):
    assert make_grid(FlowMatching(), spacing, 4).nodes[0].alpha == 0


@pytest.mark.parametrize(
    ("process", "spacing", "n", "words"),
    [
        (FlowMatching(), logsnr, 4, "t_start"),
        (EDM(), partial(shifted, shift=-1.0), 4, "-1"),
        (EDM(), listed, 4, "times"),
        (EDM(), partial(listed, levels=(1.0, 2.0)), 4, "falling"),
        (DISCRETE, partial(leading, train_steps=10), 11, "10"),
        (DISCRETE, partial(leading, offset=999), 3, "1000"),
        (VPLinear(), lambda process, u, start, end: np.full_like(u, 0.5), 4, "fall"),
    ],
)
def test_mistakes_are_named(process, spacing, n, words):
    with pytest.raises(UserError, match=words):
        make_grid(process, spacing, n)
