"""U-ViT: published sizes, the network layer by layer against NumPy, what it refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models.uvit import UViT

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

RNG = np.random.default_rng(0)
LATENTS = {"image_size": 32, "patch_size": 2, "in_channels": 4}
SMALL = {"image_size": 4, "width": 8, "depth": 5, "heads": 2}


def shapes(network, x, cond=None):
    return jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(x.shape[0]), cond)["params"]


@pytest.mark.parametrize(
    ("fields", "millions"),
    # arXiv 2209.12152, tables 1 (CIFAR-10, ImageNet 64, 256, 256) and 4 (text on MS-COCO)
    [
        ({"in_channels": 3, "width": 512, "depth": 12, "heads": 8}, 44),
        (
            {
                "image_size": 64,
                "patch_size": 4,
                "in_channels": 3,
                "num_classes": 1000,
                "width": 768,
                "depth": 16,
                "heads": 12,
            },
            131,
        ),
        ({"width": 1024, "depth": 20, "heads": 16, "num_classes": 1000}, 287),
        ({"width": 1152, "depth": 28, "heads": 16, "num_classes": 1000}, 501),
        ({"width": 512, "depth": 12, "heads": 8, "text_tokens": 77}, 45),
        ({"width": 512, "depth": 16, "heads": 8, "text_tokens": 77}, 58),
    ],
)
def test_paper_sizes_have_the_published_number_of_parameters(fields, millions):
    network = UViT(**LATENTS | fields)
    x = jnp.zeros((1, network.image_size, network.image_size, network.in_channels))
    params = shapes(network, x, {"text": jnp.zeros((1, 77, 768))})
    assert round(sum(math.prod(l.shape) for l in jax.tree.leaves(params)) / 1e6) == millions


def dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0.0)


def normalise(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def numpy_block(x, skip, p, heads):
    """A layer of the paper's figure 1 for one sample: tokens [n, d], pre-normalised."""
    if skip is not None:
        x = dense(np.concatenate([x, skip], 1), p["skip"])
    qkv = dense(normalise(x, p["norm_attention"]), p["attention"]["qkv"])
    parts = []
    for q, k, v in qkv.reshape(len(x), 3, heads, -1).transpose(2, 1, 0, 3):
        weight = np.exp(q @ k.T / np.sqrt(q.shape[1]))
        parts.append(weight / weight.sum(1, keepdims=True) @ v)
    x = x + dense(np.concatenate(parts, 1), p["attention"]["out"])
    h = dense(normalise(x, p["norm_mlp"]), p["mlp_in"])
    h = h / 2 * (1 + np.vectorize(math.erf)(h / np.sqrt(2)))
    return x + dense(h, p["mlp_out"])


def numpy_tokens(x, noise, label, p, network):
    """Class, noise level, patches, and where each of them stands."""
    d = network.width
    phase = noise * 10_000.0 ** (-np.arange(d // 2) / (d // 2))
    time = np.concatenate([np.cos(phase), np.sin(phase)])
    time = dense(silu(dense(time, p["noise_in"])), p["noise_out"])
    size, side = network.patch_size, network.image_size // network.patch_size
    patches = [
        dense(x[i * size : (i + 1) * size, j * size : (j + 1) * size].reshape(-1), p["patch_in"])
        for i in range(side)
        for j in range(side)
    ]
    return np.stack([p["label"]["embedding"][label], time, *patches]) + p["positions"]


def numpy_uvit(x, noise, label, p, network):
    """The whole network without its last convolution, for one image [h, w, c]."""
    tokens, skips = numpy_tokens(x, noise, label, p, network), []
    layer = [jax.tree.map(lambda l, i=i: l[i], p["down"]) for i in range(network.depth // 2)]
    for one in layer:
        tokens = numpy_block(tokens, None, one, network.heads)
        skips.append(tokens)
    tokens = numpy_block(tokens, None, p["middle"], network.heads)
    for i in range(network.depth // 2):
        one = jax.tree.map(lambda l, i=i: l[i], p["up"])
        tokens = numpy_block(tokens, skips.pop(), one, network.heads)
    patches = dense(normalise(tokens, p["norm_out"])[2:], p["patch_out"])
    side, size = network.image_size // network.patch_size, network.patch_size
    patches = patches.reshape(side, side, size, size, -1)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in patches], axis=0)


def test_network_equals_numpy_layer_by_layer(x64):
    network = UViT(
        **SMALL, num_classes=2, noise_mlp=True, qkv_bias=True, smooth=False, dtype="float64"
    )
    x, noise, label = RNG.normal(size=(2, 4, 4, 3)), np.array([0.3, 41.0]), np.array([1, 2])
    params = jax.tree.map(lambda l: 0.5 * RNG.normal(size=l.shape), shapes(network, x))
    got = jax.jit(network.apply)({"params": params}, x, noise, {"label": label})
    for i in range(2):
        want = numpy_uvit(x[i], noise[i], label[i], params, network)
        np.testing.assert_allclose(got[i], want, atol=1e-10)


@pytest.mark.slow
def test_no_label_is_the_null_class():
    network = UViT(**SMALL, num_classes=2)
    x = jnp.asarray(RNG.normal(size=(1, 4, 4, 1)), jnp.float32)
    params = jax.tree.map(
        lambda l: jnp.asarray(0.5 * RNG.normal(size=l.shape), l.dtype), shapes(network, x)
    )
    apply = jax.jit(lambda label: network.apply({"params": params}, x, jnp.ones(1), label))
    null = apply({"label": jnp.array([2])})
    np.testing.assert_allclose(apply(None), null, rtol=1e-5, atol=1e-5)
    assert np.abs(apply({"label": jnp.array([1])}) - null).max() > 1e-3


def test_without_skips_there_are_no_matrices_for_them():
    x = jnp.zeros((1, 4, 4, 1))
    assert "skip" in shapes(UViT(**SMALL), x)["up"]
    assert "skip" not in shapes(UViT(**SMALL, skips=False), x)["up"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 1}, "depth of 2 or more.*depth=1"),
        ({"image_size": 5}, "divisible by patch_size.*image_size=5, patch_size=2"),
        ({"width": 10}, "width must be divisible by 4 and by heads=2, got 10"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive, got 0.0"),
        ({"text_tokens": 0}, "text_tokens must be at least 1, got 0"),
        ({"dtype": "bf16"}, "UViT.dtype must be one of .*got 'bf16'"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        UViT(**SMALL | fields)


@pytest.mark.parametrize(
    ("shape", "cond", "message"),
    [
        ((1, 4, 6, 1), None, r"takes images of 4 x 4 \(UViT.image_size\), got 4 x 6"),
        ((1, 4, 4, 1), None, r'UViT needs cond\["text"\]'),
        ((1, 4, 4, 1), {"text": jnp.zeros((1, 3, 7))}, "of 6 features, got shape"),
        ((1, 4, 4, 1), {"text": jnp.zeros((1, 4, 6))}, "of 3 tokens, got"),
    ],
)
def test_what_does_not_fit_is_refused(shape, cond, message):
    network = UViT(**SMALL, text_tokens=3, text_features=6)
    with pytest.raises(UserError, match=message):
        shapes(network, jnp.zeros(shape), cond)
