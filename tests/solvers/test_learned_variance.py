"""Ancestral sampling with a variance between the two tables, and the networks that learn it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from scorediff.counting import counted
from scorediff.diffusion import (
    Denoiser,
    DenoisingLoss,
    FlowMatching,
    VPDiscrete,
    VPLinear,
    linear_betas,
)
from scorediff.diffusion.guidance import classifier_free, classifier_free_variance
from scorediff.errors import UserError
from scorediff.solvers import make_grid, sample, sample_keys, sample_prior, uniform
from scorediff.solvers.grid import Grid, nodes_at
from scorediff.solvers.learned_variance import (
    VarianceTables,
    learned_variance,
    run_learned_variance,
)
from scorediff.solvers.table import without_last_noise
from tests.oracles import bed_a

N = 16
KEYS = sample_keys(jax.random.key(0), jnp.arange(N))


def with_variance(denoise, v):
    return lambda x, t, cond=None: (denoise(x, t, cond), jnp.broadcast_to(v, x.shape))


@pytest.mark.parametrize("process", [VPLinear(), FlowMatching()])
def test_the_ends_are_the_two_tables(process):
    """v = 0 and v = 1 give the samples of `ancestral`, from the same keys, to rounding."""
    denoise = bed_a().denoiser(process)

    @jax.jit
    def run(tables, v, x):
        return run_learned_variance(with_variance(denoise, v), tables, x, keys=KEYS)

    plain = jax.jit(lambda table, x: sample(denoise, table, x, keys=KEYS))
    for to_data in (True, False):
        tables = learned_variance(make_grid(process, uniform, 6, to_data=to_data))
        x = sample_prior(tables.small, KEYS, (2,))
        for v, table in ((0.0, tables.small), (1.0, tables.large)):
            out = run(tables, jnp.asarray(v), x)
            np.testing.assert_allclose(out.x, plain(table, x), rtol=1e-5, atol=1e-6)
            assert float(out.nfe) == 6


def test_between_them_it_is_the_papers_variance(x64):
    """exp(v log beta + (1 - v) log beta~) of the discrete chain, element by element."""
    betas = np.array(linear_betas(num=50, end=0.3))
    process, i = VPDiscrete(betas=tuple(betas)), 30
    before, after = np.prod(1 - betas[: i + 1]), np.prod(1 - betas[:i])
    posterior = betas[i] * (1 - after) / (1 - before)
    nodes = nodes_at(process, np.array([i + 1, i]) / 50)
    tables = learned_variance(Grid(process=process, nodes=nodes))

    x = jax.random.normal(jax.random.key(1), (N, 3), jnp.float64)
    v = jax.random.uniform(jax.random.key(2), (N, 3), jnp.float64, -0.2, 1.2)
    denoise = with_variance(lambda x, t, cond: 0.3 * x, v)
    ones = lambda keys, stream, over, x: jnp.ones_like(x)  # noqa: E731
    run = partial(run_learned_variance, denoise, x=x, keys=KEYS, noise=ones)
    quiet = VarianceTables(*map(without_last_noise, tables))
    found = run(tables=tables).x - run(tables=quiet).x
    wanted = np.exp(v * np.log(betas[i]) + (1 - v) * np.log(posterior))
    np.testing.assert_allclose(np.square(found), wanted, rtol=1e-9)


class Doubled(nn.Module):
    """A prediction, and as much again for the variance, both of the label."""

    doubled: bool = True

    @nn.compact
    def __call__(self, x, noise, cond, *, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        label = cond["label"].reshape(-1, *[1] * (x.ndim - 1))
        y = scale * jnp.tanh(x + label)
        return jnp.concatenate([y, jnp.sin(x) * label], axis=-1) if self.doubled else y


def denoisers():
    process = VPLinear()
    learned = Denoiser(network=Doubled(), process=process, learned_variance=True)
    return learned, Denoiser(network=Doubled(doubled=False), process=process)


COND = {"label": jnp.arange(N) % 2 + 1}
X = jax.random.normal(jax.random.key(3), (N, 2, 2, 3))
PARAMS = {"scale": jnp.asarray(1.5)}
T = jnp.asarray(0.5)


def test_half_of_the_channels_is_the_prediction():
    learned, plain = denoisers()
    expected = jax.jit(plain.bind(PARAMS))(X, T, COND)
    np.testing.assert_allclose(jax.jit(learned.bind(PARAMS))(X, T, COND), expected, rtol=1e-6)
    x0_hat, v = jax.jit(learned.bind_variance(PARAMS))(X, T, COND)
    np.testing.assert_allclose(x0_hat, expected, rtol=1e-6)
    label = np.asarray(COND["label"]).reshape(N, 1, 1, 1)
    np.testing.assert_allclose(v, (np.sin(X) * label + 1) / 2, rtol=1e-5, atol=1e-6)


def test_guidance_leaves_the_variance_alone():
    denoise = denoisers()[0].bind_variance(PARAMS)
    options = {"null_cond": {"label": 0}, "scale": 3.0}
    guided = classifier_free_variance(denoise, **options)
    (x0_hat, v), count = jax.jit(lambda: counted(lambda: guided(X, T, COND), batch=N))()
    plain = classifier_free(lambda *args: denoise(*args)[0], **options)
    np.testing.assert_allclose(x0_hat, jax.jit(plain)(X, T, COND), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(v, jax.jit(denoise)(X, T, COND)[1], rtol=1e-5, atol=1e-6)
    assert count == 2
    assert classifier_free_variance(denoise, null_cond={}, scale=1) is denoise


def test_mistakes_are_named():
    learned, plain = denoisers()
    wrong = Denoiser(network=Doubled(), process=VPLinear())
    with pytest.raises(UserError, match=r"learned_variance=False.*3 channels.*6"):
        jax.eval_shape(wrong.bind(PARAMS), X, T, COND)
    wrong = Denoiser(network=Doubled(doubled=False), process=VPLinear(), learned_variance=True)
    with pytest.raises(UserError, match=r"learned_variance=True.*6 channels.*3"):
        jax.eval_shape(wrong.bind(PARAMS), X, T, COND)
    with pytest.raises(UserError, match="learned_variance=True"):
        plain.bind_variance(PARAMS)
    with pytest.raises(UserError, match="learned_variance=False"):
        DenoisingLoss(denoiser=learned, to_x0=lambda batch: batch["x0"])(PARAMS, {}, None)
