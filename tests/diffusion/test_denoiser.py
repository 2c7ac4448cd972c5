"""The denoiser, its loss and conditions against exact answers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from scorediff.data.toy import Gaussian
from scorediff.diffusion import (
    EDM,
    Denoiser,
    DenoisingLoss,
    FlowMatching,
    TimeSampler,
    VPLinear,
    target,
    weighting,
)
from scorediff.diffusion.denoiser import log_noise, unit_variance
from scorediff.types import Draws

GAUSSIAN = Gaussian(mean=(0.4, -0.3), stds=(0.7, 0.2))


class Perfect(nn.Module):
    """Says, in the space of a target, what the exact denoiser says; ignores its noise input."""

    process: object
    target: object
    scale_in: object

    @nn.compact
    def __call__(self, x, noise, cond, *, train=False):
        bias = self.param("bias", nn.initializers.zeros, ())
        t = jnp.exp(noise)  # the tests tell the network log t
        m = self.process(t).expand(x)
        x = x / self.scale_in(m)
        x0_hat = GAUSSIAN.x0_hat(x, m.alpha[:, 0], m.sigma[:, 0])
        eps_hat = (x - m.alpha * x0_hat) / m.sigma
        a, b = self.target(m)
        return a * x0_hat + b * eps_hat + bias


def log_time(t, m):
    return jnp.log(t)


def ones(m):
    return jnp.ones_like(m.alpha)


def perfect(process, row, scale_in=ones):
    network = Perfect(process=process, target=row, scale_in=scale_in)
    return Denoiser(
        network=network, process=process, target=row, scale_in=scale_in, noise_in=log_time
    )


TARGETS = (target.x0, target.eps, target.score, target.v, target.velocity, target.edm())


@pytest.mark.parametrize("process", [VPLinear(), EDM(), FlowMatching()])
def test_every_target_gives_the_same_denoiser(process):
    x = jax.random.normal(jax.random.key(0), (8, 2))
    t = process.t_min + (process.t_max - process.t_min) * jnp.linspace(0.1, 0.9, 8)
    m = process(t)
    exact = GAUSSIAN.x0_hat(x, m.alpha, m.sigma)
    for row in TARGETS:
        for scale in (ones, partial(unit_variance, sigma_data=0.6)):
            denoiser = perfect(process, row, scale)
            params = denoiser.init(jax.random.key(1), x)
            np.testing.assert_allclose(denoiser.bind(params)(x, t), exact, rtol=2e-3, atol=2e-3)


def test_a_scalar_time_is_one_for_all():
    denoiser = perfect(VPLinear(), target.eps)
    x = jax.random.normal(jax.random.key(0), (4, 2))
    denoise = denoiser.bind(denoiser.init(jax.random.key(1), x))
    np.testing.assert_array_equal(
        denoise(x, jnp.asarray(0.3)), denoise(x, jnp.full((4,), 0.3, jnp.float32))
    )


def test_edm_conventions_are_the_papers():
    sigma = jnp.array([0.01, 0.5, 30.0])
    m = EDM()(sigma)
    np.testing.assert_allclose(unit_variance(m), 1 / np.sqrt(sigma**2 + 0.25), rtol=1e-6)
    np.testing.assert_allclose(log_noise(sigma, m), np.log(sigma) / 4, rtol=1e-5)


def loss_of(row, weigh, process=None, **options):
    process = process or VPLinear()
    denoiser = perfect(process, row)
    options.setdefault("times", TimeSampler(u="independent"))
    loss = DenoisingLoss(
        denoiser=denoiser, to_x0=lambda batch: batch["x0"], weighting=weigh, **options
    )
    return loss, denoiser.init(jax.random.key(1), jnp.zeros((1, 2)))


def batch_of(n):
    return {"x0": GAUSSIAN.sample(jax.random.key(5), n)}


@pytest.mark.slow
def test_the_loss_does_not_depend_on_the_target():
    """One weighting, six networks that are the same denoiser: the same number."""
    draws, batch = Draws(jax.random.key(0), jnp.arange(256), 256), batch_of(256)
    for weigh in (weighting.eps_uniform, weighting.x0_uniform, weighting.min_snr, weighting.elbo):
        values = []
        for row in TARGETS:
            loss, params = loss_of(row, weigh)
            values.append(float(loss(params, batch, draws)[0]))
        np.testing.assert_allclose(values, values[0], rtol=5e-3)


def test_the_loss_of_the_exact_denoiser_is_the_posterior_variance():
    """For a Gaussian it is known: s^2 sigma^2 / (alpha^2 s^2 + sigma^2) along each axis."""
    n = 20000
    loss, params = loss_of(target.eps, weighting.x0_uniform)
    found = loss(params, batch_of(n), Draws(jax.random.key(3), jnp.arange(n), n))[0]
    m = VPLinear().host(np.linspace(1e-3, 1, 4001))
    s2 = np.array([0.7, 0.2])[:, None] ** 2
    variance = s2 * m.sigma**2 / (m.alpha**2 * s2 + m.sigma**2)
    # 2 n draws of about unit kurtosis: 2 % is four standard errors
    np.testing.assert_allclose(found, variance.mean(), rtol=0.02)


def test_the_exact_denoiser_minimises_the_loss():
    n = 4000
    loss, params = loss_of(target.v, weighting.velocity_uniform, process=FlowMatching())
    draws, batch = Draws(jax.random.key(3), jnp.arange(n), n), batch_of(n)

    def at(bias):
        return float(loss({"bias": jnp.asarray(bias)}, batch, draws)[0])

    assert at(0.0) < at(0.1) and at(0.0) < at(-0.1)
    assert set(params) == {"bias"}


def test_conditions_are_dropped_at_the_rate_asked_for():
    n = 4000
    loss, _ = loss_of(
        target.eps,
        weighting.eps_uniform,
        cond_keys=("label",),
        null_cond={"label": 7},
        drop_rate=0.25,
    )
    batch = {"label": jnp.arange(n, dtype=jnp.int32) % 7}
    cond = loss.condition(batch, Draws(jax.random.key(0), jnp.arange(n), n))
    dropped = np.asarray(cond["label"] == 7)
    np.testing.assert_allclose(dropped.mean(), 0.25, atol=4 * np.sqrt(0.25 * 0.75 / n))
    np.testing.assert_array_equal(cond["label"][~dropped], batch["label"][~dropped])
    assert cond["label"].dtype == jnp.int32


@pytest.mark.parametrize("options", [{"drop_rate": 1.5}, {"cond_keys": ("y",), "drop_rate": 0.1}])
def test_mistakes_are_named(options):
    with pytest.raises(ValueError, match=r"1\.5|y"):
        loss_of(target.eps, weighting.eps_uniform, **options)
