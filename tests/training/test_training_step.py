"""The pure step: accumulation, the guard, and what the counters say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.training.step import make_step
from tests.training.training_toy import BATCH_SIZE, EMA, OPTIMIZER, batch_at, init_state, loss_fn

KEY = jax.random.key(7)


@functools.cache
def toy_step(accumulate=1):
    return jax.jit(make_step(loss_fn, OPTIMIZER, EMA, accumulate=accumulate))


def batch(step, poison=1.0):
    return {**batch_at(step), "poison": np.full(BATCH_SIZE, poison, np.float32)}


def run(step, poisons):
    state, rows = init_state(jax.random.key(0)), []
    for i, poison in enumerate(poisons):
        state, metrics = step(state, batch(i, poison), KEY)
        rows.append(metrics)
    return state, rows


def content(state):
    return {"params": state.params, "opt_state": state.opt_state, "ema": state.ema}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_equals_the_whole_batch(accumulate):
    """The micro-batches are interleaved and draw by global index: same noise, same times."""
    plain, one = run(toy_step(), [1.0] * 4)
    cut, parts = run(toy_step(accumulate), [1.0] * 4)
    for a, b in zip(one, parts, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-5)
        np.testing.assert_allclose(a["size"], b["size"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6),
        plain.params,
        cut.params,
    )


def test_accumulation_must_divide_the_batch():
    with pytest.raises(UserError, match="accumulate=3 does not divide the batch of 16"):
        run(make_step(loss_fn, OPTIMIZER, EMA, accumulate=3), [1.0])


def test_loss_and_gradient_are_those_of_the_loss_function():
    from scorediff.types import Draws

    state = init_state(jax.random.key(0))
    draws = Draws(jax.random.fold_in(KEY, 0), jnp.arange(BATCH_SIZE), BATCH_SIZE)
    (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch(0), draws)
    _, metrics = toy_step()(state, batch(0), KEY)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["size"], aux["size"], rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_counters(bad):
    before, _ = run(toy_step(), [1.0, 1.0])
    after, metrics = toy_step()(before, batch(2, bad), KEY)
    assert_same(content(before), content(after))
    assert (int(after.step), int(after.skipped), int(after.skipped_in_row)) == (3, 1, 1)
    assert not np.isfinite(metrics["loss"])


def test_infinite_gradient_with_finite_loss_is_skipped():
    def loss(params, batch, draws):
        return jnp.sqrt(jnp.sum(jnp.square(params["w"]))), {}  # value 0, gradient NaN at w = 0

    from scorediff.training.state import TrainState

    state = TrainState.create({"w": jnp.zeros(3)}, OPTIMIZER, EMA)
    after, metrics = make_step(loss, OPTIMIZER, EMA)(state, batch(0), KEY)
    assert float(metrics["loss"]) == 0.0
    assert int(after.skipped) == 1
    assert_same(content(state), content(after))


def test_counters_of_skipped_steps():
    nan = np.nan
    state, rows = run(toy_step(), [1, nan, nan, 1, nan, 1])
    assert [int(r["skipped_in_row"]) for r in rows] == [0, 1, 2, 0, 1, 0]
    assert (int(state.step), int(state.skipped)) == (6, 3)


def test_averages_count_applied_updates_only():
    """A first step that is skipped must not give the initial parameters a weight."""
    skipped, _ = run(toy_step(), [np.nan, 1.0])
    jax.tree.map(
        lambda p, e: np.testing.assert_allclose(p, e, rtol=1e-6, atol=1e-8),
        skipped.params,
        skipped.ema["power"],
    )
