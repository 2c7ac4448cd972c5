"""The text-conditional U-Net: its transformer, its sizes, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models.text_transformer import TextBlock, TextTransformer
from scorediff.models.text_unet import TextUNet, nearest
from tests.models.small_text_unet import COND, NOISE, TEXT, TOLD, TRUNK, X, draw

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

TOKENS = draw(3, 2, 3, 4)


def randomised(shapes):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(0.4 * rng.normal(size=s.shape), s.dtype), shapes)


@pytest.fixture(scope="module")
def transformer():
    """A transformer of two layers with drawn parameters, and its call (text, bias) -> y."""
    network = TextTransformer(depth=2, heads=2, groups=2)
    init = lambda: network.init(jax.random.key(0), TOKENS, TEXT["text"], None)  # noqa: E731
    params = randomised(jax.eval_shape(init))
    return params, jax.jit(lambda text, bias: network.apply(params, TOKENS, text, bias))


def test_layers_are_the_block_once_after_another(transformer):
    params, apply = transformer
    p, block = params["params"], TextBlock(heads=2)
    x = TOKENS.reshape(3, 2, 3, 2, 2)
    x = (x - x.mean((1, 2, 4), keepdims=True)) / np.sqrt(x.var((1, 2, 4), keepdims=True) + 1e-6)
    h = x.reshape(3, 6, 4) * p["norm"]["scale"] + p["norm"]["bias"]
    h = h @ p["matrix_in"]["kernel"] + p["matrix_in"]["bias"]
    step = jax.jit(block.apply)
    for layer in range(2):
        own = jax.tree.map(lambda a, i=layer: a[i], p["layers"])
        h, _ = step({"params": own}, h, TEXT["text"], None)
    want = TOKENS + (h @ p["matrix_out"]["kernel"] + p["matrix_out"]["bias"]).reshape(TOKENS.shape)
    np.testing.assert_allclose(apply(TEXT["text"], None), want, atol=2e-5)


def test_a_dropped_token_does_not_matter(transformer):
    _, apply = transformer
    bias = (1 - TEXT["text_mask"][:, None, None, :]) * -10000.0
    other = jnp.where(TEXT["text_mask"][..., None] == 1, TEXT["text"], 7.0)
    np.testing.assert_array_equal(apply(TEXT["text"], bias), apply(other, bias))
    assert np.abs(apply(TEXT["text"], bias) - apply(TEXT["text"], 0 * bias)).max() > 1e-3


def test_nearest_neighbour_to_any_size():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(
        nearest(x, 3, 5)[0, ..., 0], [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    )
    np.testing.assert_array_equal(nearest(x, 4, 6), np.repeat(np.repeat(x, 2, 1), 2, 2))


def shapes(network, x=X, cond=COND):
    return jax.eval_shape(network.init_with_output, jax.random.key(0), x, NOISE, cond)


def test_any_size_goes_through_and_parameters_do_not_depend_on_it():
    network = TextUNet(**TRUNK, **TOLD)
    (y, params), (odd, same) = shapes(network), shapes(network, jnp.zeros((3, 5, 7, 2)))
    assert y.shape == X.shape and odd.shape == (3, 5, 7, 2)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, same)


def test_a_ways_depth_is_its_own():
    network = TextUNet(**TRUNK | {"depth": (0, 3)}, up_depth=(2, 0))
    _, variables = shapes(network, cond=TEXT)
    found = {
        name: part["layers"]["mlp_in"]["bias"].shape[0]
        for name, part in variables["params"].items()
        if "attention" in name
    }
    assert found == {
        "down1_0_attention": 3,
        "middle_0_attention": 2,
        "up0_0_attention": 2,
        "up0_1_attention": 2,
    }


@pytest.mark.parametrize("key", ["text", "label", "guidance", "pooled", "sizes"])
def test_a_missing_condition_is_named(key):
    with pytest.raises(UserError, match=rf'needs cond\["{key}"\]'):
        shapes(TextUNet(**TRUNK, **TOLD), cond={k: v for k, v in COND.items() if k != key})


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"text": jnp.zeros((3, 5, 7))}, r"must be \[b, n, 6\], got .*\(3, 5, 7\)"),
        ({"pooled": jnp.zeros((3, 4))}, "width 4 and 2 numbers.*4 features each, make 12.*for 11"),
        ({"control": {"skips": (), "middle": X}}, r'cond\["control"\] has arrays of shapes'),
    ],
)
def test_a_condition_of_another_size_is_refused(cond, message):
    with pytest.raises(UserError, match=message):
        shapes(TextUNet(**TRUNK, **TOLD), cond=COND | cond)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blocks": (1,)}, r"TextUNet.blocks must have one value for each of the 2 levels"),
        ({"depth": (1, -1)}, r"TextUNet.depth must have one value"),
        ({"up_depth": (1, 1, 1)}, r"TextUNet.up_depth must have one value"),
        ({"heads": (0, 1)}, "TextUNet.heads must be at least 1"),
        ({"act": "tanh"}, "TextUNet.act must be one of .*got 'tanh'"),
        ({"dropout": 1.0}, r"TextUNet.dropout must be in \[0, 1\), got 1.0"),
        ({"dtype": "int8"}, "TextUNet.dtype must be one of"),
        ({"num_classes": -1}, "TextUNet.num_classes must be at least 1"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(UserError, match=message):
        TextUNet(**TRUNK | fields)


def test_an_array_of_other_channels_is_refused():
    with pytest.raises(UserError, match=r"takes images \[b, h, w, 2\], got .*\(3, 4, 4, 5\)"):
        shapes(TextUNet(**TRUNK), x=jnp.zeros((3, 4, 4, 5)))
