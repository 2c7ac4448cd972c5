"""The shared parts of the networks against NumPy, written from the formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models.blocks import (
    ACTIVATIONS,
    AttentionBlock,
    ResBlock,
    checkpointed,
    conv3,
    group_count,
    group_norm,
)
from scorediff.models.resample import upsample

RNG = np.random.default_rng(0)


def silu(x):
    return x / (1 + np.exp(-x))


def numpy_group_norm(x, params, groups):
    b, h, w, c = x.shape
    grouped = x.reshape(b, h * w, groups, c // groups)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    variance = ((grouped - mean) ** 2).mean(axis=(1, 3), keepdims=True)
    y = ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    return y * params["scale"] + params["bias"]


def numpy_conv(x, params, stride=1):
    """3 x 3 correlation, pixel by pixel; stride 2 pads bottom and right, stride 1 all sides."""
    b, h, w, _ = x.shape
    before = 1 if stride == 1 else 0
    padded = np.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    y = np.zeros((b, h // stride, w // stride, params["kernel"].shape[-1]))
    for i in range(h // stride):
        for j in range(w // stride):
            window = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            y[:, i, j] = np.tensordot(window, params["kernel"], 3)
    return y + params["bias"]


def randomised(module, *inputs):
    """The module's parameters, all normal numbers in float64: nothing starts at zero."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda l: 0.5 * RNG.normal(size=l.shape), shapes)


def test_group_norm_keeps_its_digits_beside_a_large_mean():
    x = 1000 + RNG.normal(size=(2, 4, 4, 8))
    norm = group_norm(8, "float32", "norm")
    y = norm.apply(norm.init(jax.random.key(0), jnp.zeros((1, 1, 1, 8))), jnp.asarray(x, "float32"))
    want = numpy_group_norm(x, {"scale": 1.0, "bias": 0.0}, group_count(8))
    np.testing.assert_allclose(y, want, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 6, 32, 48, 100, 128, 320, 1152])
def test_group_count_divides_and_is_at_most_32(channels):
    groups = group_count(channels)
    assert channels % groups == 0 and groups <= 32
    assert groups == 1 or channels // groups >= 4
    assert groups == 32 or channels < 128 or channels % 32  # DDPM's 32 where they fit


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_equals_numpy(x64, stride):
    x = RNG.normal(size=(2, 4, 6, 3))
    conv = conv3(5, "float64", "conv", stride)
    params = randomised(conv, x)
    want = numpy_conv(x, params["params"], stride)
    np.testing.assert_allclose(conv.apply(params, x), want, atol=1e-12)


def test_upsample_repeats_every_pixel():
    x = RNG.normal(size=(2, 3, 2, 4))
    want = np.kron(x, np.ones((1, 2, 2, 1)))
    np.testing.assert_allclose(upsample(jnp.asarray(x)), want, rtol=1e-6)


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("features", [8, 12])
def test_residual_block_equals_numpy(x64, scale_shift, features):
    x, c = RNG.normal(size=(2, 4, 4, 8)), RNG.normal(size=(2, 6))
    block = ResBlock(features=features, scale_shift=scale_shift, dtype="float64")
    params = randomised(block, x, c)
    p = params["params"]
    h = numpy_conv(silu(numpy_group_norm(x, p["norm_in"], 2)), p["conv_in"])
    condition = (c @ p["condition"]["kernel"] + p["condition"]["bias"])[:, None, None]
    if scale_shift:
        scale, shift = condition[..., :features], condition[..., features:]
        h = numpy_group_norm(h, p["norm_out"], features // 4) * (1 + scale) + shift
    else:
        h = numpy_group_norm(h + condition, p["norm_out"], features // 4)
    h = numpy_conv(silu(h), p["conv_out"])
    assert ("shortcut" in p) == (features != 8)
    skip = x @ p["shortcut"]["kernel"] + p["shortcut"]["bias"] if features != 8 else x
    np.testing.assert_allclose(block.apply(params, x, c), skip + h, atol=1e-11)


def numpy_resampled(x, direction):
    """The mean of four pixels, or every pixel four times."""
    if direction == "up":
        return np.kron(x, np.ones((1, 2, 2, 1)))
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_block_that_resamples_changes_both_branches_after_the_first_activation(x64, direction):
    x = RNG.normal(size=(1, 4, 4, 8))
    block = ResBlock(
        features=8, act="relu", resample=direction, rescale=3.0, project=True, dtype="float64"
    )
    params = randomised(block, x, None)
    p = params["params"]
    h = np.maximum(numpy_group_norm(x, p["norm_in"], 2), 0)
    h = numpy_conv(numpy_resampled(h, direction), p["conv_in"])
    h = numpy_conv(np.maximum(numpy_group_norm(h, p["norm_out"], 2), 0), p["conv_out"])
    skip = numpy_resampled(x, direction) @ p["shortcut"]["kernel"] + p["shortcut"]["bias"]
    np.testing.assert_allclose(block.apply(params, x, None), (skip + h) / 3, atol=1e-11)


@pytest.mark.parametrize("normalise", [False, True])
def test_attention_block_equals_numpy(x64, normalise):
    x = RNG.normal(size=(1, 2, 3, 8))
    block = AttentionBlock(
        heads=2, groups=4, epsilon=1e-6, normalise=normalise, rescale=2.0, dtype="float64"
    )
    params = randomised(block, x)
    p = params["params"]["attention"]
    h = numpy_group_norm(x, params["params"]["norm"], 4) if normalise else x
    qkv = (h.reshape(6, 8) @ p["qkv"]["kernel"] + p["qkv"]["bias"]).reshape(6, 3, 2, 4)
    heads = []
    for q, k, v in np.moveaxis(qkv, 2, 0).transpose(0, 2, 1, 3):
        weights = np.exp(q @ k.T / 2)  # the root of a head's width, 4
        heads.append(weights / weights.sum(axis=1, keepdims=True) @ v)
    h = np.concatenate(heads, axis=1) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(block.apply(params, x), (x + h.reshape(x.shape)) / 2, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("silu", silu),
        ("gelu", lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))),
        ("relu", lambda x: np.maximum(x, 0)),
        ("mish", lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    ],
)
def test_activations_equal_their_formulas(x64, name, formula):
    x = np.linspace(-4, 4, 33)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), formula(x), atol=1e-12)


