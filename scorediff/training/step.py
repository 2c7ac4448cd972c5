"""One training step, a pure function of (state, batch, root key).

The step's key is fold_in(root key, step) and every example draws by its position in the global
batch, so the result depends neither on how the batch is cut (devices, accumulation) nor on whether
training was interrupted.

A step whose loss or gradient is not finite changes nothing but the counters. The whole update
stands in one `lax.cond`: selecting every leaf by `where` would read the state twice.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax import lax

from scorediff.errors import UserError
from scorediff.training.ema import EMAProfile, update_average
from scorediff.training.state import TrainState
from scorediff.types import Array, Batch, Draws, Key, LossFn, Metrics, Params

StepFn = Callable[[TrainState, Batch, Key], tuple[TrainState, Metrics]]
ValueAndGrad = Callable[[Params, Batch, Draws], tuple[tuple[Array, Metrics], Params]]


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    ema: Mapping[str, EMAProfile],
    *,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> StepFn:
    """Builds step(state, batch, root_key) -> (state, metrics).

    loss_fn: its loss and metrics are means over the examples it is given.
    accumulate: number of micro-batches the batch is worked through in, one after the other; the
      result is that of one pass up to float32 summation order, at a fraction of the memory.
    axis_name: the mapped axis under pmap, where `batch` is one device's share; otherwise None.

    Metrics are those of the loss, `loss`, `grad_norm` (before clipping), `param_norm`, and the
    counters `skipped` and `skipped_in_row` after the step.
    """
    if accumulate < 1:
        raise UserError(f"accumulate must be at least 1, got {accumulate}")
    value_and_grad = _accumulated(jax.value_and_grad(loss_fn, has_aux=True), accumulate)

    def step(state: TrainState, batch: Batch, root_key: Key) -> tuple[TrainState, Metrics]:
        draws = _draws(jax.random.fold_in(root_key, state.step), batch, axis_name)
        (loss, metrics), grads = value_and_grad(state.params, batch, draws)
        if axis_name is not None:
            loss, metrics, grads = lax.pmean((loss, metrics, grads), axis_name)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        state = lax.cond(finite, _apply(optimizer, ema), _skip, state, grads)
        return state, {
            **metrics,
            "loss": loss,
            "grad_norm": grad_norm,
            "param_norm": optax.global_norm(state.params),
            "skipped": state.skipped,
            "skipped_in_row": state.skipped_in_row,
        }

    return step


def _draws(key: Key, batch: Batch, axis_name: str | None) -> Draws:
    local = jax.tree.leaves(batch)[0].shape[0]
    index = jnp.arange(local)
    if axis_name is None:
        return Draws(key, index, local)
    return Draws(key, index + lax.axis_index(axis_name) * local, local * lax.axis_size(axis_name))


def _apply(optimizer: optax.GradientTransformation, ema: Mapping[str, EMAProfile]):
    def apply(state: TrainState, grads: Params) -> TrainState:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        done = state.step + 1 - state.skipped
        averages = {
            name: update_average(profile, state.ema[name], params, done)
            for name, profile in ema.items()
        }
        return state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=averages,
            skipped_in_row=jnp.zeros_like(state.skipped_in_row),
        )

    return apply


def _skip(state: TrainState, grads: Params) -> TrainState:
    del grads
    return state.replace(
        step=state.step + 1,
        skipped=state.skipped + 1,
        skipped_in_row=state.skipped_in_row + 1,
    )


def _accumulated(value_and_grad: ValueAndGrad, parts: int) -> ValueAndGrad:
    if parts == 1:
        return value_and_grad

    def run(params: Params, batch: Batch, draws: Draws):
        def body(total: Params, part: tuple[Batch, Array]):
            value, grads = value_and_grad(params, part[0], draws._replace(index=part[1]))
            return jax.tree.map(jnp.add, total, grads), value

        pieces = jax.tree.map(lambda x: _cut(x, parts), (batch, draws.index))
        total, values = lax.scan(body, jax.tree.map(jnp.zeros_like, params), pieces)
        value = jax.tree.map(lambda v: jnp.mean(v, axis=0), values)
        return value, jax.tree.map(lambda g: g / parts, total)

    return run


def _cut(x: Array, parts: int) -> Array:
    """[b, ...] -> [parts, b / parts, ...], every parts-th example together.

    Interleaved, so that a batch laid over devices in contiguous shares need not move between them.
    """
    if x.shape[0] % parts:
        raise UserError(f"accumulate={parts} does not divide the batch of {x.shape[0]} examples")
    return jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
