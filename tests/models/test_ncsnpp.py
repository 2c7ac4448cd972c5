"""DDPM++ and NCSN++: the condition, the filtered convolution, the pyramids, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models.ncsnpp import NCSNpp
from scorediff.models.ncsnpp_parts import FilteredHalving, NoiseCondition
from tests.models.small_ncsnpp import NETWORKS

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SMALL = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attend_down": (False, True)}


def shapes(network, side=8):
    example = jnp.zeros((1, side, side, 3)), jnp.ones(1)
    return jax.eval_shape(network.init, KEY, *example)["params"]


def numpy_filtered_halving(x, taps, kernel):
    """Every output from the definition: filter x beyond its border, then window 3, stride 2."""
    taps = np.outer(taps, taps) / np.sum(taps) ** 2
    n, size = len(taps), x.shape[0]
    padded = np.pad(x, (1 + (n - 1) // 2,) * 2)
    smooth = [
        [(padded[i : i + n, j : j + n] * taps).sum() for j in range(size + 1)]
        for i in range(size + 1)
    ]
    half = range(0, size, 2)
    window = [[np.array(smooth)[i : i + 3, j : j + 3] for j in half] for i in half]
    return np.einsum("ijhw,hw->ij", window, kernel)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_filtered_halving_agrees_with_its_definition(taps):
    x, kernel = RNG.normal(size=(6, 6)), RNG.normal(size=(3, 3))
    params = {"conv": {"kernel": kernel[:, :, None, None], "bias": np.zeros(1)}}
    halve = FilteredHalving(features=1, taps=taps)
    got = halve.apply({"params": params}, jnp.asarray(x, jnp.float32)[None, :, :, None])
    np.testing.assert_allclose(got[0, :, :, 0], numpy_filtered_halving(x, taps, kernel), atol=1e-5)


def condition(**fields):
    network = NoiseCondition(embedding="positional", features=4, width=5, **fields)
    noise = jnp.array([0.0, 0.0, 0.0])
    params = jax.eval_shape(network.init, KEY, noise, {})["params"]
    params = jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape), jnp.float32), params)
    return params, lambda cond: np.asarray(network.apply({"params": params}, noise, cond))


def test_class_and_augmentation_enter_before_the_perceptron():
    params, run = condition(num_classes=3, augment=2)
    augment = jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)
    got = run({"label": jnp.array([0, 2, 3]), "augment": augment})
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    one_hot = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0]]) * np.sqrt(3)
    waves = np.array([0, 0, 1, 1]) + np.asarray(augment) @ p["augment"]["kernel"]
    waves = waves + one_hot @ p["label"]["kernel"] + p["label"]["bias"]
    h = waves @ p["noise_in"]["kernel"] + p["noise_in"]["bias"]
    want = h / (1 + np.exp(-h)) @ p["noise_out"]["kernel"] + p["noise_out"]["bias"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("class_table", [False, True])
def test_no_label_is_the_null_class_and_an_unknown_one_is_no_number(class_table):
    _, run = condition(num_classes=3, class_table=class_table)
    np.testing.assert_array_equal(run({}), run({"label": jnp.array([3, 3, 3])}))
    unknown = run({"label": jnp.array([4, 0, -1])})
    assert np.isnan(unknown[[0, 2]]).all() and np.isfinite(unknown[1]).all()


@pytest.mark.slow
def test_output_is_divided_by_the_noise_level():
    build, x, noise, cond = NETWORKS["ncsnpp"]
    params = jax.tree.map(
        lambda a: jnp.asarray(0.3 * RNG.normal(size=a.shape), a.dtype),
        jax.eval_shape(build().init, KEY, x, noise, cond),
    )
    divided, whole = (
        jax.jit(build(divide_by_noise=d).apply)(params, x, noise, cond) for d in (True, False)
    )
    assert np.abs(whole).max() > 1e-2
    np.testing.assert_allclose(divided * noise[:, None, None, None], whole, rtol=1e-5)


def test_pyramids_have_their_parameters_at_every_level():
    inputs = {"skip": (3, 8), "residual": (3, 3, 3, 8)}  # a matrix; a convolution
    for kind, shape in inputs.items():
        params = shapes(NCSNpp(**SMALL, progressive_in=kind))["down1_pyramid"]
        assert jax.tree.leaves(params.get("conv", params))[-1].shape == shape
    skip = shapes(NCSNpp(**SMALL, progressive_out="skip"))
    assert skip["up1_pyramid"]["kernel"].shape == (3, 3, 16, 3)
    assert skip["conv_out"]["kernel"].shape == (3, 3, 8, 3)
    residual = shapes(NCSNpp(**SMALL, progressive_out="residual"))
    assert residual["up0_pyramid"]["kernel"].shape == (3, 3, 16, 8)


def test_decoder_attends_after_its_last_block_only():
    names = {n for n in shapes(NCSNpp(**SMALL)) if n.endswith("attention")}
    assert names == {"down1_0_attention", "middle_0_attention", "up1_attention"}
    names = {n for n in shapes(NCSNpp(**SMALL, attend_up=(True, False))) if n.endswith("attention")}
    assert names == {"down1_0_attention", "middle_0_attention", "up0_attention"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding": "sine"}, "NCSNpp.embedding must be one of .*got 'sine'"),
        ({"progressive_in": "yes"}, "NCSNpp.progressive_in must be one of .*got 'yes'"),
        ({"progressive_out": "yes"}, "NCSNpp.progressive_out must be one of"),
        ({"attend_down": (True,)}, r"attend_up need 3 values, one a level, got \(True,\)"),
        ({"dropout": 1.0}, r"NCSNpp.dropout must be in \[0, 1\), got 1.0"),
        ({"channels": 0}, "NCSNpp.channels and blocks must be at least 1"),
        ({"head_width": 0}, "NCSNpp.head_width must be at least 1, got 0"),
        ({"act": "tanh"}, "NCSNpp.act must be one of"),
        ({"remat": "yes"}, "remat must be one of"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(UserError, match=message):
        NCSNpp(**fields)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"6 x 6 cannot be halved .* divisible by 4"):
        shapes(NCSNpp(), side=6)
    with pytest.raises(UserError, match="in_channels is 1, but x has 3"):
        shapes(NCSNpp(in_channels=1))
    with pytest.raises(UserError, match="head_width=24 does not divide a width of 16"):
        shapes(NCSNpp(**SMALL, head_width=24))
