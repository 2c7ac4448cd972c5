"""The KL autoencoder: sizes, the bounds of its Gaussian, latents of unit scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models.autoencoder import AutoencoderKL

SIZES = {"channels": (4, 8), "blocks": 1, "latent_channels": 2, "groups": 2}
SMALL = AutoencoderKL(**SIZES)
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 4, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(SMALL.init, jax.random.key(0), X)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), s.dtype), shapes)


def test_sizes(variables):
    image, mean, logvar = jax.eval_shape(SMALL.apply, variables, X)
    assert image.shape == X.shape and mean.shape == logvar.shape == (2, 4, 2, 2)
    assert {a.dtype for a in (image, mean, logvar)} == {jnp.dtype("float32")}


def test_log_variances_are_bounded(variables):
    bias = jnp.array([1e3, -1e3, 1e3, -1e3])  # of the means, then of the log variances
    params = variables["params"] | {"quantise": variables["params"]["quantise"] | {"bias": bias}}
    apply = jax.jit(lambda p: SMALL.apply({"params": p}, X, method="encode"))
    mean, logvar = apply(params)
    np.testing.assert_array_equal(logvar, np.broadcast_to([20.0, -30.0], logvar.shape))
    assert mean[..., 0].min() > 900 and mean[..., 1].max() < -900


def test_latents_of_a_diffusion_model():
    network = AutoencoderKL(**SIZES, scale=1.5305, shift=0.0609)
    z = jnp.array([0.0609, 1.0609])
    np.testing.assert_allclose(network.to_latents(z), [0, 1.5305], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(network.from_latents(network.to_latents(z)), z, rtol=1e-6)


def test_parts_that_are_left_out():
    network = AutoencoderKL(**SIZES, middle_attention=False, quantised=False, dequantised=False)
    params = jax.eval_shape(network.init, jax.random.key(0), X)["params"]
    assert set(params) == {"encoder", "decoder"}
    assert not any("attention" in name for half in params.values() for name in half)


@pytest.mark.parametrize(
    ("method", "shape", "message"),
    [
        ("encode", (1, 7, 4, 3), "images of 7 x 4 cannot be encoded: .* divisible by 2"),
        ("encode", (1, 8, 4, 1), r"encodes images \[b, h, w, 3\], got .*\(1, 8, 4, 1\)"),
        ("decode", (1, 8, 4, 3), r"decodes latents \[b, h, w, 2\], got .*\(1, 8, 4, 3\)"),
    ],
)
def test_arrays_of_another_size_are_refused(variables, method, shape, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: SMALL.apply(variables, jnp.zeros(shape), method=method))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 0.0}, "AutoencoderKL.scale must be positive, got 0.0"),
        ({"blocks": 0}, "AutoencoderKL.blocks must be at least 1"),
        ({"remat": "some"}, "AutoencoderKL.remat must be one of"),
        ({"act": "tanh"}, "AutoencoderKL.act must be one of"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(UserError, match=message):
        AutoencoderKL(**SIZES | fields)


@pytest.mark.slow
def test_gradients_are_finite_and_checkpointing_changes_none(variables):
    def gradients(network):
        def loss(p):
            image, mean, logvar = network.apply(p, X)
            return (image**2).mean() + (mean**2).mean() + (logvar**2).mean()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(variables))

    plain = gradients(SMALL)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in plain)
    for a, b in zip(plain, gradients(SMALL.clone(remat="full")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(np.abs(a).max() + 1))


@pytest.mark.slow
def test_bfloat16_is_near_float32(variables):
    coarse = AutoencoderKL(**SIZES, dtype="bfloat16")
    for exact, near in zip(*(jax.jit(n.apply)(variables, X) for n in (SMALL, coarse)), strict=True):
        assert near.dtype == jnp.float32
        error = jnp.sqrt(((near - exact) ** 2).mean() / (exact**2).mean())
        assert 1e-5 < error < 0.05  # another arithmetic, but the same function
