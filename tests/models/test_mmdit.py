"""MMDiT: published sizes, runs of equal blocks, positions, what it refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models.mmdit import JointBlock, MMDiT

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

RNG = np.random.default_rng(0)
SMALL = {"width": 16, "depth": 3, "heads": 2, "text_features": 6, "pooled_features": 5}


def cond(network, batch=1):
    return {
        "text": jnp.zeros((batch, 3, network.text_features)),
        "pooled": jnp.zeros((batch, network.pooled_features)),
    }


def shapes(network, shape):
    inputs = jnp.zeros(shape), jnp.zeros(shape[0]), cond(network, shape[0])
    return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]


def randomised(tree):
    return jax.tree.map(lambda l: jnp.asarray(0.3 * RNG.normal(size=l.shape), l.dtype), tree)


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_published_networks_have_the_published_number_of_parameters():
    latents = {"in_channels": 16, "out_channels": 16, "trained_size": 64}
    medium = MMDiT(width=1536, depth=24, heads=24, table_size=192, **latents)
    # Stable Diffusion 3 medium: the tensors of its transformer's file
    assert size(shapes(medium, (1, 2, 2, 16))) == 2_084_951_104
    normalised = {"normalise": True, **latents}
    dual = tuple(range(13))
    medium = MMDiT(width=1536, depth=24, heads=24, table_size=384, dual_layers=dual, **normalised)
    # Stable Diffusion 3.5 medium: 2.47 B
    assert round(size(shapes(medium, (1, 2, 2, 16))) / 1e7) == 247
    large = shapes(
        MMDiT(width=2432, depth=38, heads=38, table_size=192, **normalised), (1, 2, 2, 16)
    )
    # Stable Diffusion 3.5 large: 8,056,627,520 trained parameters, which the positions are not
    assert size(large) - size(large["positions"]) == 8_056_627_520


def test_equal_neighbours_are_one_run_and_the_last_block_stands_alone():
    network = MMDiT(**SMALL | {"depth": 7}, dual_layers=(0, 2, 3, 6))
    assert network.runs() == [(0, 1), (1, 1), (2, 2), (4, 2)]
    params = shapes(network, (1, 4, 4, 1))
    assert params["layers_2"]["image_attention"]["qkv"]["kernel"].shape == (2, 16, 48)
    assert "image_attention" not in params["layers_4"] and "image_attention" in params["last"]
    assert "text_out" in params["layers_4"] and "text_out" not in params["last"]
    assert MMDiT(**SMALL | {"depth": 1}).runs() == []


@pytest.mark.slow
def test_scanned_runs_equal_a_loop_over_single_blocks():
    network = MMDiT(**SMALL | {"depth": 4}, normalise=True, dual_layers=(1, 2))
    params = randomised(shapes(network, (1, 4, 4, 1)))
    streams = tuple(jnp.asarray(RNG.normal(size=(2, n, 16)), jnp.float32) for n in (4, 3))
    c = jnp.asarray(RNG.normal(size=(2, 16)), jnp.float32)

    @jax.jit
    def looped(streams):
        for name, index in (("layers_0", 0), ("layers_1", 0), ("layers_1", 1)):
            one = jax.tree.map(lambda l, i=index: l[i], params[name])
            block = JointBlock(heads=2, normalise=True, dual=name == "layers_1")
            streams, _ = block.apply({"params": one}, streams, c)
        return streams

    @jax.jit
    def scanned(streams):
        for start, length in network.runs():
            run = {"params": params[f"layers_{start}"]}
            streams, _ = network.layers(start, length).apply(run, streams, c)
        return streams

    for got, want in zip(scanned(streams), looped(streams), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_text_is_a_set_and_reaches_the_image():
    network = MMDiT(**SMALL, table_size=2)
    params = {"params": randomised(shapes(network, (1, 4, 4, 1)))}
    x, noise = jnp.asarray(RNG.normal(size=(1, 4, 4, 1)), jnp.float32), jnp.ones(1)
    text = jnp.asarray(RNG.normal(size=(1, 3, 6)), jnp.float32)
    apply = jax.jit(lambda text: network.apply(params, x, noise, cond(network) | {"text": text}))
    np.testing.assert_allclose(apply(text[:, ::-1]), apply(text), rtol=1e-4, atol=1e-4)
    assert np.abs(apply(text + 1) - apply(text)).max() > 1e-2


def test_a_smaller_image_takes_the_middle_of_the_table():
    network = MMDiT(**SMALL | {"depth": 1}, patch_size=1, table_size=5)
    params = randomised(shapes(network, (1, 5, 5, 1)))
    inputs = jnp.ones(1), cond(network)
    apply = jax.jit(network.apply)
    whole = apply({"params": params}, jnp.zeros((1, 2, 3, 1)), *inputs)
    inside = jnp.zeros((5, 5, 1)).at[1:3, 1:4].set(1)  # the only places that may be looked at
    table = params["positions"].reshape(5, 5, 16)
    elsewhere = jnp.where(inside == 1, table, RNG.normal(size=table.shape)).reshape(25, 16)
    changed = {"params": params | {"positions": elsewhere}}
    np.testing.assert_array_equal(apply(changed, jnp.zeros((1, 2, 3, 1)), *inputs), whole)
    for corner in ((1, 1), (2, 3)):  # the image has no other, so each place must matter
        moved = {"params": params | {"positions": table.at[corner].multiply(-1).reshape(25, 16)}}
        assert np.abs(apply(moved, jnp.zeros((1, 2, 3, 1)), *inputs) - whole).max() > 1e-2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dual_layers": (1, 3)}, r"dual_layers names \[3\], but there are 3 blocks"),
        ({"width": 18}, "width must be divisible by 4 and by heads=2, got 18"),
        ({"table_size": 0}, "table_size and trained_size must be at least 1, got 0"),
        ({"remat": "yes"}, "MMDiT.remat must be one of"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        MMDiT(**SMALL | fields)


def test_what_does_not_fit_is_refused():
    network = MMDiT(**SMALL, table_size=2)
    with pytest.raises(UserError, match=r"2 x 3 patches is larger than MMDiT\.table_size=2"):
        shapes(network, (1, 4, 6, 1))
    inputs = jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1)
    with pytest.raises(UserError, match=r'MMDiT needs cond\["text"\]'):
        network.init(*inputs, None)
    with pytest.raises(UserError, match=r'cond\["pooled"\] of 5 features, got shape \(1, 4\)'):
        network.init(*inputs, cond(network) | {"pooled": jnp.zeros((1, 4))})
