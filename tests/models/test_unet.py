"""The U-Net's own architecture: published size, levels, skips, attention, refusals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models import UNet


def shapes(network, shape):
    inputs = jnp.zeros(shape), jnp.zeros(shape[0]), None
    return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_cifar10_network_has_the_published_number_of_parameters():
    # arXiv 2006.11239, appendix B: 35.7 million
    network = UNet(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), dropout=0.1)
    assert round(size(shapes(network, (1, 32, 32, 3))) / 1e6, 1) == 35.7


def test_celeba_hq_network_has_the_published_number_of_parameters():
    # the same place: 114 million at 256 x 256, six levels
    network = UNet(channels=128, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention=(16,))
    assert round(size(shapes(network, (1, 256, 256, 3))) / 1e6) == 114


def test_attention_sits_at_the_asked_heights_and_in_the_middle():
    network = UNet(channels=8, multipliers=(1, 2, 2), blocks=2, attention=(4,))
    names = {name for name in shapes(network, (1, 8, 8, 1)) if name.endswith("attention")}
    want = {"down1_0", "down1_1", "middle_0", "up1_0", "up1_1", "up1_2"}
    assert names == {f"{name}_attention" for name in want}


def test_decoder_takes_each_encoder_activation_once():
    # Widths into the decoder's blocks, worked out by hand: [from below] + [skip], youngest first
    network = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=())
    params = shapes(network, (1, 4, 4, 3))
    widths = {
        name: params[f"{name}_residual"]["norm_in"]["scale"].shape[0]
        for name in ("up1_0", "up1_1", "up0_0", "up0_1")
    }
    assert widths == {"up1_0": 16 + 16, "up1_1": 16 + 8, "up0_0": 16 + 8, "up0_1": 8 + 8}


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 7}, "channels must be even, got 7"),
        ({"multipliers": ()}, "multipliers must be at least 1, got 0"),
        ({"multipliers": (1, 0)}, "multipliers must be at least 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        UNet(**fields)
