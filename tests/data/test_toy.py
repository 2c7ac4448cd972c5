"""The exact distributions against check values, calculus, quadrature and statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from scorediff.data.toy import Gaussian, GaussianMixture, pinwheel
from scorediff.data.toy.exact import ExactDistribution
from scorediff.errors import UserError
from tests.oracles import bed_a, bed_b, exact_flow, testbed

LEVELS = [(1.0, 0.0), (0.9, 0.43), (0.4, 0.6), (0.05, 0.99), (0.0, 1.0), (1.0, 80.0)]
CLASSES = (0, 1, 0, 2, 1)
BEDS = {"A": bed_a, "B": bed_b}


def points(distribution, alpha, sigma, n=16, seed=0):
    rng = np.random.default_rng(seed)
    x0, _ = distribution.sample_host(rng, n)
    return alpha * x0.astype(np.float64) + sigma * rng.standard_normal(x0.shape)


@pytest.mark.parametrize("bed", BEDS)
@pytest.mark.parametrize("quantity", ["eps", "x0", "score"])
def test_recorded_check_values(x64, bed, quantity):
    method = getattr(BEDS[bed](), "x0_hat" if quantity == "x0" else quantity)
    values = testbed()
    for row, (alpha, sigma) in enumerate(values["check_alpha_sigma"]):
        want = values[f"check_{quantity}_{bed}"][row]
        got = method(values[f"check_x_{bed}"][row], alpha, sigma)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("bed", BEDS)
def test_levels_per_point_equal_one_level_at_a_time(x64, bed):
    values, mixture = testbed(), BEDS[bed]()
    alpha, sigma = values["check_alpha_sigma"].T
    x = values[f"check_x_{bed}"][:, 0]
    np.testing.assert_allclose(
        mixture.x0_hat(x, alpha, sigma), values[f"check_x0_{bed}"][:, 0], rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("bed", BEDS)
def test_density_against_scipy(x64, bed):
    values, distribution = testbed(), BEDS[bed]()
    weights = values["A_weights"] if bed == "A" else [1.0]
    means = np.atleast_2d(values["A_means" if bed == "A" else "B_mean"])
    covs = values["A_covs"] if bed == "A" else values["B_cov"][None]
    for alpha, sigma in LEVELS:
        x = points(distribution, alpha, sigma)
        want = sum(
            w * multivariate_normal(alpha * m, alpha**2 * c + sigma**2 * np.eye(len(m))).pdf(x)
            for w, m, c in zip(weights, means, covs, strict=True)
        )
        np.testing.assert_allclose(distribution.logpdf(x, alpha, sigma), np.log(want), rtol=1e-9)


@pytest.mark.parametrize("cond", [None, {"label": np.arange(16) % 4}], ids=["all", "class"])
def test_score_is_the_gradient_of_the_log_density(x64, cond):
    mixture = bed_a(CLASSES)

    @jax.jit
    def both(x, alpha, sigma):
        gradient = jax.grad(lambda x: mixture.logpdf(x, alpha, sigma, cond).sum())(x)
        return gradient, mixture.score(x, alpha, sigma, cond)

    for alpha, sigma in LEVELS:
        gradient, score = both(points(mixture, alpha, sigma), alpha, sigma)
        np.testing.assert_allclose(score, gradient, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("bed", BEDS)
def test_tweedie(x64, bed):
    distribution = BEDS[bed]()
    for alpha, sigma in LEVELS:
        if alpha:
            x = points(distribution, alpha, sigma)
            want = (x + sigma**2 * distribution.score(x, alpha, sigma)) / alpha
            error = np.abs(distribution.x0_hat(x, alpha, sigma) - want).max()
            assert error < 1e-14 * np.abs(x).max() / alpha * 10


@pytest.mark.parametrize("label", [None, 0, 3])
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.6, 0.8)])
def test_density_integrates_to_one(x64, alpha, sigma, label):
    side = np.linspace(-6, 6, 601)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    cond = None if label is None else {"label": np.full(len(grid), label)}
    total = np.exp(pinwheel(num_classes=3).logpdf(grid, alpha, sigma, cond)).sum() * 0.02**2
    assert abs(total - 1) < 1e-6


@pytest.mark.parametrize("distribution", [bed_a(), bed_b(), pinwheel()], ids=["A", "B", "pinwheel"])
def test_sample_moments(distribution):
    n = 40_000
    mean, covariance = distribution.moments()
    on_host, _ = distribution.sample_host(np.random.default_rng(1), n)
    for x in (on_host, np.asarray(distribution.sample(jax.random.key(1), n))):
        assert x.shape == (n, distribution.dim) and x.dtype == np.float32
        z = (x.mean(0) - mean) / np.sqrt(np.diag(covariance) / n)
        assert np.abs(z).max() < 5
        products = np.einsum("ni,nj->nij", x - mean, x - mean)
        z = (products.mean(0) - covariance) / (products.std(0) / np.sqrt(n))
        assert np.abs(z).max() < 5


def test_host_samples_carry_their_class():
    mixture = bed_a(CLASSES)
    x, label = mixture.sample_host(np.random.default_rng(2), 20_000)
    assert label.dtype == np.int32
    for c in mixture.classes:
        mine, own = x[label == c], mixture.given(c)
        share = testbed()["A_weights"][np.array(CLASSES) == c].sum()
        assert abs(len(mine) / len(x) - share) < 5 * np.sqrt(share * (1 - share) / len(x))
        mean, covariance = own.moments()
        z = (mine.mean(0) - mean) / np.sqrt(np.diag(covariance) / len(mine))
        assert np.abs(z).max() < 5


@pytest.mark.slow
@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_law_of_total_expectation(x64, alpha, sigma):
    mixture = bed_a(CLASSES)
    x = points(mixture, alpha, sigma)
    total = 0
    for c in mixture.classes:
        cond = {"label": np.full(len(x), c)}
        share = sum(w for w, own in zip(mixture.weights, CLASSES, strict=True) if own == c)
        log_ratio = mixture.logpdf(x, alpha, sigma, cond) - mixture.logpdf(x, alpha, sigma)
        posterior = share * np.exp(log_ratio)  # Bayes
        total += posterior[:, None] * mixture.x0_hat(x, alpha, sigma, cond)
        given = mixture.given(c).x0_hat(x, alpha, sigma)
        np.testing.assert_allclose(mixture.x0_hat(x, alpha, sigma, cond), given, atol=1e-13)
        probabilities = mixture.class_probabilities(x, alpha, sigma)[:, c]
        np.testing.assert_allclose(probabilities, posterior, atol=1e-11)
    np.testing.assert_allclose(total, mixture.x0_hat(x, alpha, sigma), rtol=1e-10, atol=1e-10)


def test_null_label_is_the_whole_and_a_wrong_label_is_nan(x64):
    mixture = bed_a(CLASSES)
    x = points(mixture, 0.8, 0.6, n=4)
    mixed = mixture.x0_hat(x, 0.8, 0.6, {"label": np.array([3, 1, 4, -1])})
    np.testing.assert_array_equal(mixed[0], mixture.x0_hat(x, 0.8, 0.6)[0])
    np.testing.assert_allclose(mixed[1], mixture.given(1).x0_hat(x, 0.8, 0.6)[1], atol=1e-13)
    assert np.isnan(mixed[2:]).all()
    with pytest.raises(UserError, match="labels must be 0 to 3"):
        mixture.flow(x, (0, 1), (1, 0), {"label": np.array([3, 1, 4, -1])})


@pytest.mark.parametrize("distribution", [bed_a(CLASSES), bed_b()], ids=BEDS)
def test_float32_is_finite_at_both_ends_and_near_float64(distribution):
    for alpha, sigma in [(0.0, 1.0), (1.0, 0.0), (1.0, 80.0), (1e-4, 1.0), (1.0, 1e-3)]:
        x = points(distribution, alpha, sigma).astype(np.float32)
        for method in (distribution.x0_hat, distribution.eps):
            got = jax.jit(method)(x, alpha, sigma)
            assert got.dtype == jnp.float32
            with jax.enable_x64(True):
                want = method(x.astype(np.float64), alpha, sigma)
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * max(1, np.abs(want).max()))


def test_denoiser_under_any_process_and_any_shape(x64):
    class Marginal:
        def __init__(self, t):
            self.alpha, self.sigma = jnp.cos(t), jnp.sin(t)

    distribution, x = bed_b(), testbed()["z_B"]
    denoise = jax.jit(distribution.denoiser(Marginal))
    want = distribution.x0_hat(x, np.cos(0.3), np.sin(0.3))
    for t in (0.3, np.full(4, 0.3)):
        np.testing.assert_allclose(denoise(x, t), want, rtol=1e-13)
    images = denoise(x.reshape(4, 4, 4, 1), 0.3)
    np.testing.assert_allclose(images, want.reshape(4, 4, 4, 1), rtol=1e-13)
    # and the flow of the same process: at t = 0 a point stands still, to t and back is the identity
    there = exact_flow(distribution, Marginal, x, 0.3, 1.2)
    np.testing.assert_allclose(exact_flow(distribution, Marginal, there, 1.2, 0.3), x, atol=1e-12)


@pytest.mark.parametrize("bed", BEDS)
def test_recorded_exact_flows(bed):
    rows = (testbed()[f"exact_{name}_{bed}"] for name in ("start", "alpha_sigma", "end"))
    for x, (start, end), want in zip(*rows, strict=True):
        np.testing.assert_allclose(BEDS[bed]().flow(x, start, end), want, atol=2e-12)


def test_integrated_flow_equals_the_closed_form_of_a_gaussian():
    gaussian, x = bed_b(), testbed()["z_B"]
    for start, end in [((1, 80), (1, 0)), ((0, 1), (1, 0)), ((1, 0), (0.3, 0.9))]:
        scaled = x * start[1] if start[1] else x
        want = gaussian.flow(scaled, start, end)
        integrated = ExactDistribution.flow(gaussian, scaled, start, end)
        np.testing.assert_allclose(integrated, want, atol=1e-11 * max(1, np.abs(scaled).max()))


def test_gaussian_flow_carries_moments_and_entropy():
    gaussian, rng = bed_b(), np.random.default_rng(3)
    mean, covariance = gaussian.moments()
    noise = rng.standard_normal((4000, 16))
    noise -= noise.mean(0)
    noise @= np.linalg.inv(np.linalg.cholesky(noise.T @ noise / len(noise))).T  # white exactly
    x0 = gaussian.flow(noise, (0, 1), (1, 0))
    np.testing.assert_allclose(x0.mean(0), mean, atol=1e-12)
    np.testing.assert_allclose(np.cov(x0.T, bias=True), covariance, atol=1e-12)
    for alpha, sigma in LEVELS:
        cov = alpha**2 * covariance + sigma**2 * np.eye(16)
        assert abs(gaussian.entropy(alpha, sigma) - multivariate_normal(cov=cov).entropy()) < 1e-9


def test_mixture_flow_is_invertible_composes_and_conserves_probability(x64):
    mixture, z = bed_a(CLASSES), testbed()["z_A"]
    start, middle, end = (0.01, 1.0), (0.7, 0.5), (1.0, 0.02)
    cond = {"label": np.arange(8) % 4}
    direct = mixture.flow(z, start, end, cond)
    halfway = mixture.flow(z, start, middle, cond)
    np.testing.assert_allclose(mixture.flow(halfway, middle, end, cond), direct, atol=1e-11)
    np.testing.assert_allclose(mixture.flow(halfway, middle, start, cond), z, atol=1e-11)
    np.testing.assert_allclose(
        mixture.flow(z[1:2], start, end, {"label": cond["label"][1:2]}), direct[1:2], atol=1e-11
    )
    # p_end(flow(x)) |d flow / dx| = p_start(x), the Jacobian by central differences
    h = 1e-4
    ends = [mixture.flow(z + s * h * e, start, middle, cond) for e in np.eye(2) for s in (1, -1)]
    jacobian = np.stack([(ends[0] - ends[1]) / (2 * h), (ends[2] - ends[3]) / (2 * h)], -1)
    change = mixture.logpdf(halfway, *middle, cond) - mixture.logpdf(z, *start, cond)
    np.testing.assert_allclose(change, -np.log(np.linalg.det(jacobian)), atol=1e-5)


def test_pinwheel_classes_are_turned_copies(x64):
    wheel = pinwheel(num_classes=4)
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    x = points(wheel, 0.8, 0.3)
    first = wheel.x0_hat(x, 0.8, 0.3, {"label": np.zeros(16, int)})
    second = wheel.x0_hat(x @ quarter.T, 0.8, 0.3, {"label": np.ones(16, int)})
    np.testing.assert_allclose(second, first @ quarter.T, atol=1e-12)
    assert wheel.num_classes == 4 and hash(wheel) == hash(pinwheel())
    # the arms stay apart: the best classifier hardly ever errs on clean data
    x0, label = wheel.sample_host(np.random.default_rng(4), 2000)
    assert np.mean(np.argmax(wheel.class_probabilities(x0), -1) == label) > 0.97


GOOD = {"weights": (1.0, 2.0), "means": ((0.0, 1.0), (2.0, 3.0)), "stds": ((1.0, 1.0),) * 2}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": (1.0, -2.0)}, "-2"),
        ({"weights": (1.0,)}, r"weights \(1,\)"),
        ({"stds": ((1.0, 0.0),) * 2}, "stds"),
        ({"means": ((0.0,), (1.0, 2.0))}, "equal length"),
        ({"means": ((0.0, float("nan")), (1.0, 2.0))}, "nan"),
        ({"axes": (((1.0, 1.0), (0.0, 1.0)),) * 2}, "orthonormal"),
        ({"labels": (0, 2)}, r"\[0, 2\]"),
    ],
)
def test_mistakes_name_the_bad_value(change, words):
    GaussianMixture(**GOOD)
    with pytest.raises(UserError, match=words):
        GaussianMixture(**{**GOOD, **change})


def test_wrong_shapes_and_impossible_marginals_are_refused():
    gaussian = Gaussian(mean=(0.0, 0.0), stds=(1.0, 2.0))
    with pytest.raises(UserError, match=r"\(4, 3\)"):
        gaussian.score(np.zeros((4, 3)))
    with pytest.raises(UserError, match="not all finite"):
        bed_a().flow(np.full((4, 2), np.nan), (0, 1), (1, 0))
    with pytest.raises(UserError, match="one must be > 0"):
        gaussian.flow(np.zeros((4, 2)), (0, 0), (1, 0))
    with pytest.raises(UserError, match="label 7"):
        bed_a(CLASSES).given(7)
    with pytest.raises(UserError, match="inner < outer"):
        pinwheel(inner=2.0)
