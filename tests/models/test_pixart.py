"""PixArt-alpha: published size, the sizes that it is told, the text's mask, what it refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from scorediff.errors import UserError
from scorediff.models.pixart import PixArt

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

RNG = np.random.default_rng(0)
SMALL = {"width": 24, "depth": 2, "heads": 2, "text_features": 5, "trained_size": 2}
NOISE = jnp.array([3.0, 700.0])
SIZES = {
    "resolution": jnp.array([[512.0, 768.0], [1024.0, 640.0]]),
    "aspect": jnp.array([[1.5], [0.6]]),
}


def cond(features=5, batch=2):
    text = RNG.normal(size=(batch, 3, features))
    return {"text": jnp.asarray(text, jnp.float32)}


def randomised(network, x, cond):
    tree = jax.eval_shape(network.init, jax.random.key(0), x, NOISE, cond)
    return jax.tree.map(lambda l: jnp.asarray(0.3 * RNG.normal(size=l.shape), l.dtype), tree)


def test_published_network_has_the_published_number_of_parameters():
    # PixArt-alpha XL/2 at 512: 610,856,096, "0.6 B" in table 1 of arXiv 2310.00426
    network = PixArt(width=1152, depth=28, heads=16, out_channels=8, trained_size=32)
    inputs = jnp.zeros((1, 64, 64, 4)), jnp.zeros(1), cond(4096, 1)
    params = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    assert sum(math.prod(l.shape) for l in jax.tree.leaves(params)) == 610_856_096


def numpy_embedding(value, p, names):
    """A number through 256 waves and two layers."""
    phase = value * 10_000.0 ** (-np.arange(128) / 128)
    h = np.concatenate([np.cos(phase), np.sin(phase)]) @ p[names[0]]["kernel"] + p[names[0]]["bias"]
    return h / (1 + np.exp(-h)) @ p[names[1]]["kernel"] + p[names[1]]["bias"]


class ConditionAlone(PixArt, kw_only=True):
    """What steers the blocks, without the blocks."""

    @nn.compact
    def __call__(self, noise, cond):
        return self.condition(noise, cond)


@pytest.mark.slow
def test_each_side_and_their_ratio_take_a_third_of_the_condition(x64):
    network = PixArt(**SMALL, sized=True, dtype="float64")
    x = jnp.zeros((2, 4, 4, 1))
    params = randomised(network, x, cond() | SIZES)["params"]
    params = jax.tree.map(lambda l: np.asarray(l, np.float64), params)
    fields = {"width": 24, "text_features": 5, "sized": True, "dtype": "float64"}
    got = ConditionAlone(**fields).apply({"params": params}, NOISE, SIZES)
    for i in range(2):
        want = numpy_embedding(float(NOISE[i]), params["condition"], ("noise_in", "noise_out"))
        sizes = [
            numpy_embedding(float(value), params[key], ("first", "second"))
            for key in ("resolution", "aspect")
            for value in SIZES[key][i]
        ]
        np.testing.assert_allclose(got[i], want + np.concatenate(sizes), rtol=1e-9)


@pytest.mark.slow
def test_masked_tokens_of_the_text_change_nothing_and_others_do():
    network, x, given = PixArt(**SMALL), jnp.ones((2, 4, 4, 1)), cond()
    params = randomised(network, x, given)
    mask = {"text_mask": jnp.array([[1, 1, 0], [1, 0, 0]])}
    apply = jax.jit(lambda text: network.apply(params, x, NOISE, {"text": text} | mask))
    base = apply(given["text"])
    np.testing.assert_allclose(apply(given["text"].at[:, 2].add(1.0)), base, atol=1e-5)
    change = np.abs(apply(given["text"].at[:, 1].add(1.0)) - base).max(axis=(1, 2, 3))
    assert change[0] > 1e-2 and change[1] < 1e-5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sized": True, "width": 16}, "sized needs a width divisible by 3.*got 16"),
        ({"position_scale": 0.0}, "position_scale must be positive, got 0.0"),
        ({"depth": 0}, "depth and heads must be at least 1, got 2, 0, 2"),
        ({"attention_kernel": "flash"}, "PixArt.attention_kernel must be one of"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        PixArt(**SMALL | fields)


def test_what_does_not_fit_is_refused():
    x = jnp.zeros((2, 4, 4, 1))
    with pytest.raises(UserError, match=r'PixArt needs cond\["text"\]'):
        randomised(PixArt(**SMALL), x, None)
    with pytest.raises(UserError, match=r'cond\["text"\] of 5 features'):
        randomised(PixArt(**SMALL), x, cond(4))
    with pytest.raises(UserError, match=r'PixArt needs cond\["resolution"\]'):
        randomised(PixArt(**SMALL, sized=True), x, cond())
