"""The transformer's own architecture: published sizes, patches, layers one by one, positions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models import DiT
from scorediff.models.dit import DiTBlock
from scorediff.models.embeddings import grid_sincos
from scorediff.models.patches import patchify, stretched_positions, unpatchify

RNG = np.random.default_rng(0)


def shapes(network, shape):
    inputs = jnp.zeros(shape), jnp.zeros(shape[0]), None
    return jax.eval_shape(network.init, jax.random.key(0), *inputs)


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("depth", "width", "heads", "millions"),
    [(12, 384, 6, 33), (12, 768, 12, 130), (24, 1024, 16, 458), (28, 1152, 16, 675)],
)
def test_paper_sizes_have_the_published_number_of_parameters(depth, width, heads, millions):
    # DiT-S, B, L, XL at patch 2 on 32 x 32 x 4 latents, 1,000 classes, learned variances:
    # arXiv 2212.09748, table 4. Its positions are constants, ours are not stored at all.
    network = DiT(depth=depth, width=width, heads=heads, num_classes=1000, out_channels=8)
    assert round(size(shapes(network, (1, 32, 32, 4))) / 1e6) == millions


def test_xl_has_exactly_the_published_number_of_parameters():
    # 675,129,632 is what the paper's training code prints for DiT-XL/2, positions included
    network = DiT(
        depth=28,
        width=1152,
        heads=16,
        num_classes=1000,
        out_channels=8,
        positions="table",
        trained_size=16,
    )
    assert size(shapes(network, (1, 32, 32, 4))) == 675_129_632


def test_patches_are_row_major_and_invert():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    tokens = patchify(x, 2)
    assert tokens.shape == (2, 6, 12)
    np.testing.assert_array_equal(tokens[1, 5].reshape(2, 2, 3), x[1, 2:4, 4:6])
    np.testing.assert_array_equal(unpatchify(tokens, 2, 4, 6), x)


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def normalise(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def numpy_block(x, c, p, heads):
    """adaLN-zero of the paper's figure 3 for one sample: tokens [n, d], condition [d]."""
    shift1, scale1, gate1, shift2, scale2, gate2 = np.split(dense(c, p["modulation"]), 6)
    qkv = dense(normalise(x) * (1 + scale1) + shift1, p["attention"]["qkv"])
    parts = []
    for q, k, v in qkv.reshape(len(x), 3, heads, -1).transpose(2, 1, 0, 3):
        weight = np.exp(q @ k.T / np.sqrt(q.shape[1]))
        parts.append(weight / weight.sum(1, keepdims=True) @ v)
    x = x + gate1 * dense(np.concatenate(parts, 1), p["attention"]["out"])
    h = dense(normalise(x) * (1 + scale2) + shift2, p["mlp_in"])
    h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return x + gate2 * dense(h, p["mlp_out"])


def numpy_dit(x, noise, label, params, network):
    """The whole network for one image [h, w, c], layer by layer over the stacked parameters."""
    size, d = network.patch_size, network.width
    phase = noise * 10_000.0 ** (-np.arange(128) / 128)
    c = dense(np.concatenate([np.cos(phase), np.sin(phase)]), params["condition"]["noise_in"])
    c = dense(c / (1 + np.exp(-c)), params["condition"]["noise_out"])
    c = c + params["condition"]["label"]["embedding"][label]
    c = c / (1 + np.exp(-c))
    height, width = x.shape[0] // size, x.shape[1] // size
    tokens = np.zeros((height * width, d))
    omega = 10_000.0 ** (-np.arange(d // 4) / (d // 4))
    for i in range(height):
        for j in range(width):
            patch = x[i * size : (i + 1) * size, j * size : (j + 1) * size].reshape(-1)
            where = [np.sin(j * omega), np.cos(j * omega), np.sin(i * omega), np.cos(i * omega)]
            tokens[i * width + j] = dense(patch, params["patch_in"]) + np.concatenate(where)
    for layer in range(network.depth):
        one = jax.tree.map(lambda l, layer=layer: l[layer], params["layers"])
        tokens = numpy_block(tokens, c, one, network.heads)
    shift, scale = np.split(dense(c, params["modulation"]), 2)
    patches = dense(normalise(tokens) * (1 + scale) + shift, params["patch_out"])
    patches = patches.reshape(height, width, size, size, -1)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in patches], axis=0)


def test_network_equals_numpy_layer_by_layer(x64):
    network = DiT(width=16, depth=3, heads=2, num_classes=2, out_channels=3, dtype="float64")
    x, noise, label = RNG.normal(size=(2, 4, 6, 2)), np.array([0.3, 41.0]), np.array([1, 0])
    params = jax.tree.map(lambda l: 0.3 * RNG.normal(size=l.shape), shapes(network, x.shape))
    got = network.apply(params, x, noise, {"label": label})
    for i in range(2):
        want = numpy_dit(x[i], noise[i], label[i], params["params"], network)
        np.testing.assert_allclose(got[i], want, atol=1e-10)


@pytest.mark.slow
def test_scanned_layers_equal_a_loop_over_one_block():
    network = DiT(width=16, depth=3, heads=2)
    x, c = jnp.asarray(RNG.normal(size=(2, 4, 16)), jnp.float32), jnp.ones((2, 16))
    stacked = shapes(network, (1, 4, 4, 2))["params"]["layers"]
    stacked = jax.tree.map(lambda l: jnp.asarray(0.3 * RNG.normal(size=l.shape), l.dtype), stacked)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(stacked)} == {3}
    unrolled = x
    for layer in range(3):
        one = jax.tree.map(lambda l, layer=layer: l[layer], stacked)
        unrolled, _ = DiTBlock(heads=2).apply({"params": one}, unrolled, c)
    scanned, _ = network.layers().apply({"params": stacked}, x, c)
    assert jnp.abs(unrolled - x).max() > 1
    np.testing.assert_allclose(scanned, unrolled, rtol=1e-5, atol=1e-5 * jnp.abs(unrolled).max())


