"""Log-likelihoods against exact densities, and discrete bounds against exact entropies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorediff.data.toy import Gaussian
from scorediff.diffusion import EDM, VE, FlowMatching, Marginal, VPLinear
from scorediff.errors import UserError
from scorediff.solvers import ancestral, heun, logsnr, make_grid, quadratic, sample_keys, upward
from scorediff.solvers import dequantise as dq
from scorediff.solvers.elbo import diffusion_cost, elbo, prior_cost
from scorediff.solvers.likelihood import (
    log_likelihood,
    log_likelihood_adaptive,
    normal_logpdf,
    trace_vectors,
)
from scorediff.solvers.runge_kutta import rk4
from tests.oracles import bed_a, bed_b

STEPS = 200
STRAIGHT = partial(rk4, frame="straight")
CASES = {
    "vp": (VPLinear(), STRAIGHT, logsnr),
    "ve": (VE(t_min=0.01), STRAIGHT, logsnr),
    "edm": (EDM(t_min=0.01), STRAIGHT, logsnr),
    "flow": (FlowMatching(t_min=0.01), rk4, quadratic),  # up to alpha = 0
}
BEDS = {"mixture": bed_a(), "gaussian": bed_b()}


def climbing(process, solver=STRAIGHT, spacing=logsnr, n=STEPS):
    return solver(upward(make_grid(process, spacing, n, to_data=False)))


def keys_for(x, seed=0):
    root = jax.random.key(seed, impl="unsafe_rbg")  # compiles faster than threefry
    return sample_keys(root, jnp.arange(len(x)))


def points(bed, alpha, sigma, n=16):
    """Draws of the marginal at (alpha, sigma), [n, d]."""
    x0, _ = bed.sample_host(np.random.default_rng(1), n)
    return jnp.asarray(alpha * x0 + sigma * np.random.default_rng(0).standard_normal(x0.shape))


@partial(jax.jit, static_argnames=("bed", "divergence", "probes"))
def along_table(bed, table, x, keys, **options):
    """One compilation for all processes: the bed reads (alpha, sigma) from the table."""

    def at(k):
        k = k.astype(int)
        return Marginal(table.alpha[k], table.sigma[k], jnp.nan, jnp.nan)

    return log_likelihood(
        bed.denoiser(at),
        table._replace(t=jnp.arange(table.t.shape[0]) * 1.0),
        x,
        keys=keys,
        process=at,
        prior=lambda x: bed.logpdf(x, table.alpha[-1], table.sigma[-1]),
        **options,
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bed", BEDS)
def test_log_likelihood_is_exact(bed, case, x64):
    bed, table = BEDS[bed], climbing(*CASES[case])
    x = points(bed, table.alpha[0], table.sigma[0])
    found = along_table(bed, table, x, keys_for(x))
    exact = bed.logpdf(x, table.alpha[0], table.sigma[0])
    np.testing.assert_allclose(found.logp, exact, atol=1e-4)
    assert found.nfe == table.nfe == 4 * STEPS


@pytest.mark.slow
def test_hutchinson_is_unbiased(x64):
    bed, table, repeats = BEDS["mixture"], climbing(*CASES["vp"], n=60), 300
    x = jnp.tile(points(bed, table.alpha[0], table.sigma[0], 4), (repeats, 1))
    found = along_table(bed, table, x, keys_for(x), divergence="hutchinson", probes=2).logp
    found = np.asarray(found).reshape(repeats, 4)
    exact = bed.logpdf(x[:4], table.alpha[0], table.sigma[0])
    spread = np.std(found, axis=0) / np.sqrt(repeats)
    assert np.all(spread > 1e-3)  # the estimate is one
    # 60 steps are off by 1e-3 nats at most, measured with the exact divergence
    assert np.all(np.abs(np.mean(found, axis=0) - exact) < 4 * spread + 1e-3)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_probes_have_unit_covariance_and_are_the_samples_own(probe):
    x = jnp.zeros((4000, 3))
    keys = sample_keys(jax.random.key(0), jnp.arange(len(x)))
    draw = partial(trace_vectors, "hutchinson", probes=2, probe=probe)
    vectors = draw(keys, x)
    covariance = np.einsum("bni,bnj->ij", vectors, vectors) / len(x)
    np.testing.assert_allclose(covariance, np.eye(3), atol=0.1)  # 0.02 is one standard error
    np.testing.assert_array_equal(draw(keys[5:6], x[5:6]), vectors[5:6])


@pytest.mark.slow
def test_one_probe_is_exact_for_isotropic_data_and_the_prior_is_the_samplers(x64):
    """trace = v^T J v for J = c I; all that is left is the prior's missing alpha x0."""
    process, bed = EDM(), Gaussian(mean=(0.3, -0.2, 0.0), stds=(0.5,) * 3)
    x = points(bed, 1.0, 0.002).reshape(-1, 3, 1)
    table = climbing(process, n=STEPS)
    run = partial(log_likelihood, bed.denoiser(process), table, x, keys=keys_for(x))
    found = run(process=process, divergence="hutchinson")
    exact_end = bed.logpdf(found.x_end, 1.0, 80.0)
    at_end = normal_logpdf(found.x_end, 80.0)
    exact = bed.logpdf(x, 1.0, 0.002)
    np.testing.assert_allclose(found.logp - at_end + exact_end, exact, atol=2e-5)
    assert found.x_end.shape == x.shape


