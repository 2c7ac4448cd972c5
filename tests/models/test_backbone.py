"""The research backbone: rotary positions, patches, what attention mixes, formulas, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models.backbone import AxialAttention, Backbone, BackboneBlock
from scorediff.models.patching import patch_sides, patchify, unpatchify
from scorediff.models.rope import axial_angles, rotate
from tests.models.small_backbone import NETWORKS, NOISE, SMALL, draw

RNG = np.random.default_rng(2)


def randomised(network, *inputs, scale=0.5):
    """Parameters without zeros, float32."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return jax.tree.map(
        lambda l: jnp.asarray(scale * RNG.normal(size=l.shape), jnp.float32), shapes
    )


def small(name):
    build, *inputs = NETWORKS[name]
    return build(), inputs


# Rotary positions


@pytest.mark.parametrize(("grid", "head_dim"), [((6,), 8), ((3, 4), 8), ((2, 3, 4), 14)])
def test_rope_keeps_norms_and_makes_products_depend_on_the_offset_alone(x64, grid, head_dim):
    n = int(np.prod(grid))
    q, k = (np.tile(RNG.normal(size=head_dim), (1, n, 1, 1)) for _ in range(2))  # the same vector
    angles = axial_angles(grid, head_dim)
    turned_q, turned_k = rotate(jnp.asarray(q), angles), rotate(jnp.asarray(k), angles)
    np.testing.assert_allclose(
        np.linalg.norm(turned_q, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-12
    )
    products = np.einsum("bqhd,bkhd->qk", turned_q, turned_k)
    places = np.stack(np.unravel_index(np.arange(n), grid), -1)
    by_offset = {}
    for i in range(n):
        for j in range(n):
            by_offset.setdefault(tuple(places[i] - places[j]), []).append(products[i, j])
    assert max(np.ptp(values) for values in by_offset.values()) < 1e-12
    means = np.array([values[0] for values in by_offset.values()])
    assert np.min(np.abs(means[:, None] - means) + np.eye(len(means))) > 1e-9  # and on all of it


def test_rope_is_the_rotation_of_the_paper(x64):
    x, position = RNG.normal(size=(1, 3, 1, 4)), 2
    turned = rotate(jnp.asarray(x), axial_angles((3,), 4, period=100.0))[0, position, 0]
    for plane, frequency in enumerate((1.0, 0.1)):  # 100^0, 100^(-1/2)
        value = x[0, position, 0, plane] + 1j * x[0, position, 0, plane + 2]
        want = value * np.exp(1j * position * frequency)
        np.testing.assert_allclose([turned[plane], turned[plane + 2]], [want.real, want.imag])


def test_rope_turns_bfloat16_in_float32():
    x = jnp.ones((1, 300, 1, 2), jnp.bfloat16)
    turned = rotate(x, axial_angles((300,), 2))
    want = np.cos(299) - np.sin(299)  # bfloat16 knows 298 and 300 only
    assert turned.dtype == jnp.bfloat16
    assert abs(float(turned[0, 299, 0, 0]) - want) < 0.01


def test_a_head_too_narrow_for_the_axes_is_refused():
    with pytest.raises(UserError, match="3 axes need heads of an even width of at least 6, got 4"):
        axial_angles((2, 2, 2), 4)


# Patches


@pytest.mark.parametrize(
    ("space", "sides"),
    [((6,), (3,)), ((4, 6), (2, 3)), ((2, 4, 6), (1, 2, 3)), ((4,) * 4, (2,) * 4)],
)
def test_patches_are_boxes_and_invert(space, sides):
    x = np.arange(2 * np.prod(space) * 3).reshape(2, *space, 3)
    tokens = patchify(x, sides)
    assert tokens.shape == (
        2,
        *(n // s for n, s in zip(space, sides, strict=True)),
        np.prod(sides) * 3,
    )
    last = tuple(slice(n - s, n) for n, s in zip(space, sides, strict=True))
    corner = tokens[(1, *(-1,) * len(space))]
    np.testing.assert_array_equal(corner.reshape(*sides, 3), x[(1, *last)])
    np.testing.assert_array_equal(unpatchify(tokens, sides), x)


def test_patch_sizes_that_do_not_fit_are_refused():
    assert patch_sides(2, (4, 6)) == (2, 2)
    with pytest.raises(UserError, match=r"\(2, 2\) has 2 sides, but the data have 1 axes"):
        patch_sides((2, 2), (8,))
    with pytest.raises(UserError, match="a width of 7 cannot be cut into patches of side 2"):
        patch_sides(2, (4, 7))


# What attention mixes


def moved(function, x, at):
    """Where the answer moves, bool [*space], when one place of x [1, *space, c] does."""
    change = function(x.at[(0, *at)].add(1.0)) - function(x)
    return np.asarray(jnp.abs(change).max(axis=(0, -1)) > 1e-5)


@pytest.mark.parametrize(
    ("axes", "reach"),
    [
        ((0, 1, 2), np.ones((2, 3, 4), bool)),
        ((0,), np.indices((2, 3, 4))[1:] == np.array([1, 2])[:, None, None, None]),
        ((1, 2), np.indices((2, 3, 4))[:1] == 1),
    ],
)
def test_attention_mixes_all_of_its_axes_and_no_other(axes, reach):
    module = AxialAttention(heads=2, axes=axes)
    x = draw(1, 2, 3, 4, 12)
    params = randomised(module, x)
    want = reach if reach.ndim == 3 else reach.all(axis=0)
    apply = jax.jit(functools.partial(module.apply, params))
    np.testing.assert_array_equal(moved(apply, x, (1, 1, 2)), want)


def test_attention_along_one_axis_is_attention_of_each_line():
    x = draw(2, 3, 4, 12)
    columns = AxialAttention(heads=2, axes=(0,))
    params = randomised(columns, x)
    lines = x.transpose(0, 2, 1, 3).reshape(8, 3, 12)
    apply = jax.jit(functools.partial(columns.apply, params))
    want = apply(lines).reshape(2, 4, 3, 12).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(apply(x), want, atol=1e-5)


@pytest.mark.slow
def test_factorised_layers_reach_everything_in_the_end_and_nothing_is_causal():
    network, (x, noise, _) = small("backbone_video")
    params = randomised(network, x, noise)
    apply = jax.jit(lambda x: network.apply(params, x, noise[:1]))
    for at in ((0, 0, 0), (2, 3, 3)):
        assert moved(apply, x[:1], at).all()


def test_points_are_a_set():
    network, (x, noise, _) = small("backbone_points")
    params = randomised(network, x, noise)
    order = np.array([3, 0, 6, 1, 5, 4, 2])
    apply = jax.jit(lambda x: network.apply(params, x, noise))
    answer = apply(x)
    assert jnp.abs(answer).max() > 0.1
    np.testing.assert_allclose(apply(x[:, order]), answer[:, order], atol=1e-4)


@pytest.mark.slow
def test_a_signal_is_not_a_set():
    network, (x, noise, _) = SMALL(patch_size=1), NETWORKS["backbone_points"][1:]
    params = randomised(network, x, noise)
    apply = jax.jit(lambda x: network.apply(params, x, noise))
    assert jnp.abs(apply(x[:, ::-1]) - apply(x)[:, ::-1]).max() > 1e-2


def test_dropped_text_does_not_matter_and_kept_text_does():
    network, (x, noise, cond) = small("backbone_text")
    params = randomised(network, x, noise, cond)
    apply = jax.jit(functools.partial(network.apply, params))
    answer = apply(x, noise, cond)
    hidden = cond | {"text": cond["text"].at[1, 2:].add(5.0)}
    np.testing.assert_allclose(apply(x, noise, hidden), answer, atol=1e-5)
    seen = cond | {"text": cond["text"].at[1, 1].add(5.0)}
    change = jnp.abs(apply(x, noise, seen) - answer).max(axis=(1, 2, 3))
    assert change[1] > 1e-3 and change[0] < 1e-5 and change[2] < 1e-5


# One layer against NumPy


def rms(x, scale=1.0):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def numpy_attention(x, p, heads, size):
    """Tokens [n, d] along one axis: RoPE by complex numbers, normalised queries and keys."""
    n, half = len(x), size // 2
    turn = np.exp(1j * np.arange(n)[:, None] * 10_000.0 ** (-np.arange(half) / half))
    parts = (x @ p["qkv"]["kernel"]).reshape(n, 3, heads, size).transpose(2, 1, 0, 3)
    out = []
    for q, k, v in parts:
        q, k = rms(q, p["norm_q"]["scale"]), rms(k, p["norm_k"]["scale"])
        q, k = ((u[:, :half] + 1j * u[:, half:]) * turn for u in (q, k))
        weight = np.exp((q @ k.conj().T).real / np.sqrt(size))
        out.append(weight / weight.sum(1, keepdims=True) @ v)
    return np.concatenate(out, 1) @ p["out"]["kernel"]


def test_a_layer_equals_numpy(x64):
    block = BackboneBlock(heads=2, axes=((0,),), hidden=5, dtype="float64")
    x, c = RNG.normal(size=(2, 4, 8)), RNG.normal(size=(2, 8))
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, c, None, None)
    params = jax.tree.map(lambda l: 0.5 * RNG.normal(size=l.shape), shapes)
    got, _ = jax.jit(block.apply)(params, jnp.asarray(x), jnp.asarray(c), None, None)
    p = params["params"]
    for i in range(2):
        steer = np.split(c[i] @ p["modulation"]["kernel"] + p["modulation"]["bias"], 6)
        h = rms(x[i]) * (1 + steer[1]) + steer[0]
        y = x[i] + steer[2] * numpy_attention(h, p["attention_0"], 2, 4)
        h = (rms(y) * (1 + steer[4]) + steer[3]) @ p["mlp_in"]["kernel"]
        h = h[:, :5] / (1 + np.exp(-h[:, :5])) * h[:, 5:]
        y = y + steer[5] * (h @ p["mlp_out"]["kernel"])
        np.testing.assert_allclose(got[i], y, atol=1e-12)


def test_shared_modulation_leaves_one_matrix_for_all_layers():
    x = draw(1, 4, 4, 2)

    def shapes(**fields):
        inputs = jax.random.key(0), x, NOISE[:1]
        return jax.eval_shape(SMALL(depth=5, **fields).init, *inputs)["params"]

    layer, shared = shapes(), shapes(modulation="shared")
    assert layer["layers"]["modulation"]["kernel"].shape == (5, 16, 96)
    assert shared["modulation"]["kernel"].shape == (16, 96)
    assert shared["layers"]["own_modulation"].shape == (5, 96)


# Refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "heads=3 must divide width=16"),
        ({"positions": "sincos"}, "positions must be one of rope, none, got 'sincos'"),
        ({"modulation": "none"}, "modulation must be one of layer, shared, got 'none'"),
        ({"patch_size": (2, 0)}, "patch_size, depth and heads must be at least 1, got 2, 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive and period above 1, got 0.0"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        SMALL(**fields)


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({}, (1, 8), r"takes \[b, \*space, c\], got an array of shape \(1, 8\)"),
        ({"axes": ((0,), (0, 1))}, (1, 4, 4, 1), "must name each of the 2 axes of space once"),
        ({"axes": ((0, 1), ())}, (1, 4, 4, 1), "must name each of the 2 axes of space once"),
        ({"text": True}, (1, 4, 4, 1), r'needs cond\["text"\]'),
        ({"heads": 8}, (1, 4, 4, 1), "2 axes need heads of an even width of at least 4, got 2"),
    ],
)
def test_what_does_not_fit_is_refused(fields, shape, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(
            Backbone(width=16, depth=1, **({"heads": 2} | fields)).init,
            jax.random.key(0),
            jnp.zeros(shape),
            jnp.ones(1),
        )
