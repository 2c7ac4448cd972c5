"""Averages against their closed forms: the weights they give to each update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.training.ema import (
    ConstantEMA,
    PowerEMA,
    WarmupEMA,
    start_average,
    update_average,
)


def weights(profile, updates):
    """Weight of the initial parameters and of every update, [updates + 1].

    Parameters that are one-hot in time make the average its own vector of weights.
    """
    eye = jnp.eye(updates + 1)

    def body(average, t):
        return update_average(profile, average, eye[t], t), None

    average, _ = jax.lax.scan(body, start_average(eye[0]), jnp.arange(1, updates + 1))
    return np.asarray(average, np.float64)


def test_constant_weights_are_geometric():
    got = weights(ConstantEMA(decay=0.9), 40)
    want = np.r_[0.9**40, 0.1 * 0.9 ** np.arange(39, -1, -1)]
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-9)


def test_warmup_follows_its_ramp_and_then_the_decay():
    got = weights(WarmupEMA(decay=0.5), 30)
    decay = np.minimum(0.5, (1 + np.arange(1, 31)) / (10 + np.arange(1, 31)))
    later = np.r_[np.cumprod(decay[::-1])[::-1], 1.0]
    want = np.r_[1.0, 1 - decay] * later
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-8)
    assert decay[7] == 0.5 > decay[6]  # the ramp reaches the decay inside the tested range


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10, 0.20])
def test_power_profile_has_the_width_it_is_named_for(sigma_rel):
    updates = 1500
    got = weights(PowerEMA(sigma_rel=sigma_rel), updates)
    assert got[0] == 0.0
    time = np.arange(updates + 1) / updates
    mean = np.sum(got * time)
    np.testing.assert_allclose(got.sum(), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.sqrt(np.sum(got * (time - mean) ** 2)), sigma_rel, rtol=2e-3)


def test_power_profile_weights_telescope_to_differences_of_powers():
    profile = PowerEMA(sigma_rel=0.15)
    got = weights(profile, 50)
    edges = (np.arange(51) / 50) ** (profile.gamma + 1)
    np.testing.assert_allclose(got[1:], np.diff(edges), rtol=1e-4, atol=1e-9)


def test_power_exponents_are_those_of_the_paper():
    assert PowerEMA(sigma_rel=0.05).gamma == pytest.approx(16.97, abs=5e-3)
    assert PowerEMA(sigma_rel=0.10).gamma == pytest.approx(6.94, abs=5e-3)


def test_long_decays_keep_their_digits_in_float32():
    profile, t = PowerEMA(sigma_rel=0.10), 1_000_000
    want = -np.expm1((profile.gamma + 1) * np.log1p(-1 / t))
    assert float(profile.rate(jnp.float32(t))) == pytest.approx(want, rel=1e-5)


def test_average_of_half_precision_parameters_is_float32():
    start = start_average({"w": jnp.ones(3, jnp.bfloat16)})
    after = update_average(ConstantEMA(decay=0.999), start, {"w": jnp.zeros(3, jnp.bfloat16)}, 1)
    assert after["w"].dtype == jnp.float32
    np.testing.assert_allclose(after["w"], 0.999, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConstantEMA(decay=1.0),
        lambda: WarmupEMA(decay=-0.1),
        lambda: PowerEMA(sigma_rel=0.3),
        lambda: PowerEMA(sigma_rel=0.0),
    ],
)
def test_impossible_profiles_are_refused_with_the_value(make):
    with pytest.raises(UserError, match=r"got (1\.0|-0\.1|0\.3|0\.0)"):
        make()