@pytest.mark.slow
def test_adaptive_integration_agrees(x64):
    process, bed = EDM(), Gaussian(mean=(0.3, -0.2), stds=(0.8, 0.3))
    x = points(bed, 1.0, process.t_min, 8)
    run = jax.jit(
        lambda x, keys: log_likelihood_adaptive(
            bed.denoiser(process),
            process,
            x,
            keys=keys,
            rtol=1e-7,
            atol=1e-7,
            prior=lambda x: bed.logpdf(x, 1.0, process.t_max),
        )
    )
    found = run(x, keys_for(x))
    np.testing.assert_allclose(found.logp, bed.logpdf(x, 1.0, process.t_min), atol=1e-4)
    assert found.nfe.shape == (8,) and np.all(found.nfe < 2000)


# --- data with finitely many values


def test_uniform_dequantisation_bounds_the_entropy(x64):
    """A Gaussian that is wide against the bins: 7 bits turn its density into the entropy."""
    std, n = 0.2, 4000
    bed = Gaussian(mean=(0.0,), stds=(std,))
    edges = (np.arange(257) / 128 - 1) / std
    edges[[0, -1]] = -np.inf, np.inf
    probability = np.diff(stats.norm.cdf(edges))
    probability /= probability.sum()
    entropy = stats.entropy(probability, base=2)
    values = jnp.asarray(np.random.default_rng(0).choice(256, size=(n, 1), p=probability))
    x = dq.uniform(values, keys_for(values))
    result = dq.bits_per_dim(
        bed.logpdf(x), dim=1, method="exact", nfe=0, dequantisation=dq.uniform_cost()
    )
    assert (result.dequantisation, result.offset, result.examples) == ("uniform", 7.0, n)
    # the empirical entropy of the same values takes away the noise of their choice
    empirical = -np.mean(np.log2(probability[np.asarray(values)]))
    gap = result.mean - empirical  # (bin width / std)^2 / 24 / ln 2 = 4e-5, and what the tails hold
    assert -1e-3 < gap < 5e-3, gap
    assert abs(empirical - entropy) < 4 * result.standard_error
    assert "offset +7.0000" in str(result)


@pytest.mark.slow
def test_decoder_sums_to_one():
    values = jnp.arange(256)[:, None]
    for mean, std in ((0.1, 1e-3), (-0.999, 0.05), (1.3, 0.3), (-0.4, 5.0)):
        total = jnp.exp(dq.decoder_logp(values, jnp.full((256, 1), mean), std)).sum()
        np.testing.assert_allclose(total, 1.0, rtol=1e-4)
    far = dq.decoder_logp(jnp.array([[0]]), jnp.array([[0.9]]), 0.05)
    assert np.isfinite(far) and far < -500  # a difference of two ones would give -inf


ATOMS = np.random.default_rng(5).dirichlet(np.full(256, 0.3))  # probabilities of 256 values
ATOMS_PROCESS = EDM(t_min=5e-4, t_max=200.0)  # sigma is an eighth of half a bin at the low end


def atoms_posterior(x, sigma):
    logits = jnp.log(ATOMS) - 0.5 * ((x[..., None] - dq.centred(jnp.arange(256))) / sigma) ** 2
    return logits


def atoms_denoise(x, t, cond=None):
    sigma = jnp.broadcast_to(t, x.shape[:1])[:, None, None]
    share = jax.nn.softmax(atoms_posterior(x, sigma), axis=-1)
    return share @ dq.centred(jnp.arange(256))


def test_elbo_of_the_exact_denoiser_is_the_entropy(x64):
    """All parts of the bound are tight: prior far, decoder sure, and the denoiser perfect."""
    n = 1500
    values = jnp.asarray(np.random.default_rng(1).choice(256, size=(n, 2), p=ATOMS))
    run = jax.jit(lambda v, keys: elbo(atoms_denoise, ATOMS_PROCESS, v, keys=keys, times=24))
    parts = run(values, keys_for(values))
    exact = np.log(ATOMS[np.asarray(values)]).sum(axis=1)
    assert parts.nfe == 25
    difference = np.asarray(parts.logp) - exact
    error = difference.std() / np.sqrt(n)
    assert error < 0.1
    assert abs(difference.mean()) < 4 * error
    assert np.max(parts.prior) < 1e-4 and np.max(parts.reconstruction) < 1e-3