def test_residual_and_attention_blocks_start_as_the_identity():
    x, c = jnp.asarray(RNG.normal(size=(2, 4, 4, 8)), jnp.float32), jnp.ones((2, 6))
    for block, inputs in ((ResBlock(features=8), (x, c)), (AttentionBlock(heads=2), (x,))):
        y, _ = jax.jit(block.init_with_output)(jax.random.key(0), *inputs)
        np.testing.assert_array_equal(y, x)


def test_attention_block_moves_with_the_image():
    # Attention has no positions here: shifting the image cyclically shifts the answer
    x = RNG.normal(size=(1, 4, 4, 8)).astype(np.float32)
    block = AttentionBlock(heads=2)
    params = jax.tree.map(jnp.float32, randomised(block, x))
    shifted = block.apply(params, np.roll(x, (1, 2), axis=(1, 2)))
    np.testing.assert_allclose(
        shifted, np.roll(block.apply(params, x), (1, 2), axis=(1, 2)), atol=1e-5
    )


def test_dropout_acts_in_training_only_and_depends_on_its_key():
    x, c = jnp.asarray(RNG.normal(size=(2, 4, 4, 8)), jnp.float32), jnp.ones((2, 6))
    params = jax.tree.map(jnp.float32, randomised(ResBlock(features=8), x, c))

    def apply(rate, train, seed=0):
        block = ResBlock(features=8, dropout=rate, train=train)
        return block.apply(params, x, c, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(apply(0.5, False), apply(0.0, True))
    assert jnp.abs(apply(0.5, True) - apply(0.0, True)).max() > 0.1
    assert jnp.abs(apply(0.5, True, 1) - apply(0.5, True, 2)).max() > 0.1


@pytest.mark.slow
def test_dropout_keeps_the_mean():
    # The block is linear after its dropout, so its mean over masks is its answer without them
    x, c = jnp.asarray(RNG.normal(size=(1, 2, 2, 4)), jnp.float32), jnp.ones((1, 6))
    params = jax.tree.map(jnp.float32, randomised(ResBlock(features=4), x, c))
    block = ResBlock(features=4, dropout=0.3, train=True)
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = jax.vmap(lambda key: block.apply(params, x, c, rngs={"dropout": key}))(keys)
    error = draws.std(axis=0) / np.sqrt(len(keys))
    want = ResBlock(features=4).apply(params, x, c)
    assert (jnp.abs(draws.mean(axis=0) - want) < 5 * error).all()


def kept_bytes(block, *inputs):
    """The size of what the forward pass keeps for the backward pass, parameters included."""
    params = jax.eval_shape(block.init, jax.random.key(0), *inputs)

    def backward(params, inputs):
        return jax.vjp(lambda p, x: block.apply(p, *x), params, inputs)[1]

    kept = jax.tree.leaves(jax.eval_shape(backward, params, inputs))
    return sum(l.size * l.dtype.itemsize for l in kept)


def test_checkpointing_keeps_less_for_the_backward_pass():
    x, c = jnp.zeros((4, 8, 8, 16)), jnp.zeros((4, 8))
    none, products, full = (
        kept_bytes(checkpointed(ResBlock, remat)(features=16), x, c)
        for remat in ("none", "products", "full")
    )
    activation = x.size * 4
    assert none >= products + 3 * activation
    assert products >= full + activation


def test_bfloat16_block_has_float32_parameters_and_bfloat16_activations():
    x, c = jnp.zeros((1, 4, 4, 8), jnp.bfloat16), jnp.zeros((1, 6))
    block = ResBlock(features=12, dtype="bfloat16")
    y, params = jax.eval_shape(block.init_with_output, jax.random.key(0), x, c)
    assert y.dtype == jnp.bfloat16
    assert {l.dtype for l in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_bfloat16_normalisation_takes_its_statistics_in_float32():
    # The mean of 4096 numbers, summed in bfloat16, would stop growing at 256
    x = jnp.asarray(1 + RNG.normal(size=(1, 64, 64, 4)), jnp.bfloat16)
    norm = group_norm(4, "bfloat16", "norm")
    y = norm.apply(norm.init(jax.random.key(0), x), x)
    want = numpy_group_norm(np.asarray(x, np.float64), {"scale": 1.0, "bias": 0.0}, 1)
    np.testing.assert_allclose(np.asarray(y, np.float64), want, atol=0.02)


def test_an_attention_kernel_that_cannot_run_is_refused():
    if jax.devices()[0].platform == "gpu":
        pytest.skip("here it may run")
    with pytest.raises(UserError, match='"cudnn" cannot run'):
        AttentionBlock(heads=1, kernel="cudnn").init(jax.random.key(0), jnp.zeros((1, 2, 2, 8)))
