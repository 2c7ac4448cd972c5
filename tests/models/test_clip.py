"""CLIP's text encoder: causal order, masks, pooling, hidden states, and the published sizes."""

import functools
from math import erf, exp

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models.clip import ACTIVATIONS, CLIPText

SMALL = functools.partial(
    CLIPText, vocabulary=20, positions=6, width=8, depth=2, heads=2, hidden=12, eos=15
)
IDS = jnp.array([[16, 3, 4, 15, 18, 15], [16, 5, 15, 0, 0, 15]])

# Parameters of the published text encoders, as their model cards and diffusers' pipelines count
# them: CLIP ViT-L/14 (Stable Diffusion 1), OpenCLIP ViT-H/14 without its last layer (Stable
# Diffusion 2), and OpenCLIP ViT-bigG/14 (SDXL's second).
PUBLISHED = {
    "ViT-L/14": (CLIPText(), 123_060_480),
    "ViT-H/14, 23 layers": (
        CLIPText(width=1024, depth=23, heads=16, hidden=4096, activation="gelu"),
        340_387_840,
    ),
    "ViT-bigG/14": (
        CLIPText(width=1280, depth=32, heads=20, hidden=5120, activation="gelu", projection=1280),
        694_659_840,
    ),
}


@functools.cache
def params():
    """Parameters of a size that makes every part matter; the same for each variant of SMALL."""
    shapes = jax.eval_shape(SMALL(projection=5).init, jax.random.key(0), IDS)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(0.4 * rng.normal(size=s.shape), s.dtype), shapes)


@functools.cache
def compiled(encoder):
    return jax.jit(encoder.apply)


def encode(ids=IDS, mask=None, **fields):
    return compiled(SMALL(**fields))(params(), ids, mask)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_published_number_of_parameters(name):
    encoder, count = PUBLISHED[name]
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 77), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_and_answers_are_float32(dtype):
    init = SMALL(dtype=dtype, projection=5).init_with_output
    got, shapes = jax.eval_shape(init, jax.random.key(0), IDS)
    assert {leaf.dtype for leaf in jax.tree.leaves((got, shapes))} == {jnp.dtype("float32")}
    assert got.last_hidden_state.shape == (2, 6, 8)
    assert got.hidden_states.shape == (3, 2, 6, 8)
    assert got.pooled.shape == (2, 5)


def test_a_token_sees_itself_and_those_before_it():
    first, second = encode(), encode(IDS.at[:, 3].set(9))
    change = np.abs(first.last_hidden_state - second.last_hidden_state).max(axis=(0, 2))
    assert change[:3].max() == 0
    assert change[3:].min() > 1e-3


def test_a_masked_token_is_seen_by_itself_at_most():
    mask = jnp.ones_like(IDS).at[:, 1].set(0)
    first, second = encode(mask=mask), encode(IDS.at[:, 1].set(9), mask)
    change = np.abs(first.last_hidden_state - second.last_hidden_state).max(axis=(0, 2))
    assert change[1] > 1e-3
    assert np.delete(change, 1).max() == 0
    assert np.isfinite(encode(mask=jnp.zeros_like(IDS)).last_hidden_state).all()


def test_pooling_takes_the_first_end_or_the_largest_id():
    rows = np.arange(2)
    first = encode(projection=None)
    np.testing.assert_array_equal(first.pooled, first.last_hidden_state[rows, [3, 2]])
    largest = encode(eos=None, projection=None)
    np.testing.assert_array_equal(largest.pooled, first.last_hidden_state[rows, [4, 0]])


def test_the_projection_is_one_matrix():
    kernel = np.asarray(params()["params"]["projection"]["kernel"], np.float64)
    want = np.asarray(encode(projection=None).pooled, np.float64) @ kernel
    np.testing.assert_allclose(encode(projection=5).pooled, want, rtol=1e-5, atol=1e-5)


def test_hidden_states_are_the_layers_before_the_last_normalisation():
    got, norm = encode(), params()["params"]["norm_out"]
    x = np.asarray(got.hidden_states[-1], np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    want = x * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(got.last_hidden_state, want, rtol=1e-4, atol=1e-5)
    tree = params()["params"]
    embedded = tree["tokens"]["embedding"][IDS] + tree["positions_table"]
    np.testing.assert_array_equal(got.hidden_states[0], embedded)


def test_both_gelus_by_their_formulas():
    x = np.linspace(-4, 4, 9)
    quick = [v / (1 + exp(-1.702 * v)) for v in x]
    exact = [v / 2 * (1 + erf(v / 2**0.5)) for v in x]
    np.testing.assert_allclose(ACTIVATIONS["quick_gelu"](jnp.asarray(x)), quick, atol=1e-6)
    np.testing.assert_allclose(ACTIVATIONS["gelu"](jnp.asarray(x)), exact, atol=1e-6)


def test_bfloat16_is_close_to_float32():
    want, got = encode(), encode(dtype="bfloat16")
    error = np.abs(got.last_hidden_state - want.last_hidden_state).max()
    assert 0 < error < 0.1 * np.abs(want.last_hidden_state).max()


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_gradients_are_finite_and_reach_every_parameter(remat):
    def loss(p):
        return (SMALL(remat=remat, projection=5).apply(p, IDS).pooled ** 2).sum()

    gradients = jax.jit(jax.grad(loss))(params())
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_an_id_beyond_the_vocabulary_is_not_another_token():
    assert np.isnan(encode(IDS.at[0, 0].set(20)).last_hidden_state[0]).all()


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (jnp.zeros((1, 7), jnp.int32), None, "has 6 positions, got 7 tokens"),
        (jnp.zeros(6, jnp.int32), None, r"integers \[b, n\], got int32 \[6\]"),
        (jnp.zeros((1, 6)), None, r"integers \[b, n\], got float32"),
        (IDS, jnp.ones((2, 5)), r"mask of shape \[2, 5\]"),
    ],
)
def test_bad_input_is_refused(ids, mask, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(SMALL().init, jax.random.key(0), ids, mask)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "relu"}, "activation must be one of quick_gelu, gelu, got 'relu'"),
        ({"heads": 3}, "heads=3 do not divide a width of 8"),
        ({"depth": 0}, "sizes must be at least 1"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"remat": "some"}, "remat must be one of"),
        ({"attention_kernel": "flash"}, "attention_kernel must be one of"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(UserError, match=message):
        SMALL(**fields)
