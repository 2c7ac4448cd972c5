"""Inverse problems against the exact posterior of a Gaussian mixture under a linear measurement."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.counting import record
from scorediff.data.toy import Gaussian, GaussianMixture
from scorediff.diffusion import EDM, FlowMatching, VPLinear
from scorediff.errors import UserError
from scorediff.solvers import (
    ancestral,
    ddim,
    dpmpp_multistep,
    heun,
    karras,
    logsnr,
    make_grid,
    sample_keys,
    sample_prior,
    uniform,
)
from scorediff.solvers.inverse import (
    BlockAverage,
    Dense,
    Grey,
    Inpainting,
    ddrm,
    dps,
    dps_steps,
    invert,
    pigdm,
    repaint,
    replacement,
    sdedit,
    unit_data,
)
from scorediff.solvers.likelihood import no_noise
from scorediff.solvers.moments import transport
from scorediff.solvers.sample import run
from scorediff.solvers.table import NOISE, StepTable
from tests.oracles import tuples
from tests.solvers.posterior_oracle import energy_distance, given_noisy, posterior, prior_of

N = 1000
PROCESS = EDM(t_max=20.0)


def rotation(seed):
    return tuples(np.linalg.qr(np.random.default_rng(seed).standard_normal((4, 4)))[0])


MIXTURE = GaussianMixture(
    weights=(0.5, 0.3, 0.2),
    means=((1.0, 0.6, -0.4, 0.2), (-0.8, 0.2, 0.9, -0.5), (0.1, -1.0, -0.3, 0.8)),
    stds=((0.3, 0.2, 0.4, 0.25), (0.25, 0.4, 0.2, 0.3), (0.35, 0.3, 0.3, 0.2)),
    axes=tuple(map(rotation, range(3))),
)
MATRIX = np.array([[1.0, 0.5, 0.0, -0.3], [0.2, -0.4, 0.8, 0.1]])
DENSE = Dense(shape=(4,), matrix=MATRIX)
Y = np.array([0.147, 0.124])  # leaves weights of 0.11, 0.52 and 0.37 to the three components
GRID = make_grid(PROCESS, karras, 40)


def keys_for(n=N, seed=0):
    root = jax.random.key(seed, impl="unsafe_rbg")  # compiles faster than threefry
    return sample_keys(root, jnp.arange(n))


def measured(n=N):
    return jnp.tile(jnp.asarray(Y, jnp.float32), (n, 1))


# --- operators

IMAGE_MASK = np.random.default_rng(0).integers(0, 2, (4, 6, 1))
OPERATORS = {
    "inpainting": Inpainting(shape=(4, 6, 3), mask=IMAGE_MASK),
    "grey": Grey(shape=(4, 6, 3)),
    "blocks": BlockAverage(shape=(4, 6, 3), factor=2),
    "dense": Dense(shape=(2, 2), matrix=np.vstack([MATRIX, MATRIX[:1]])),  # rank 2 of 3 rows
}
DIRECT = {
    "inpainting": lambda x: x * IMAGE_MASK,
    "grey": lambda x: x.mean(axis=-1, keepdims=True),
    "blocks": lambda x: x.reshape(-1, 2, 2, 3, 2, 3).mean(axis=(2, 4)),
    "dense": lambda x: x.reshape(len(x), 4) @ np.vstack([MATRIX, MATRIX[:1]]).T,
}


def as_matrix(function, shape):
    """[outputs, inputs] of a linear map of batches."""
    basis = np.eye(int(np.prod(shape)), dtype=np.float32).reshape(-1, *shape)
    return np.asarray(jax.jit(function)(basis)).reshape(len(basis), -1).T


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name):
    op = OPERATORS[name]
    forward = as_matrix(op.forward, op.shape)
    np.testing.assert_allclose(forward, as_matrix(DIRECT[name], op.shape), atol=1e-6)
    np.testing.assert_allclose(as_matrix(op.adjoint, op.data_shape), forward.T, atol=1e-6)
    pinv = np.linalg.pinv(forward, rcond=1e-5)
    np.testing.assert_allclose(as_matrix(op.pseudo_inverse, op.data_shape), pinv, atol=1e-5)
    np.testing.assert_allclose(as_matrix(op.project, op.shape), pinv @ forward, atol=1e-5)
    rank = len(op.singular)
    values = np.linalg.svd(forward, compute_uv=False)[:rank]
    np.testing.assert_allclose(np.sort(op.singular)[::-1], values, rtol=1e-5)
    images = as_matrix(op.image, (rank,))
    np.testing.assert_allclose(images.T @ images, np.eye(rank), atol=1e-6)
    np.testing.assert_allclose(as_matrix(op.coordinates, op.shape), images.T, atol=1e-6)


# --- formulas


@pytest.mark.parametrize("process", [VPLinear(), PROCESS], ids=["vp", "edm"])
def test_pigdm_is_exact_for_gaussian_data_and_its_posterior_variance(process):
    std, noise = 0.7, 0.15
    bed = Gaussian(mean=(0.3, -0.4, 0.1, 0.5), stds=(std,) * 4)
    x = np.random.default_rng(0).standard_normal((3, 4))
    guided = pigdm(
        bed.denoiser(process),
        DENSE,
        measured(3),
        process=process,
        noise_std=noise,
        variance=partial(unit_data, std=std),
    )
    for t in (0.05, 0.4, 0.9):
        m = process(t)
        found = guided(jnp.asarray(x, jnp.float32), jnp.asarray(t))
        exact = [
            posterior(given_noisy(prior_of(bed), row, m.alpha, m.sigma), MATRIX, Y, noise).mean
            for row in x
        ]
        np.testing.assert_allclose(found, exact, atol=2e-5)


def test_pigdm_samples_a_gaussian_posterior():
    """The whole chain: any solver, here a second-order one, and only the sampling error is left."""
    bed, noise, n = Gaussian(mean=(0.3, -0.4, 0.1, 0.5), stds=(0.7,) * 4), 0.15, 4000
    table = dpmpp_multistep(make_grid(PROCESS, logsnr, 100))
    options = {"process": PROCESS, "noise_std": noise, "variance": partial(unit_data, std=0.7)}
    guided = pigdm(bed.denoiser(PROCESS), DENSE, measured(n), **options)
    z = np.random.default_rng(0).standard_normal((n, 4)).astype(np.float32)
    out = jax.jit(lambda x: run(guided, table, x, keys=keys_for(n), noise=no_noise))(
        table.sigma[0] * z
    )
    exact = posterior(prior_of(bed), MATRIX, Y, noise)
    std = np.sqrt(np.diag(exact.covariance))
    assert np.all(np.abs(np.mean(out.x, axis=0) - exact.mean) < 4 * std / np.sqrt(n) + 0.003)
    # 4 standard errors of a covariance, and what the 100 steps are off
    bound = 4 * np.sqrt(2 / n) * np.outer(std, std) + 0.003
    assert np.all(np.abs(np.cov(np.asarray(out.x).T) - exact.covariance) < bound)
    assert out.nfe == table.nfe == 100


def test_dps_follows_the_gradient_of_its_likelihood():
    denoise, y, t = MIXTURE.denoiser(PROCESS), measured(3), jnp.asarray(0.5)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)), jnp.float32)

    def square(x):
        return jnp.sum((y - DENSE.forward(denoise(x, t))) ** 2, axis=1)

    gradient = jax.grad(lambda x: square(x).sum())(x)
    moved = dps(denoise, DENSE, y, process=PROCESS, noise_std=0.2)(x, t) - denoise(x, t)
    np.testing.assert_allclose(moved, -(0.5**2) * gradient / (2 * 0.2**2), rtol=1e-3, atol=1e-5)
    # algorithm 1: the row's result moves by the gradient over the norm
    table = ancestral(make_grid(PROCESS, karras, 5))
    k = 2
    t = jnp.asarray(table.t[k], jnp.float32)
    moved = dps_steps(denoise, DENSE, y, table=table, step=0.3)(x, t) - denoise(x, t)
    gradient = jax.grad(lambda x: square(x).sum())(x)
    step = -0.3 * gradient / jnp.sqrt(square(x))[:, None]
    np.testing.assert_allclose(table.e[k, 3] * moved, step, rtol=1e-3, atol=1e-5)


# --- samples against the exact posterior


class Case(NamedTuple):
    """A method, its table and measurement noise, and bounds on its errors.

    Measured at the seed below, with 1000 samples, are about the bounds less (0.05, 0.03, 0.05): the
    worst of 12 sets of exact draws is off by (0.05, 0.02, 0.05), so that another stream of random
    numbers passes too. None of the methods is exact on mixtures; draws of the prior are off by
    (0.2, 0.5, 0.5).
    """

    method: str
    table: StepTable
    noise: float
    mean: float  # largest error of the mean
    covariance: float  # largest error of the covariance, whose diagonal is 0.2 to 0.45
    energy: float  # energy distance


@partial(jax.jit, static_argnames=("method", "noise"))
def draw(method, noise, table, y):
    """One compilation for all tables of a method that have as many rows."""
    denoise, adjust = recording_denoise, None
    if method == "ddrm":
        return ddrm(denoise, GRID, DENSE, y, keys=keys_for(), noise_std=noise)
    if method == "replacement":
        adjust = replacement(DENSE, y, noise_std=noise)
    elif method == "pigdm":
        variance = partial(unit_data, std=0.8)
        denoise = pigdm(denoise, DENSE, y, process=PROCESS, noise_std=noise, variance=variance)
    elif method == "dps":
        denoise = dps(denoise, DENSE, y, process=PROCESS, noise_std=noise)
    else:
        denoise = dps_steps(denoise, DENSE, y, table=ancestral(GRID), step=0.1)
    x = sample_prior(table, keys_for(), (4,))
    return run(denoise, table, x, keys=keys_for(), adjust=adjust)


def recording_denoise(x, t, cond=None):
    record(x.shape[0])
    return MIXTURE.x0_hat(x, 1.0, t)


ANCESTRAL = ancestral(GRID)
REPAINT = repaint(GRID, jump=5, resamplings=5)
CASES = {
    "replacement": Case("replacement", ANCESTRAL, 0.2, 0.16, 0.13, 0.26),
    "replacement, exact y": Case("replacement", ANCESTRAL, 0.0, 0.14, 0.13, 0.26),
    "repaint, exact y": Case("replacement", REPAINT, 0.0, 0.17, 0.08, 0.25),
    "pigdm": Case("pigdm", ANCESTRAL, 0.2, 0.12, 0.12, 0.19),
    "pigdm, ODE": Case("pigdm", ddim(GRID), 0.2, 0.09, 0.13, 0.19),
    "dps": Case("dps", ANCESTRAL, 0.2, 0.2, 0.08, 0.3),
    "dps, steps of 0.1": Case("dps_steps", ANCESTRAL, 0.0, 0.16, 0.14, 0.27),
    "ddrm": Case("ddrm", ANCESTRAL, 0.2, 0.17, 0.13, 0.29),
    "ddrm, exact y": Case("ddrm", ANCESTRAL, 0.0, 0.16, 0.13, 0.27),
}
QUICK = ("replacement", "ddrm, exact y")  # the others in make test-all


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_errors_against_the_exact_posterior(name):
    case, y = CASES[name], measured()
    out = draw(case.method, case.noise, case.table, y)
    assert out.nfe == case.table.nfe
    exact = posterior(prior_of(MIXTURE), MATRIX, Y, case.noise)
    x = np.asarray(out.x if case.noise else DENSE.impose(out.x, y))
    found = (
        np.abs(x.mean(axis=0) - exact.mean).max(),
        np.abs(np.cov(x.T) - exact.covariance).max(),
        energy_distance(x, exact.sample(np.random.default_rng(1), N)),
    )
    assert np.all(np.array(found) < case[3:]), found
    missed = np.abs(DENSE.forward(out.x) - y).max()
    if name == "ddrm, exact y":
        assert missed < 1e-5
    elif case.method == "replacement" and not case.noise:
        assert missed < 0.03  # the last step estimates all of x0, from noise of 0.002
    assert np.abs(DENSE.forward(DENSE.impose(out.x, y)) - y).max() < 1e-5


def test_repaint_goes_back_up_as_the_process_does():
    """Each jump keeps the marginals, and the schedule spends what the paper's does."""
    for grid in (GRID, make_grid(VPLinear(), uniform, 23)):
        table = repaint(grid, jump=5, resamplings=3)
        seen = transport(table)
        np.testing.assert_allclose(seen.mean, table.alpha, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(seen.variance, table.sigma**2, rtol=1e-10, atol=1e-12)
        resampled = len(grid) // 5 - (len(grid) % 5 == 0)  # all full segments but the first
        assert table.nfe == len(grid) + 2 * 5 * resampled
        assert table.sigma[-1] == 0
    assert repaint(GRID, jump=5, resamplings=1).nfe == len(GRID)


# --- editing


def test_inversion_returns_to_its_start_as_steps_grow():
    bed = Gaussian(mean=(0.3, -0.2), stds=(0.8, 0.3))
    x = jnp.asarray(bed.sample_host(np.random.default_rng(0), 64)[0])
    denoise, keys, errors = bed.denoiser(PROCESS), keys_for(64), []
    for n in (60, 120):
        grid = make_grid(PROCESS, karras, n, to_data=False)

        @jax.jit
        def there_and_back(x, grid=grid):
            latent = invert(denoise, grid, x, keys=keys)
            return latent, run(denoise, ddim(grid), latent.x, keys=keys, noise=no_noise)

        latent, back = there_and_back(x)
        assert latent.nfe == back.nfe == n
        errors.append(float(np.sqrt(np.mean((back.x - x) ** 2))))
    exact = bed.flow(np.asarray(x), (1.0, PROCESS.t_min), (1.0, PROCESS.t_max))
    np.testing.assert_allclose(latent.x, exact, atol=0.1 * PROCESS.t_max)
    assert errors[0] > 1.7 * errors[1], errors  # first order halves them
    assert errors[1] < 0.05, errors


def test_sdedit_stays_near_the_guide_for_little_noise():
    guide, denoise = jnp.full((256, 4), 0.5), MIXTURE.denoiser(PROCESS)
    edit = jax.jit(lambda table: sdedit(denoise, table, guide, keys=keys_for(256)))
    distance = []
    for t in (0.02, 0.5, 10.0):
        out = edit(ddim(make_grid(PROCESS, karras, 12, t_start=t)))
        distance.append(float(jnp.linalg.norm(out.x - guide, axis=1).mean()))
        assert out.nfe == 12
    # the noise alone is 2 t long; with much of it the guide is forgotten and the prior is left
    assert distance[0] < 0.1 < distance[1] < distance[2], distance
    prior = MIXTURE.sample_host(np.random.default_rng(0), 4000)[0]
    np.testing.assert_allclose(distance[2], np.linalg.norm(prior - 0.5, axis=1).mean(), rtol=0.1)


def noisy_climb(grid):
    table = heun(grid)
    return table._replace(e=table.e + 0.1 * (np.arange(8) == NOISE))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Inpainting(shape=(4,), mask=np.array([0, 0.5, 1, 1])), r"holds 0\.5"),
        (lambda: Inpainting(shape=(4,), mask=np.ones(3)), "does not fit"),
        (lambda: Inpainting(shape=(4,), mask=np.zeros(4)), "nothing is known"),
        (lambda: BlockAverage(shape=(5, 4, 3), factor=2), "factor=2"),
        (lambda: Dense(shape=(3,), matrix=MATRIX), r"\[m, 3\]"),
        (lambda: replacement(DENSE, jnp.zeros((2, 3))), r"\[b, 2\].*\[2, 3\]"),
        (lambda: replacement(DENSE, jnp.zeros((2, 2)), noise_std=-1.0), "-1"),
        (lambda: repaint(GRID, jump=0), "jump=0"),
        (lambda: pigdm(None, DENSE, jnp.zeros((2, 4)), process=PROCESS), r"\[2, 4\]"),
        (lambda: pigdm(None, DENSE, measured(2), process=PROCESS, noise_std=-0.1), "-0.1"),
        (lambda: dps(None, DENSE, measured(2), process=PROCESS, noise_std=0.0), "dps_steps"),
        (lambda: dps_steps(None, DENSE, measured(2), table=heun(GRID)), "one evaluation"),
        (lambda: ddrm(None, GRID, DENSE, measured(2), keys=None, eta=1.5), r"1\.5"),
        (
            lambda: ddrm(
                None, make_grid(FlowMatching(), uniform, 4), DENSE, measured(2), keys=None
            ),
            "smaller t_start",
        ),
        (lambda: invert(None, GRID, None, keys=None, solver=noisy_climb), "adds noise"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(UserError, match=words):
        make()
