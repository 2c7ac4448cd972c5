"""Targets, weightings and training times against the papers' formulas."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorediff.diffusion import (
    EDM,
    VE,
    FlowMatching,
    TimeSampler,
    VPCosine,
    VPLinear,
    target,
    times,
)
from scorediff.diffusion import weighting as weightings
from scorediff.types import Draws

TARGETS = {
    "x0": target.x0,
    "eps": target.eps,
    "score": target.score,
    "v": target.v,
    "velocity": target.velocity,
    "edm": target.edm(sigma_data=0.6),
    "own_row": lambda m: (2.0 * m.sigma, 0.3 + m.alpha),
}
LEVELS = {"vp": VPLinear(), "flow": FlowMatching(), "edm": EDM(), "ve": VE()}


def marginal(process, n=16):
    t = process.t_min + (jnp.arange(n) + 0.5) / n * (process.t_max - process.t_min)
    return process(t)


@pytest.mark.parametrize("level", LEVELS)
def test_every_pair_of_targets_round_trips(level, x64):
    m = marginal(LEVELS[level])
    x0, eps = jax.random.normal(jax.random.key(0), (2, 16), jnp.float64)
    x = m.alpha * x0 + m.sigma * eps
    values = {}
    for name, row in TARGETS.items():
        a, b = row(m)
        values[name] = a * x0 + b * eps
    for source, aim in itertools.product(TARGETS, repeat=2):
        said = target.convert(values[source], x, m, source=TARGETS[source], target=TARGETS[aim])
        np.testing.assert_allclose(
            said, values[aim], rtol=1e-7, atol=1e-9, err_msg=f"{source}->{aim}"
        )


def test_edm_preconditioning_is_the_papers(x64):
    s, sigma = 0.5, jnp.geomspace(0.002, 80, 9, dtype=jnp.float64)
    m = EDM()(sigma)
    x, network = 1.7, 0.3
    x0_hat, _ = target.solve(target.edm(sigma_data=s), m, x, network)
    skip, out = s**2 / (sigma**2 + s**2), sigma * s / np.sqrt(sigma**2 + s**2)
    np.testing.assert_allclose(x0_hat, skip * x + out * network, rtol=1e-12)


# (weighting, the paper's weight, on which target's error)
PAPERS = [
    (weightings.eps_uniform, lambda m: 1.0, target.eps),
    (weightings.x0_uniform, lambda m: 1.0, target.x0),
    (weightings.velocity_uniform, lambda m: 1.0, target.velocity),
    (weightings.likelihood, lambda m: m.diffusion2, target.score),
    (weightings.elbo, lambda m: -m.dlogsnr / 2, target.eps),
    (weightings.edm, lambda m: 1.0, target.edm(sigma_data=0.5)),
    (weightings.edm, lambda m: (m.sigma**2 + 0.25) / (0.5 * m.sigma) ** 2, target.x0),
    (
        weightings.min_snr,
        lambda m: jnp.minimum((m.alpha / m.sigma) ** 2, 5.0),
        target.x0,
    ),
    (
        weightings.soft_min_snr,
        lambda m: 5 * m.alpha**2 / (m.alpha**2 + 5 * m.sigma**2),
        target.x0,
    ),
    (weightings.sigmoid, lambda m: jax.nn.sigmoid(2 - m.logsnr), target.eps),
]


@pytest.mark.parametrize("case", range(len(PAPERS)))
def test_weightings_weigh_what_the_paper_says(case, x64):
    weighting, weight, row = PAPERS[case]
    process = EDM() if case == 6 else VPLinear()  # EDM states its x0 weight for alpha = 1
    m = marginal(process)
    a, b = row(m)
    # an error of x0_hat with x_t fixed moves eps_hat by -alpha/sigma of it
    error = 0.37
    moved = a * error - b * m.alpha / m.sigma * error
    np.testing.assert_allclose(
        weighting(m) * (error / m.sigma) ** 2, weight(m) * moved**2, rtol=1e-10
    )


def test_gain_turns_the_weight_into_one_on_the_network(x64):
    m = marginal(FlowMatching())
    for row in TARGETS.values():
        a, b = row(m)
        det = target.determinant(row, m)
        dx0 = 0.2
        dy = a * dx0 - b * m.alpha / m.sigma * dx0
        np.testing.assert_allclose(dy**2, det**2 * (dx0 / m.sigma) ** 2, rtol=1e-10)


def test_weightings_are_finite_at_both_ends_of_flow():
    m = FlowMatching()(jnp.array([0.0, 1.0]))
    for weighting in (
        weightings.eps_uniform,
        weightings.x0_uniform,
        weightings.velocity_uniform,
        weightings.edm,
        weightings.min_snr,
        weightings.soft_min_snr,
        weightings.sigmoid,
    ):
        assert np.all(np.isfinite(weighting(m)))


U = jnp.linspace(0.001, 0.999, 999)


@pytest.mark.slow
def test_quantiles_have_their_distributions():
    level = EDM()
    ratio = times.log_normal_sigma(level, U, mean=-1.2, std=1.2).t
    expected = np.exp(stats.norm(-1.2, 1.2).ppf(np.asarray(U)))
    np.testing.assert_allclose(ratio, np.clip(expected, 0.002, 80), rtol=1e-4)
    t = times.logit_normal(FlowMatching(), U, mean=0.5, std=0.8).t
    np.testing.assert_allclose(
        t, 1 / (1 + np.exp(-stats.norm(0.5, 0.8).ppf(np.asarray(U)))), rtol=1e-4
    )
    m = VPCosine()(times.uniform_logsnr(VPCosine(), U).t)
    assert np.ptp(np.diff(m.logsnr)) < 2e-3 * abs(np.mean(np.diff(m.logsnr))) + 2e-4


def test_importance_sampling_keeps_integrals_over_uniform_time(x64):
    """E[weight g(t)] = the mean of g over [t_min, t_max], for a g unlike the density."""
    process = VPLinear()
    u = (jnp.arange(20000) + 0.5) / 20000
    t, weight = times.likelihood_importance(process, u)
    span = process.t_max - process.t_min
    exact = (np.sin(3 * process.t_max) - np.sin(3 * process.t_min)) / 3 / span
    np.testing.assert_allclose(jnp.mean(weight * jnp.cos(3 * t)), exact, rtol=1e-5)


def draws(size=64, seed=0):
    return Draws(jax.random.key(seed), jnp.arange(size), size)


def test_stratified_puts_one_time_in_each_stratum():
    t = TimeSampler(u="stratified")(FlowMatching(t_min=0.0), draws(), 0).t
    assert sorted(np.floor(np.asarray(t) * 64 + 1e-4).astype(int) % 64) == list(range(64))


def test_antithetic_times_mirror_each_other():
    t = TimeSampler(u="antithetic")(FlowMatching(t_min=0.0), draws(), 0).t
    np.testing.assert_allclose(t[::2] + t[1::2], 1, atol=1e-6)
    assert len(np.unique(np.asarray(t[::2]))) == 32


def test_draws_do_not_depend_on_how_a_batch_is_cut():
    whole = draws()
    parts = [Draws(whole.key, whole.index[i : i + 16], 64) for i in range(0, 64, 16)]
    for take in (
        lambda d: d.normal(1, (3,)),
        lambda d: d.uniform(2),
        lambda d: d.stratified(3),
        lambda d: TimeSampler(u="antithetic")(VPLinear(), d, 0).t,
    ):
        np.testing.assert_array_equal(take(whole), np.concatenate([take(p) for p in parts]))


def test_unknown_way_of_drawing_is_named():
    with pytest.raises(ValueError, match="sobol"):
        TimeSampler(u="sobol")


def test_partial_distribution_is_a_distribution():
    sampler = TimeSampler(distribution=partial(times.log_normal_sigma, mean=0.0, std=1.0))
    t = sampler(EDM(), draws(4096), 0).t
    np.testing.assert_allclose(np.mean(np.log(t)), 0, atol=0.02)
    np.testing.assert_allclose(np.std(np.log(t)), 1, atol=0.02)
