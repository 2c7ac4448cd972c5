"""ControlNet: residuals that a U-Net takes, none at first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models.controlnet import Controlled, ControlNet, guess_scales
from scorediff.models.text_unet import TextUNet
from tests.models.small_text_unet import HINT, HINTED, NOISE, TEXT, TRUNK, X

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

COND = TEXT | HINT
SMALL = ControlNet(**TRUNK, **HINTED)


@pytest.fixture(scope="module")
def residuals():
    """(variables, cond, scale) -> the residuals."""
    return jax.jit(lambda p, cond, scale: SMALL.apply(p, X, NOISE, cond, scale=scale))


@pytest.mark.slow
def test_residuals_fit_the_activations_and_scale_multiplies_them(residuals):
    shapes = jax.eval_shape(SMALL.init, jax.random.key(0), X, NOISE, COND)
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), s.dtype), shapes)
    one, half = residuals(drawn, COND, 1.0), residuals(drawn, COND, 0.5)
    assert [r.shape for r in one["skips"]] == [(3, 4, 4, 4)] * 2 + [(3, 2, 2, 4), (3, 2, 2, 8)]
    assert one["middle"].shape == (3, 2, 2, 8)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(half), strict=True):
        np.testing.assert_allclose(b, a / 2, rtol=1e-5)
    brighter = residuals(drawn, COND | {"hint": HINT["hint"] + 1}, 1.0)
    assert np.abs(brighter["skips"][0] - one["skips"][0]).max() > 1e-2


@pytest.mark.slow
def test_a_fresh_one_changes_nothing(residuals):
    fresh = jax.jit(SMALL.init)(jax.random.key(0), X, NOISE, COND)
    assert not any(r.any() for r in jax.tree.leaves(residuals(fresh, COND, 1.0)))


def test_guess_mode_weighs_in_the_logarithm():
    np.testing.assert_allclose(guess_scales(4), [0.1, 10 ** (-2 / 3), 10 ** (-1 / 3), 1], rtol=1e-6)


def test_another_trunk_is_refused():
    other = TextUNet(**TRUNK | {"channels": (8, 8)})
    with pytest.raises(UserError, match=r"another U-Net: channels are \(4, 8\) there and \(8, 8\)"):
        Controlled(network=other, control=SMALL)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (TEXT, r'needs cond\["hint"\]'),
        (TEXT | {"hint": jnp.zeros((3, 4, 4, 3))}, r"\[b, 8, 8, 3\] beside x of 4 x 4, got .*4, 4"),
    ],
)
def test_a_picture_of_another_size_is_refused(cond, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(SMALL.init, jax.random.key(0), X, NOISE, cond)


@pytest.mark.parametrize("fields", [{"hint_order": "brg"}, {"hint_channels": ()}])
def test_bad_fields_are_refused_by_name(fields):
    with pytest.raises(UserError, match=f"ControlNet.{next(iter(fields))} must be"):
        ControlNet(**TRUNK | fields)
