"""The weight-decay mask and the two chains that a config can name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scorediff.training.optimizers import adamw, chain, decay_mask

PARAMS = {
    "Embed_0": {"embedding": jnp.ones((5, 4))},
    "Dense_0": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
    "GroupNorm_0": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
    "layers": {"kernel": jnp.ones((3, 4, 4)), "bias": jnp.ones((3, 4)), "scale": jnp.ones((3, 4))},
    "pos_embed": jnp.ones((1, 9, 4)),
}


def test_only_kernels_decay_even_where_layers_are_stacked():
    mask = decay_mask(PARAMS)
    decayed = {jax.tree_util.keystr(p) for p, on in jax.tree.leaves_with_path(mask) if on}
    assert decayed == {"['Dense_0']['kernel']", "['layers']['kernel']"}


def test_without_gradient_only_the_decay_remains():
    optimizer = adamw(learning_rate=0.1, weight_decay=0.5)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["Dense_0"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["Dense_0"]["bias"], 0)
    np.testing.assert_array_equal(updates["Embed_0"]["embedding"], 0)


def test_first_step_moves_by_the_learning_rate_of_the_schedule():
    schedule = optax.linear_schedule(0.0, 1.0, 10)
    optimizer = adamw(learning_rate=schedule)
    params = {"w": jnp.zeros(3)}
    state = optimizer.init(params)
    for step in range(3):
        updates, state = optimizer.update({"w": jnp.array([1.0, -2.0, 3.0])}, state, params)
        # Constant gradients: Adam's ratio is their sign.
        np.testing.assert_allclose(
            updates["w"], -step / 10 * np.array([1, -1, 1]), rtol=1e-4, atol=1e-8
        )


def test_clipping_comes_before_adam():
    gradient = {"w": jnp.array([300.0, 400.0])}
    eps = 1.0  # makes Adam's step depend on the size of the gradient
    optimizer = adamw(learning_rate=1.0, eps=eps, clip_norm=1.0)
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    clipped = np.array([0.6, 0.8])
    np.testing.assert_allclose(updates["w"], -clipped / (clipped + eps), rtol=1e-5)


def test_chain_takes_one_tuple():
    optimizer = chain(transforms=(optax.clip(0.5), optax.sgd(2.0)))
    gradient = {"w": jnp.array([3.0, 0.25])}
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_allclose(updates["w"], [-1.0, -0.5])