@pytest.mark.slow
def test_parts_of_the_elbo_of_a_gaussian(x64):
    """Prior + diffusion - E log p(x0 | x_min) = -log p(x0) for each x0, with the exact denoiser."""
    process, bed = VPLinear(), BEDS["gaussian"]
    low = process(process.t_min)
    x0 = jnp.tile(points(bed, 1.0, 0.0, 3), (500, 1))
    run = jax.jit(
        lambda x, keys: diffusion_cost(bed.denoiser(process), process, x, keys=keys, times=8)[0]
    )
    cost = np.asarray(prior_cost(process, x0) + run(x0, keys_for(x0))).reshape(500, 3)
    axes, stds = bed.components.axes[0], bed.components.stds[0]
    gain = low.alpha * stds**2 / (low.alpha**2 * stds**2 + low.sigma**2)
    variance = stds**2 * low.sigma**2 / (low.alpha**2 * stds**2 + low.sigma**2)
    y = (x0[:3] - bed.components.means[0]) @ axes
    square = (y * (1 - gain * low.alpha)) ** 2 + (gain * low.sigma) ** 2
    last = 0.5 * np.sum(square / variance + np.log(2 * np.pi * variance), axis=1)
    error = cost.std(axis=0) / np.sqrt(500)
    # the sampler's prior N(0, 1) is not quite the marginal at t_max: below 5e-3 nats here
    assert np.all(np.abs(cost.mean(axis=0) + last + bed.logpdf(x0[:3])) < 4 * error + 5e-3)


@pytest.mark.slow
def test_decoder_dequantisation_of_the_ode_is_tight(x64):
    """Equation (2) of `dequantise` with exact log p at t_min of the same discrete data."""
    n = 2000
    values = jnp.asarray(np.random.default_rng(1).choice(256, size=(n, 1), p=ATOMS))
    m = ATOMS_PROCESS(ATOMS_PROCESS.t_min)
    x = dq.noised(values, keys_for(values), m)
    norm = 0.5 * np.log(2 * np.pi) + np.log(m.sigma)
    logp = jax.nn.logsumexp(atoms_posterior(x, m.sigma), axis=-1).sum(axis=1) - norm
    decoded = dq.decoder_logp(values, atoms_denoise(x, ATOMS_PROCESS.t_min), m.sigma)
    result = dq.bits_per_dim(
        logp + decoded, dim=1, method="exact", nfe=1, dequantisation=dq.decoder_cost(m.sigma)
    )
    exact = -np.mean(np.log2(ATOMS[np.asarray(values)]))
    noise = 1 / np.sqrt(2 * n) / np.log(2)  # of the entropy of the noise, from its draws
    assert result.dequantisation == "decoder"
    assert abs(result.mean - exact) < 4 * noise


def test_mistakes_are_named():
    x = jnp.zeros((2, 2))
    denoise = BEDS["mixture"].denoiser(EDM())
    grid = make_grid(EDM(), logsnr, 4, to_data=False)
    run = partial(log_likelihood, denoise, x=x, keys=keys_for(x), process=EDM())
    for table, words in (
        (heun(grid), "must climb"),
        (ancestral(grid), "adds noise"),
        (heun(grid, churn=2.0), "adds noise"),
    ):
        with pytest.raises(UserError, match=words):
            run(table)
    up = climbing(EDM(), n=2)
    for options, words in (
        ({"divergence": "hutch"}, "hutch"),
        ({"probe": "uniform"}, "uniform"),
        ({"divergence": "hutchinson", "probes": 0}, "got 0"),
    ):
        with pytest.raises(UserError, match=words):
            run(up, **options)
    with pytest.raises(UserError, match="up in t"):
        log_likelihood_adaptive(denoise, EDM(), x, keys=keys_for(x), t_start=1.0, t_end=0.5)
    with pytest.raises(UserError, match="infinite"):
        elbo(denoise, FlowMatching(), jnp.zeros((2, 2), int), keys=keys_for(x))
    with pytest.raises(UserError, match="times"):
        elbo(denoise, EDM(), jnp.zeros((2, 2), int), keys=keys_for(x), times=0)
    with pytest.raises(UserError, match="shape"):
        dq.bits_per_dim([[1.0]], dim=2, method="exact", nfe=1)
