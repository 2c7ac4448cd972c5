"""LoRA on parameter trees: what is added, where, and that it can be taken out again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from scorediff.errors import UserError
from scorediff.models.lora import Adapter, fresh, merge, unmerge

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


PARAMS = {
    "conv": {"kernel": draw(3, 3, 4, 5), "bias": draw(5)},
    "layers": {"qkv": {"kernel": draw(2, 4, 12)}},
}
CONV = Adapter(down=draw(3, 3, 4, 2), up=draw(2, 5), path="conv/kernel", scale=0.5)
KEYS = Adapter(  # the keys of the second layer
    down=draw(4, 2), up=draw(2, 4), path="layers/qkv/kernel", scale=2.0, layer=1, start=4
)


def test_a_merged_convolution_is_two_convolutions_more():
    x = draw(1, 6, 7, 4)
    wide, narrow = nn.Conv(5, (3, 3), strides=2), nn.Conv(2, (3, 3), strides=2, use_bias=False)
    want = wide.apply({"params": PARAMS["conv"]}, x) + 3 * 0.5 * (
        narrow.apply({"params": {"kernel": CONV.down}}, x) @ CONV.up
    )
    got = wide.apply({"params": merge(PARAMS, [CONV], scale=3.0)["conv"]}, x)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_only_the_meant_layer_and_columns_change():
    got = merge(PARAMS, [KEYS])["layers"]["qkv"]["kernel"]
    want = PARAMS["layers"]["qkv"]["kernel"].copy()
    want[1, :, 4:8] += 2.0 * KEYS.down @ KEYS.up
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_array_equal(got[0], PARAMS["layers"]["qkv"]["kernel"][0])
    np.testing.assert_array_equal(got[1, :, :4], want[1, :, :4])


def test_adapters_of_one_kernel_add_up():
    twice = merge(PARAMS, [KEYS, KEYS])["layers"]["qkv"]["kernel"]
    double = merge(PARAMS, [KEYS], scale=2.0)["layers"]["qkv"]["kernel"]
    np.testing.assert_allclose(twice, double, atol=1e-6)


def test_unmerge_is_the_inverse():
    back = unmerge(merge(PARAMS, [CONV, KEYS], scale=0.7), [CONV, KEYS], scale=0.7)
    for got, want in zip(jax.tree.leaves(back), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6)


def test_half_precision_stays_and_is_rounded_once():
    halved = jax.tree.map(lambda a: a.astype(np.float16), PARAMS)
    got = merge(halved, [CONV])["conv"]["kernel"]
    exact = halved["conv"]["kernel"].astype(np.float64) + 0.5 * np.einsum(
        "hwir,ro->hwio", CONV.down.astype(np.float64), CONV.up
    )
    assert got.dtype == jnp.float16
    # Half a unit in the last place, and a float32 sum that may lie on the other side of the middle.
    assert (np.abs(got - exact) <= 0.51 * np.spacing(np.abs(exact).astype(np.float16))).all()


def test_fresh_adapters_change_nothing_and_learn():
    paths = ["conv/kernel", "layers/qkv/kernel"]
    adapters = fresh(PARAMS, paths, rank=2, key=jax.random.key(0), scale=1.5)
    assert [(a.path, a.layer) for a in adapters] == [
        ("conv/kernel", None),
        ("layers/qkv/kernel", 0),
        ("layers/qkv/kernel", 1),
    ]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), merge(PARAMS, adapters), PARAMS)
    assert all(jax.tree.leaves(same))

    def loss(adapters):
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(merge(PARAMS, adapters)))

    for adapter, gradient in zip(adapters, jax.grad(loss)(adapters), strict=True):
        kernel = PARAMS["conv"]["kernel"] if adapter.layer is None else None
        kernel = PARAMS["layers"]["qkv"]["kernel"][adapter.layer] if kernel is None else kernel
        *_, rank = adapter.down.shape
        want = 1.5 * adapter.down.reshape(-1, rank).T @ (2 * kernel).reshape(-1, kernel.shape[-1])
        np.testing.assert_allclose(gradient.up, want, atol=1e-4)
        assert not gradient.down.any()  # B is zero


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (CONV.replace(path="dense/kernel"), "for dense/kernel, which this network does not have"),
        (CONV.replace(up=draw(2, 6)), r"does not fit conv/kernel, which has \(3, 3, 4, 5\) there"),
        (KEYS.replace(start=10), r"does not fit layers/qkv/kernel, which has \(4, 2\) there"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(adapter, message):
    with pytest.raises(UserError, match=message):
        merge(PARAMS, [adapter])


def test_no_adapter_is_made_for_a_bias():
    with pytest.raises(UserError, match="conv/bias: it is no kernel"):
        fresh(PARAMS, ["conv/bias"], rank=2, key=jax.random.key(0))
