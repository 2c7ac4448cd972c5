"""A U-Net with levels of NCSN++: what it is made of, its pyramids, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models import MixedUNet, UNet
from scorediff.models.resample import downsample, upsample

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

X, NOISE = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32), jnp.ones(2)
SIZES = {"channels": 8, "multipliers": (1, 2, 2), "blocks": 1, "attention": ()}
NONE = (False, False, False)


def build(skip_down, skip_up, attend_down=NONE, attend_up=NONE):
    sides = {"attend_down": attend_down, "attend_up": attend_up}
    return MixedUNet(**SIZES, **sides, skip_down=skip_down, skip_up=skip_up)


def shapes(network):
    return jax.eval_shape(network.init, jax.random.key(0), X, NOISE)["params"]


def zeros(network):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes(network))


def test_without_levels_of_ncsnpp_it_is_the_unet():
    network, plain = build(NONE, NONE), UNet(**SIZES)
    assert jax.tree.map(jnp.shape, shapes(network)) == jax.tree.map(jnp.shape, shapes(plain))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape), shapes(plain))
    answers = [jax.jit(n.apply)({"params": params}, X, NOISE) for n in (network, plain)]
    np.testing.assert_array_equal(*answers)


def test_each_side_has_its_pyramid_where_its_levels_are_those_of_ncsnpp():
    names = set(shapes(build((True, False, True), (True, True, False))))
    pyramids = {name for name in names if "pyramid" in name}
    assert pyramids == {"down1_pyramid", "up1_pyramid", "up1_pyramid_norm"}


def test_attention_of_the_decoder_stands_behind_the_last_block_of_such_a_level_only():
    network = MixedUNet(
        **SIZES | {"multipliers": (4, 4, 4)},
        skip_up=(True, True, False),
        skip_down=(True, True, True),
        attend_down=NONE,
        attend_up=(False, True, True),
    )
    names = {n for n in shapes(network) if n.startswith("up") and n.endswith("attention")}
    assert names == {"up1_attention", "up2_0_attention", "up2_1_attention"}


def test_the_decoders_pyramid_is_filtered_up_to_the_output():
    # With all else zero the output is what the coarsest level's biases add, on the way up.
    network = build(NONE, (True, True, True))
    params = zeros(network)
    params["up2_pyramid"]["bias"] += np.array([1.0, 2.0, 3.0], np.float32)
    got = network.apply({"params": params}, X, NOISE)
    part = jnp.broadcast_to(jnp.array([1.0, 2.0, 3.0]), (2, 2, 2, 3))
    want = upsample(upsample(part, (1, 3, 3, 1)), (1, 3, 3, 1))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_the_encoders_pyramid_is_the_filtered_image():
    network = build((True, True, False), NONE)
    params = zeros(network)
    params["down2_pyramid"]["kernel"][:3, :3] = np.eye(3)
    _, kept = network.apply(
        {"params": params}, X, NOISE, capture_intermediates=lambda m, _: m.name == "down2_pyramid"
    )
    (got,) = kept["intermediates"]["down2_pyramid"]["__call__"]
    want = downsample(downsample(X, (1, 3, 3, 1)), (1, 3, 3, 1))
    np.testing.assert_allclose(got[..., :3], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("skip_down", "skip_up", "message"),
    [
        ((False, True, False), NONE, "MixedUNet.skip_down: a skip level below another kind"),
        (NONE, (False, True, True), "MixedUNet.skip_up: a skip level below another kind"),
        ((True,), NONE, r"MixedUNet.skip_down needs 3 values, one a level, got \(True,\)"),
    ],
)
def test_levels_that_cannot_be_together_are_refused(skip_down, skip_up, message):
    with pytest.raises(UserError, match=message):
        build(skip_down, skip_up)
