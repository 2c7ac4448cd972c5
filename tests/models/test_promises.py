"""What every denoising network here promises, asked of a small one of each family and option.

Each family lists its own in small_*.py: name -> (constructor, x, noise, cond).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import (
    small_backbone,
    small_ncsnpp,
    small_text_unet,
    small_transformers,
    small_unet,
)

FAMILIES = (small_backbone, small_ncsnpp, small_text_unet, small_transformers, small_unet)
NETWORKS = {name: one for family in FAMILIES for name, one in family.NETWORKS.items()}
# Without a gradient by design: drawn once and never trained, and the text's queries of SD3's last
# block, whose answers the published class throws away.
FIXED = ("frequencies", "phases", "['last']['text_norm_q']")

QUICK = ("backbone_signal", "mmdit")  # compiled in every test run
every = pytest.mark.parametrize("name", sorted(NETWORKS))


def arguments(name):
    _, x, noise, cond = NETWORKS[name]
    return x, noise, cond


def draw(name, **fields):
    """Parameters without zeros, of the size that keeps activations near 1."""
    rng = np.random.default_rng(1)

    def one(shape):
        fan = np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 4
        return jnp.asarray(rng.normal(size=shape.shape) / np.sqrt(fan), shape.dtype)

    network = NETWORKS[name][0](**fields)
    return jax.tree.map(one, jax.eval_shape(network.init, jax.random.key(0), *arguments(name)))


@functools.cache
def loss_and_gradient(name, remat="none"):
    network = NETWORKS[name][0](remat=remat)

    def loss(params):
        y = network.apply(params, *arguments(name))
        return (y**2).mean(), y

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(draw(name))


@every
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_and_output_are_float32(name, dtype):
    init = NETWORKS[name][0](dtype=dtype).init_with_output
    y, params = jax.eval_shape(init, jax.random.key(0), *arguments(name))
    assert y.dtype == jnp.float32 and y.shape[:-1] == arguments(name)[0].shape[:-1]
    assert {l.dtype for l in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in sorted(NETWORKS)],
)
def test_a_fresh_network_answers_zero(name):
    y, _ = jax.jit(NETWORKS[name][0]().init_with_output)(jax.random.key(0), *arguments(name))
    assert not y.any()


@every
@pytest.mark.slow
def test_every_parameter_receives_a_finite_gradient(name):
    _, gradients = loss_and_gradient(name)
    paths = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
    ]
    bad = [p for p, leaf in paths if not np.isfinite(leaf).all()]
    dead = [p for p, leaf in paths if not any(f in p for f in FIXED) and not np.abs(leaf).max() > 0]
    assert (bad, dead) == ([], [])


@every
@pytest.mark.slow
def test_checkpointing_changes_neither_output_nor_gradient(name):
    (loss, _), gradients = loss_and_gradient(name)
    (loss_remat, _), gradients_remat = loss_and_gradient(name, "full")
    assert float(loss_remat) == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradients_remat), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(np.abs(a).max() + 1))


@every
@pytest.mark.slow
def test_bfloat16_is_near_float32(name):
    (_, exact), _ = loss_and_gradient(name)
    coarse = jax.jit(NETWORKS[name][0](dtype="bfloat16").apply)(draw(name), *arguments(name))
    error = jnp.sqrt(((coarse - exact) ** 2).mean() / (exact**2).mean())
    assert 1e-5 < error < 0.05  # it is another arithmetic, but the same function
