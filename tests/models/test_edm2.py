"""EDM2: magnitudes are kept, weights are used at unit norm, published sizes, refusals."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models.edm2 import EDM2UNet, normalised
from scorediff.models.edm2_parts import EDM2Block, MPConv, mp_cat, mp_silu, mp_sum, pixel_norm
from tests.models.small_ncsnpp import NETWORKS

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)

# Millions of parameters, arXiv 2312.02696, table 2
PUBLISHED = {
    "XS": (128, 125),
    "S": (192, 280),
    "M": (256, 498),
    "L": (320, 777),
    "XL": (384, 1119),
    "XXL": (448, 1523),
}


SLOW = [pytest.param(size, marks=pytest.mark.slow) for size in PUBLISHED if size != "S"]


@pytest.mark.parametrize("size", ["S", *SLOW])
def test_imagenet_networks_have_the_published_number_of_parameters(size):
    channels, millions = PUBLISHED[size]
    network = EDM2UNet(channels=channels, num_classes=1000, logvar_features=128)
    example = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1)
    params = jax.eval_shape(network.init, KEY, *example)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert round(count / 1e6) == millions


def test_activation_keeps_the_magnitude_of_a_standard_normal():
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    square = (np.asarray(mp_silu(jnp.asarray(nodes))) ** 2 * weights).sum() / weights.sum()
    assert square == pytest.approx(1, abs=2e-3)  # the constant has three digits


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_sum_and_concatenation_keep_magnitudes_and_share_them_out(t):
    a, b = (jnp.asarray(RNG.normal(size=(20_000, n))) for n in (2, 6))
    assert float((mp_sum(a, b[:, :2], t) ** 2).mean()) == pytest.approx(1, abs=0.03)
    both = mp_cat(a, b, t)
    assert both.shape == (20_000, 8)
    assert float((both**2).mean()) == pytest.approx(1, abs=0.03)
    share = float((both[:, 2:] ** 2).sum() / (both**2).sum())
    assert share == pytest.approx(t**2 / (t**2 + (1 - t) ** 2), abs=0.01)


def test_pixels_are_normalised_over_channels():
    x = jnp.asarray(100 * RNG.normal(size=(2, 3, 3, 8)), jnp.float32)
    np.testing.assert_allclose((pixel_norm(x) ** 2).mean(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("window", [(), (3, 3)])
def test_weights_are_used_at_unit_norm_and_learn_at_right_angles(window):
    conv = MPConv(features=5, window=window)
    x = jnp.asarray(RNG.normal(size=(4, 6, 6, 7)), jnp.float32)
    params = conv.init(KEY, x)
    y = conv.apply(params, x)
    larger = jax.tree.map(lambda a: 10 * a, params)
    np.testing.assert_allclose(conv.apply(larger, x), y, rtol=1e-3, atol=1e-3)  # epsilon 1e-4
    one = jnp.ones_like(y)
    gradient = jax.grad(lambda p: (conv.apply(p, x) * one).sum())(params)
    kernel, slope = (np.asarray(t["params"]["kernel"]).reshape(-1, 5) for t in (params, gradient))
    cosine = (
        (kernel * slope).sum(0) / np.linalg.norm(kernel, axis=0) / np.linalg.norm(slope, axis=0)
    )
    assert np.abs(cosine).max() < 1e-3  # epsilon again
    norms = np.linalg.norm(
        np.asarray(normalised(params)["params"]["kernel"]).reshape(-1, 5), axis=0
    )
    np.testing.assert_allclose(norms, np.sqrt(len(kernel)), rtol=2e-4)


class Drawn(NamedTuple):
    network: EDM2UNet
    params: dict  # as `init` draws them
    run: Callable  # params -> the answer, and what each inner module answered


@pytest.fixture(scope="module")
def drawn():
    """A small network and what it computes, compiled once."""
    build, x, noise, cond = NETWORKS["edm2"]
    network = build(channels=32, logvar_features=8)
    params = jax.jit(network.init)(KEY, x, noise, cond)["params"]

    @jax.jit
    def run(params):
        y, state = network.apply({"params": params}, x, noise, cond, capture_intermediates=True)
        return y, state["intermediates"]

    return Drawn(network, params, run)


@pytest.mark.slow
def test_forced_normalisation_changes_no_answer_and_is_done_once(drawn):
    params = jax.tree.map(lambda a: 3 * a if a.ndim else jnp.ones_like(a), drawn.params)
    force = jax.jit(normalised)
    once = force(params)
    np.testing.assert_allclose(drawn.run(params)[0], drawn.run(once)[0], rtol=1e-2, atol=3e-3)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(force(once)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(once):
        before = functools.reduce(lambda tree, step: tree[step.key], path, params)
        if path[-1].key == "kernel":
            columns = np.asarray(leaf).reshape(-1, leaf.shape[-1])
            np.testing.assert_allclose((columns**2).mean(0), 1, rtol=1e-5)
        else:
            np.testing.assert_array_equal(leaf, before)


@pytest.mark.slow
def test_every_block_keeps_about_unit_magnitude(drawn):
    y, inner = drawn.run({**drawn.params, "out_gain": jnp.ones(())})
    blocks = {
        name: float(jnp.sqrt((answers["__call__"][0] ** 2).mean()))
        for name, answers in inner.items()
        if name.startswith(("down", "middle", "up"))
    }
    assert len(blocks) == 10
    assert all(0.7 < magnitude < 1.3 for magnitude in blocks.values()), blocks
    assert 0.6 < float(jnp.sqrt((y**2).mean())) < 1.4


@pytest.mark.slow
def test_fresh_network_answers_zero_by_its_gain_alone(drawn):
    assert not drawn.run(drawn.params)[0].any()
    leaves = jax.tree_util.tree_leaves_with_path(drawn.params)
    assert {path[-1].key for path, leaf in leaves if not leaf.any()} == {
        "out_gain",
        "condition_gain",
    }
    assert not any(path[-1].key in ("bias", "scale") for path, _ in leaves)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [False, True])
def test_a_block_keeps_unit_magnitude_and_starts_deaf_to_its_condition(decoder):
    block = EDM2Block(features=32, decoder=decoder, heads=2)
    x, c = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((2, 8, 8, 16), (2, 4)))
    params = jax.jit(block.init)(KEY, x, c)["params"]
    y = block.apply({"params": params}, x, c)
    assert 0.85 < float(jnp.sqrt((y**2).mean())) < 1.15
    np.testing.assert_array_equal(y, block.apply({"params": params}, x, 0 * c))
    heard = block.apply({"params": {**params, "condition_gain": jnp.ones(())}}, x, c)
    assert np.abs(heard - y).max() > 0.1


def test_uncertainty_is_a_function_of_the_noise_level():
    network, noise = EDM2UNet(logvar_features=8), NETWORKS["edm2"][2]
    params = network.init(KEY, noise, method="logvar")
    answer = network.apply(params, noise, method="logvar")
    assert answer.shape == (3,) and len(set(np.asarray(answer).tolist())) == 3
    with pytest.raises(UserError, match="logvar_features is None"):
        EDM2UNet().apply({}, noise, method="logvar")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attend": (True,)}, r"EDM2UNet.attend needs 4 values, one a level, got \(True,\)"),
        ({"dropout": -0.1}, r"EDM2UNet.dropout must be in \[0, 1\), got -0.1"),
        ({"head_width": 0}, "head_width must be at least 1"),
        ({"logvar_features": 0}, "EDM2UNet.logvar_features must be at least 1, got 0"),
        ({"dtype": "bf16"}, "dtype must be one of"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(UserError, match=message):
        EDM2UNet(**fields)


def test_images_that_do_not_halve_are_refused():
    with pytest.raises(UserError, match=r"4 x 8 cannot be halved .* divisible by 8"):
        EDM2UNet(channels=8).init(KEY, jnp.zeros((1, 4, 8, 3)), jnp.zeros(1))
