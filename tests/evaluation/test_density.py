"""Bits per dimension of examples under models whose density, or whose entropy, is known."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from scorediff.data.toy import Gaussian
from scorediff.diffusion import EDM, FlowMatching, VPLinear
from scorediff.errors import UserError
from scorediff.evaluation.density import Density, Protocol, climb
from scorediff.evaluation.examples import Examples
from scorediff.evaluation.generate import Sampling
from scorediff.solvers import adaptive_ode, ancestral, dpm_adaptive, heun, learned_variance, rk4
from tests.oracles import bed_a

LEVELS, STD, SIGMA = 64, 0.3, 0.01
VARIANCE = STD**2 + SIGMA**2  # of x_t at the smallest time
BED, NARROW = Gaussian(mean=(0.0,) * 2, stds=(STD,) * 2), EDM(t_min=SIGMA, t_max=20.0)


def density(bed, process, **protocol):
    model = SimpleNamespace(process=process, bind=lambda params: bed.denoiser(process))
    return Density(denoiser=model, protocol=Protocol(**protocol), batch_size=20)


def real(bed, n):
    x0, _ = bed.sample_host(np.random.default_rng(0), n)
    return Examples(np.asarray(x0, np.float32), None, None, None)


def exact_bits(bed, process, x0):
    """Of x_t / alpha at the smallest time, example by example."""
    m = process.host(np.array([process.t_min]))
    alpha, sigma = m.alpha[0], m.sigma[0]
    nats = np.asarray(bed.logpdf(alpha * x0, alpha, sigma), np.float64)
    return -(nats / x0.shape[1] + np.log(alpha)) / np.log(2)


@pytest.mark.parametrize(
    ("solver", "nfe"),
    [
        (partial(rk4, frame="straight"), 160),
        pytest.param(partial(adaptive_ode, rtol=1e-4), 0, marks=pytest.mark.slow),
    ],
)
def test_bits_of_real_points_are_those_of_the_exact_density(solver, nfe):
    """A mixture under a process whose smallest alpha is well below 1."""
    bed, process = bed_a(), VPLinear(t_min=0.05)
    examples = real(bed, 30)  # a batch and a half
    program = climb(Sampling(nfe=nfe or 1), solver, process)
    found = density(bed, process, divergence="exact").ode(None, program, examples)
    exact = exact_bits(bed, process, examples.x0)
    assert found.mean == pytest.approx(exact.mean(), abs=2e-3)
    error = exact.std(ddof=1) / np.sqrt(len(exact))
    assert found.standard_error == pytest.approx(error, rel=1e-2)
    assert (found.dequantisation, found.offset, found.examples) == ("none", 0.0, 30)
    assert found.nfe == nfe if nfe else 20 < found.nfe < 500


def whole():
    """Whole numbers, most of them near the middle."""
    drawn = np.random.default_rng(0).normal(LEVELS / 2, STD * LEVELS / 2, size=(400, 2))
    values = np.clip(drawn, 0, LEVELS - 1).astype(np.int32)
    return Examples(np.float32(2 * values / (LEVELS - 1) - 1), None, values, LEVELS)


def uniform_bits(values):
    """The mean of log p over the bin of each value, in closed form, as bits."""
    edges = np.stack([2 * values / LEVELS - 1, 2 * (values + 1) / LEVELS - 1])
    squares = np.diff(edges**3 / 3, axis=0)[0] * LEVELS / 2  # the mean of x^2 over the bin
    nats = 0.5 * squares / VARIANCE + 0.5 * np.log(2 * np.pi * VARIANCE)
    return nats / np.log(2) + np.log2(LEVELS / 2)


def decoder_bits(values):
    """-log2 p(x_t) - log2 P(v | x_t) - entropy of the noise, by quadrature over the noise."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    x0 = (2 * values / (LEVELS - 1) - 1)[..., None]
    x = x0 + SIGMA * nodes
    half, x0_hat = 1 / (LEVELS - 1), x * STD**2 / VARIANCE
    upper = np.where(values == LEVELS - 1, np.inf, 0)[..., None] + x0 + half
    lower = np.where(values == 0, -np.inf, 0)[..., None] + x0 - half
    p = np.diff(stats.norm.cdf([(edge - x0_hat) / SIGMA for edge in (lower, upper)]), axis=0)[0]
    nats = -stats.norm.logpdf(x, scale=VARIANCE**0.5) - np.log(p)
    mean = np.sum(weights * nats, axis=-1) / np.sum(weights)
    return mean / np.log(2) - 0.5 * np.log2(2 * np.pi * np.e * SIGMA**2)


@pytest.mark.parametrize("dequantisation", ["uniform", "decoder"])
def test_bits_of_whole_numbers_are_those_of_their_bins(dequantisation):
    examples = whole()
    program = climb(Sampling(nfe=100), partial(rk4, frame="straight"), NARROW)
    model = density(BED, NARROW, dequantisation=dequantisation)
    found = model.ode(None, program, examples)
    expected = {"uniform": uniform_bits, "decoder": decoder_bits}[dequantisation](examples.values)
    assert found.mean == pytest.approx(expected.mean(), abs=0.03)  # 800 draws of noise
    assert found.dequantisation == dequantisation
    offset = {"uniform": 5.0, "decoder": -0.5 * np.log2(2 * np.pi * np.e * SIGMA**2)}
    assert found.offset == pytest.approx(offset[dequantisation])
    assert found.nfe == 100 + (dequantisation == "decoder")


def test_the_bound_of_an_exact_model_is_tight():
    examples = whole()
    found = density(BED, NARROW, times=64).elbo(None, examples)
    assert found.mean == pytest.approx(decoder_bits(examples.values).mean(), abs=0.1)
    assert (found.dequantisation, found.offset, found.nfe) == ("decoder", 0.0, 65)


@pytest.mark.parametrize(
    ("solver", "process", "message"),
    [
        (ancestral, VPLinear(), "cannot add ancestral noise"),
        (dpm_adaptive, VPLinear(), "only adaptive_ode can climb"),
        (learned_variance, VPLinear(), "cannot add ancestral noise"),
        (partial(heun, churn=5.0), VPLinear(), "noise"),
        (heun, FlowMatching(t_min=0.0), "there is no noise at t=0"),
    ],
)
def test_what_is_no_ode_is_refused(solver, process, message):
    with pytest.raises(UserError, match=message):
        climb(Sampling(nfe=9), solver, process)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dequantisation": "none"}, "one of uniform, decoder, got 'none'"),
        ({"divergence": "skilling"}, "one of exact, hutchinson"),
        ({"probes": 0}, "probes must be at least 1"),
        ({"times": 0}, "times must be at least 1"),
    ],
)
def test_a_protocol_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Protocol(**options)


def test_real_data_have_no_bound_and_no_decoder():
    bed, process = bed_a(), VPLinear()
    with pytest.raises(UserError, match="these data are real"):
        density(bed, process).check_elbo(real(bed, 2))
    with pytest.raises(UserError, match="nothing to dequantise"):
        density(bed, process, dequantisation="decoder").check_ode(real(bed, 2))


def test_what_is_not_finite_is_an_error():
    bed, process = bed_a(), VPLinear()
    model = SimpleNamespace(process=process, bind=lambda params: lambda x, t, cond: np.nan * x)
    program = climb(Sampling(nfe=4), heun, process)
    with pytest.raises(UserError, match="4 of 4 examples have no finite log p"):
        Density(denoiser=model).ode(None, program, real(bed, 4))
