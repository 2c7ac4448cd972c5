"""The U-Net's own architecture: published size, levels, skips, attention, refusals."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models import UNet
from scorediff.models.embeddings import Conditioning, FourierFeatures


def shapes(network, shape):
    inputs = jnp.zeros(shape), jnp.zeros(shape[0]), None
    return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("multipliers", "side", "count"),
    [
        # arXiv 2006.11239, appendix B: 35.7 million for CIFAR-10, 114 million at 256 x 256; to the
        # last digit as the authors' released checkpoints have them (CIFAR-10, LSUN)
        ((1, 2, 2, 2), 32, 35_746_307),
        ((1, 1, 2, 2, 4, 4), 256, 113_673_219),
        # the same code's network for CelebA at 64 x 64, of DDIM (arXiv 2010.02502)
        ((1, 2, 2, 2, 4), 64, 78_700_803),
    ],
)
def test_ddpm_networks_have_the_published_number_of_parameters(multipliers, side, count):
    network = UNet(channels=128, multipliers=multipliers, blocks=2, attention=(16,))
    assert size(shapes(network, (1, side, side, 3))) == count


def test_attention_sits_at_the_asked_heights_and_in_the_middle():
    network = UNet(channels=8, multipliers=(1, 2, 2), blocks=2, attention=(4,))
    names = {name for name in shapes(network, (1, 8, 8, 1)) if name.endswith("attention")}
    want = {"down1_0", "down1_1", "middle_0", "up1_0", "up1_1", "up1_2"}
    assert names == {f"{name}_attention" for name in want}


def test_attention_by_level_sits_on_each_side_by_itself():
    network = UNet(
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(),
        attend_down=(True, False),
        attend_up=(False, True),
        middle="blocks",
    )
    names = {name for name in shapes(network, (1, 8, 8, 1)) if name.endswith("attention")}
    assert names == {"down0_0_attention", "up1_0_attention", "up1_1_attention"}


def test_steps_between_levels_are_convolutions_blocks_or_nothing():
    network = UNet(
        channels=8,
        multipliers=(1, 1, 1, 1),
        blocks=1,
        attention=(),
        halve=("conv", "block", "pool"),
        double=("pool", "conv", "block"),
        middle="none",
    )
    params = shapes(network, (1, 8, 8, 1))
    steps = {
        name: "conv_in" in params[name] for name in params if name.endswith(("halve", "double"))
    }
    assert steps == {
        "down1_halve": False,
        "down2_halve": True,
        "up2_double": False,
        "up3_double": True,
    }
    assert not any(name.startswith("middle") for name in params)


def test_heads_are_as_many_as_fit_of_their_width():
    network = UNet(head_width=64)
    assert [network.heads_of(width) for width in (32, 64, 96, 192, 256)] == [1, 1, 1, 3, 4]
    assert UNet(heads=4).heads_of(192) == 4


SMALL = functools.partial(UNet, channels=4, multipliers=(1, 2), blocks=1)
FLAT = UNet(channels=4, multipliers=(1,), blocks=1, attention=(), middle="none")


@functools.cache
def applied(network):
    return jax.jit(network.apply)


def randomised(network, shape):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda l: 0.3 * rng.normal(size=l.shape), shapes(network, shape))


@pytest.mark.parametrize("shape", [(1, 4, 2), pytest.param((1, 4, 4, 2), marks=pytest.mark.slow)])
def test_one_more_axis_with_the_same_values_along_it_changes_nothing(x64, shape):
    # With the kernels' outer taps along the new axis at zero, every slice is treated alike; means
    # and attention do not see repetitions
    network = SMALL(
        attention=(),
        attend_down=(False, True),
        attend_up=(False, False),
        heads=2,
        middle="none",
        dtype="float64",
    )
    params = randomised(network, shape)
    x = np.random.default_rng(1).normal(size=shape)
    want = applied(network)({"params": params}, x, jnp.ones(1))

    def grown(kernel):
        if kernel.ndim != len(shape):  # a convolution has its window, in and out
            return kernel
        return np.stack([np.zeros_like(kernel), kernel, np.zeros_like(kernel)])

    repeated = np.repeat(x[:, None], 2, axis=1)
    y = applied(network)({"params": jax.tree.map(grown, params)}, repeated, jnp.ones(1))
    np.testing.assert_allclose(y, np.repeat(want[:, None], 2, axis=1), atol=1e-11)
    assert np.abs(want).max() > 0.1


def test_centred_input_is_the_same_network_of_the_image_in_minus_one_to_one():
    shape = (1, 4, 4, 2)
    plain = FLAT
    params = {"params": jax.tree.map(jnp.float32, randomised(plain, shape))}
    x = np.random.default_rng(1).uniform(size=shape).astype(np.float32)
    y = applied(plain.clone(centre_input=True))(params, x, jnp.ones(1))
    np.testing.assert_allclose(y, applied(plain)(params, 2 * x - 1, jnp.ones(1)), atol=1e-5)


def test_fourier_network_answers_over_the_noise_level():
    network, sigma = FLAT.clone(fourier=True), jnp.array([0.1, 50.0])
    params = jax.tree.map(lambda l: jnp.zeros(l.shape), shapes(network, (2, 2, 2, 1)))
    params["conv_out"]["bias"] += 1.0
    y = applied(network)({"params": params}, jnp.zeros((2, 2, 2, 1)), sigma)
    np.testing.assert_allclose(y[:, 0, 0, 0], 1 / sigma, rtol=1e-6)


def test_fourier_features_equal_numpy_and_are_not_trained():
    condition = Conditioning(features=3, width=2, fourier=True)
    sigma = jnp.array([0.01, 1.0, 30.0])
    params = condition.init(jax.random.key(0), sigma, None)
    w = np.asarray(params["params"]["fourier"]["frequencies"], np.float64)
    phase = 2 * np.pi * np.log(np.asarray(sigma, np.float64))[:, None] * w
    features = FourierFeatures(features=3)
    got = features.apply({"params": params["params"]["fourier"]}, jnp.log(sigma))
    # The phases are hundreds of radians, known to seven digits
    np.testing.assert_allclose(got, np.hstack([np.sin(phase), np.cos(phase)]), atol=2e-4)
    gradient = jax.grad(lambda p: condition.apply(p, sigma, None).sum())(params)["params"]
    assert not gradient["fourier"]["frequencies"].any() and gradient["noise_in"]["kernel"].any()


def class_parts(null_class, label):
    """What the class adds to the condition, and the table."""
    condition = Conditioning(features=2, width=3, num_classes=2, null_class=null_class)
    noise, cond = jnp.ones(len(label)), {"label": jnp.asarray(label)}
    params = condition.init(jax.random.key(0), noise, cond)
    table = params["params"]["label"]["embedding"]
    silent = jax.tree.map(jnp.zeros_like, params)
    silent["params"]["label"]["embedding"] = table
    return condition.apply(silent, noise, cond), table, (condition, silent)


@pytest.mark.parametrize("null_class", ["learned", "zero", "refused"])
def test_classes_are_rows_of_the_table_and_the_null_class_is_as_asked(null_class):
    added, table, (condition, params) = class_parts(null_class, [0, 1, 2, 3])
    assert table.shape == (2 + (null_class == "learned"), 3)
    np.testing.assert_allclose(added[:2], table[:2], rtol=1e-6)
    assert np.isnan(added[3]).all()
    if null_class == "refused":
        assert np.isnan(added[2]).all()
        with pytest.raises(UserError, match="no null class"):
            condition.apply(params, jnp.ones(1), None)
        return
    null = table[2] if null_class == "learned" else np.zeros(3)
    np.testing.assert_allclose(added[2], null, rtol=1e-6)
    np.testing.assert_allclose(condition.apply(params, jnp.ones(1), None)[0], null, rtol=1e-6)


def test_decoder_takes_each_encoder_activation_once():
    # Widths into the decoder's blocks, worked out by hand: [from below] + [skip], youngest first
    network = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=())
    params = shapes(network, (1, 4, 4, 3))
    widths = {
        name: params[f"{name}_residual"]["norm_in"]["scale"].shape[0]
        for name in ("up1_0", "up1_1", "up0_0", "up0_1")
    }
    assert widths == {"up1_0": 16 + 16, "up1_1": 16 + 8, "up0_0": 16 + 8, "up0_1": 8 + 8}


@pytest.mark.slow
def test_dropout_is_active_in_training_only():
    network = UNet(channels=4, multipliers=(1,), blocks=1, attention=(), dropout=0.5)
    x, noise = jnp.ones((1, 4, 4, 1)), jnp.ones(1)
    rng = np.random.default_rng(0)
    params = jax.eval_shape(network.init, jax.random.key(0), x, noise)
    params = jax.tree.map(lambda l: 0.3 * rng.normal(size=l.shape).astype(l.dtype), params)

    @jax.jit
    def train(key):
        return network.apply(params, x, noise, train=True, rngs={"dropout": key})

    quiet = jax.jit(network.apply)(params, x, noise)  # needs no key, so it can draw nothing
    one, two = train(jax.random.key(1)), train(jax.random.key(2))
    assert np.abs(one - two).max() > 1e-3 and np.abs(one - quiet).max() > 1e-3
    np.testing.assert_array_equal(one, train(jax.random.key(1)))


@pytest.mark.parametrize("shape", [(1, 6, 8, 1), (1, 8, 10, 1)])
def test_sizes_that_do_not_halve_are_refused_by_name(shape):
    with pytest.raises(UserError, match=f"{shape[1]} x {shape[2]} .*divisible by 4"):
        shapes(UNet(channels=8, attention=()), shape)


def test_attention_at_a_height_that_never_occurs_is_refused():
    with pytest.raises(UserError, match=r"\[16\].* 8 x 8 .*\[8, 4, 2\]"):
        shapes(UNet(channels=8), (1, 8, 8, 1))


def test_channels_other_than_the_networks_are_refused():
    with pytest.raises(UserError, match="in_channels is 3, but x has 1"):
        shapes(SMALL(attention=(), in_channels=3), (1, 4, 4, 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 7}, "channels must be even, got 7"),
        ({"multipliers": ()}, "multipliers must be at least 1, got 0"),
        ({"multipliers": (1, 0)}, "multipliers must be at least 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"multipliers": (1, 1.01)}, r"\[64, 64.64\] channels, not whole"),
        ({"halve": "stride"}, "UNet.halve must be one of conv, block, pool, got 'stride'"),
        ({"double": ("conv",)}, "UNet.double needs 2 values"),
        ({"attend_down": (True,)}, r"must both have 3 values, .*got \(True,\) and None"),
        ({"middle": "mid"}, "UNet.middle must be one of"),
        ({"head_width": 0}, "UNet.head_width must be at least 1, got 0"),
        ({"null_class": "no"}, "UNet.null_class must be one of"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        UNet(**fields)
