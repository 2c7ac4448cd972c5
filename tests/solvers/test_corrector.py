"""Langevin correctors: what they leave unchanged and restore, coupling, factors, NFE, mistakes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.diffusion import VE, FlowMatching, SubVP, VPLinear
from scorediff.errors import UserError
from scorediff.solvers import ddim, logsnr, make_grid, sample_keys
from scorediff.solvers.corrector import alpha_ratio, langevin
from scorediff.solvers.sample import Point, run
from tests.oracles import bed_b

BED = bed_b()
BATCH, DIM = 256, 16


@partial(jax.jit, static_argnames=("rule", "coupled"))
def corrected(x, repeats, factor=1.0, *, rule="norms", coupled=False):
    """Repeats of the corrector on x [b, 16] at the time where alpha = sigma, under sub-VP."""
    t, at = sub_vp_middle()

    def denoise(x, t, cond=None):
        return BED.x0_hat(x, at.alpha, at.sigma)

    adjust = langevin(denoise, snr=0.1, rule=rule, coupled=coupled, factor=lambda point: factor)

    def once(k, x):
        keys = sample_keys(jax.random.fold_in(jax.random.key(1), k), jnp.arange(x.shape[0]))
        return adjust(Point(x, t, at.alpha, at.sigma, k), keys)

    return jax.lax.fori_loop(0, repeats, once, x)


def sub_vp_middle():
    t = SubVP().host_when([1.0], [1.0])
    return jnp.float32(t[0]), jax.tree.map(lambda leaf: jnp.float32(leaf[0]), SubVP().host(t))


def whitened_square(x, at):
    """Mean over samples and directions of x's squared deviation, in units of the true variance."""
    parts = BED.components
    y = (np.asarray(x) - float(at.alpha) * parts.means[0]) @ parts.axes[0]
    return np.mean(y**2 / (float(at.alpha) ** 2 * parts.stds[0] ** 2 + float(at.sigma) ** 2))


def marginal_samples(at, spread=1.0):
    parts, rng = BED.components, np.random.default_rng(0)
    std = spread * np.sqrt(float(at.alpha) ** 2 * parts.stds[0] ** 2 + float(at.sigma) ** 2)
    y = rng.standard_normal((BATCH, DIM)) * std
    return jnp.asarray(float(at.alpha) * parts.means[0] + y @ parts.axes[0].T, jnp.float32)


def test_langevin_keeps_the_marginal_and_restores_it():
    _, at = sub_vp_middle()
    wide = corrected(marginal_samples(at, spread=1.5), 120, rule="annealed")
    for start in (corrected(marginal_samples(at), 120, rule="annealed"), wide):
        # three times sqrt(2 / 4096), and 0.01 for the step size
        assert abs(whitened_square(start, at) - 1) < 0.076


@pytest.mark.slow
def test_langevin_with_norms_is_too_wide_by_four_over_the_dimension():
    """epsilon ~ |z|^2 / |score|^2 depends on both, each of which adds 2 / dim to the variance.

    The stationary density of equation (1) is then p |score|^2, and the noise's covariance E[|z|^2 z
    z^T] / dim = 1 + 2 / dim.
    """
    _, at = sub_vp_middle()
    found = whitened_square(corrected(marginal_samples(at), 120), at)
    assert abs(found - (1 + 2 / DIM) ** 2) < 0.076
    together = whitened_square(corrected(marginal_samples(at), 120, coupled=True), at)
    assert abs(together - 1) < 0.076


def test_langevin_samples_are_coupled_only_on_request():
    _, at = sub_vp_middle()
    x = marginal_samples(at)
    others = x.at[3:].multiply(3.0)
    alone, together = (
        [corrected(y, 1, coupled=coupled)[:3] for y in (x, others)] for coupled in (False, True)
    )
    np.testing.assert_allclose(*alone, rtol=1e-6, atol=1e-6)
    assert not np.allclose(*together, atol=1e-3)
    assert np.allclose(corrected(x, 1, 0.0), x)  # the factor scales the step


def test_predictor_corrector_on_sub_vp():
    """The corrector repairs a wrong start, which the predictor would keep; it counts as NFE."""
    process = SubVP()
    start, end = process.host_when(np.exp([-3.0, 1.0]), np.ones(2))
    grid = make_grid(process, logsnr, 12, to_data=False, t_start=start, t_end=end)
    table = ddim(grid)
    first, at = grid.nodes[0], grid.nodes[-1]
    x = marginal_samples(first, spread=1.5)
    keys = sample_keys(jax.random.key(0), jnp.arange(BATCH))
    denoise = BED.denoiser(process)

    corrector = langevin(denoise, snr=0.2, steps=2, rule="annealed", factor=alpha_ratio(process))

    @partial(jax.jit, static_argnames="adjust")
    def outcome(x, adjust):
        return run(denoise, table, x, keys=keys, adjust=adjust)[:2]

    off = []
    for adjust, nfe in ((None, 12), (corrector, 36)):
        samples, counted = outcome(x, adjust)
        assert float(counted) == nfe
        off.append(abs(whitened_square(samples, at) - 1))
    assert off[1] < 0.3 * off[0], off


def test_alpha_ratio():
    def at(process, t):
        return float(alpha_ratio(process)(Point(None, jnp.asarray(t), None, None, None)))

    vp = VPLinear()
    beta = (vp.beta_min + 0.5 * (vp.beta_max - vp.beta_min)) / 1000
    assert np.isclose(at(vp, 0.5), 1 - beta, atol=1e-4)
    assert np.isclose(at(SubVP(), 0.5), at(vp, 0.5))
    assert at(VE(), 0.5) == 1.0
    assert at(FlowMatching(), 1.0) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "ula"}, "norms or annealed, got 'ula'"),
        ({"steps": 0}, "at least 1, got 0"),
        ({"rule": "annealed", "coupled": True}, "coupled needs"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        langevin(None, **options)