def test_layers_start_different_and_with_xavier_spread():
    network = DiT(width=32, depth=3, heads=2)
    inputs = jnp.zeros((1, 4, 4, 2)), jnp.zeros(1)
    kernel = jax.jit(network.init)(jax.random.key(0), *inputs)["params"]["layers"]["mlp_in"][
        "kernel"
    ]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01
    limit = np.sqrt(6 / (32 + 128))  # of one layer's matrix, not of the stack
    assert 0.98 * limit < np.abs(kernel).max() <= limit


def test_positions_make_the_network_see_where_a_patch_is():
    network = DiT(width=16, depth=1, heads=2)
    params = jax.tree.map(
        lambda l: jnp.asarray(0.3 * RNG.normal(size=l.shape), l.dtype),
        shapes(network, (1, 4, 4, 1)),
    )
    x = jnp.asarray(RNG.normal(size=(1, 4, 4, 1)), jnp.float32)
    apply = jax.jit(lambda x: network.apply(params, x, jnp.ones(1)))
    moved = jnp.roll(apply(jnp.roll(x, 2, axis=1)), -2, axis=1)
    assert jnp.abs(moved - apply(x)).max() > 1e-2


def test_stretched_positions_are_counted_ones_at_the_trained_size_and_cover_the_same_range():
    np.testing.assert_allclose(stretched_positions(4, 4, 16, 4), grid_sincos(4, 4, 16), atol=1e-6)
    twice = stretched_positions(8, 8, 16, 4).reshape(8, 8, 16)
    once = grid_sincos(4, 4, 16).reshape(4, 4, 16)
    np.testing.assert_allclose(twice[::2, ::2], once, atol=1e-6)
    wide = stretched_positions(2, 8, 16, 4, scale=2.0).reshape(2, 8, 16)
    row, column = 1 * 4 / 2 / 2, 5 * 4 / 8 / 2  # sin of the highest frequency, which is 1
    np.testing.assert_allclose(wide[1, 5, [0, 8]], np.sin([column, row]), atol=1e-6)


def randomised(network, shape):
    tree = shapes(network, shape)
    return jax.tree.map(lambda l: jnp.asarray(0.3 * RNG.normal(size=l.shape), l.dtype), tree)


@pytest.mark.slow
def test_equal_copies_of_the_condition_are_one_shared_condition():
    fields = {"width": 16, "depth": 2, "heads": 2, "num_classes": 2}
    params = randomised(DiT(**fields), (2, 4, 4, 1))["params"]
    copies = jax.tree.map(lambda l: jnp.stack([l, l]), params["condition"])
    inputs = jnp.ones((2, 4, 4, 1)), jnp.array([3.0, 500.0]), {"label": jnp.array([1, 2])}
    want = jax.jit(DiT(**fields).apply)({"params": params}, *inputs)
    own = jax.jit(DiT(**fields, shared_condition=False).apply)
    got = own({"params": params | {"condition": copies}}, *inputs)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    changed = jax.tree.map(lambda l: l.at[1].add(0.3), copies)  # of the second layer alone
    got = own({"params": params | {"condition": changed}}, *inputs)
    assert np.abs(got - want).max() > 1e-2


def test_a_table_of_positions_begins_as_the_fixed_ones_and_takes_its_size_alone():
    network = DiT(width=16, depth=1, heads=2, positions="table", trained_size=3)
    x = jnp.zeros((1, 6, 6, 1))
    table = jax.jit(network.init)(jax.random.key(0), x, jnp.ones(1))["params"]["positions"]
    np.testing.assert_allclose(table, grid_sincos(3, 3, 16), atol=1e-6)
    with pytest.raises(UserError, match="for 3 x 3 patches, and got 2 x 4"):
        shapes(network, (1, 4, 8, 1))


@pytest.mark.slow
def test_kept_channels_are_the_first_of_those_computed():
    fields = {"width": 16, "depth": 1, "heads": 2, "out_channels": 4}
    params = randomised(DiT(**fields), (1, 4, 4, 2))
    x, noise = jnp.ones((1, 4, 4, 2)), jnp.ones(1)
    both = jax.jit(DiT(**fields).apply)(params, x, noise)
    kept = jax.jit(DiT(**fields, kept_channels=2).apply)(params, x, noise)
    np.testing.assert_array_equal(kept, both[..., :2])


def test_another_number_of_channels_is_refused():
    with pytest.raises(UserError, match="takes images of 4 channels, got 3"):
        shapes(DiT(in_channels=4), (1, 8, 8, 3))


def test_sizes_that_do_not_cut_into_patches_are_refused_by_name():
    with pytest.raises(UserError, match="7 x 8 cannot be cut into patches of side 2"):
        shapes(DiT(), (1, 7, 8, 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 18, "heads": 3}, "width must be divisible by 4 and by heads=3, got 18"),
        ({"width": 16, "heads": 3}, "heads=3, got 16"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive, got 0.0"),
        ({"positions": "learned"}, "positions must be one of fixed, table, got 'learned'"),
        ({"positions": "table"}, "needs DiT.trained_size"),
        ({"null_class": "zero"}, "null_class must be one of learned, refused, got 'zero'"),
        ({"trained_size": 0}, "trained_size must be at least 1, got 0"),
        ({"depth": 0}, "depth and heads must be at least 1, got 2, 0"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        DiT(**fields)
