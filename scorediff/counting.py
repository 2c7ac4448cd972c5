"""NFE, counted where the network is called.

`record` is called beside every network evaluation while a program is traced. `counted(function)`
returns what the function returns and how many evaluations one of its calls made, guided pairs and
correctors included. A doubled batch counts twice. The count is a Python number, or a traced one
where it depends on t (guidance in an interval).

A traced count must leave a branch as one of its results: that is what `either` is for. Compile
around the counting, not within: a function compiled by itself records only while it is traced, and
not when it is called again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scorediff.errors import UserError

_totals: list[list[Any]] = []


def record(batch: int) -> None:
    """One network evaluation on a batch of this size."""
    if _totals:
        _totals[-1].append(batch)


def counted(function: Callable[[], Any], *, batch: int) -> tuple[Any, Any]:
    """(result, evaluations per sample) of a call whose samples are `batch` in number.

    A function that records nothing, as an exact formula may, counts as one evaluation.
    """
    result, count = measured(function, batch)
    record(count * batch)
    return result, count


def either(
    condition: jax.Array, first: Callable[[], Any], second: Callable[[], Any], *, batch: int
) -> Any:
    """`lax.cond` on a scalar condition: only the branch that is run costs time, and only it counts.

    Where `vmap` turns the condition into an array both are run, but one is counted.
    """

    def branch(function: Callable[[], Any]) -> Callable[[], Any]:
        def run():
            result, count = measured(function, batch)
            return result, jnp.asarray(count, jnp.float32)

        return run

    result, count = jax.lax.cond(condition, branch(first), branch(second))
    record(count * batch)
    return result


def measured(function: Callable[[], Any], batch: int) -> tuple[Any, Any]:
    """`counted`, but an enclosing count does not hear of it."""
    total: list[Any] = []
    _totals.append(total)
    try:
        result = function()
    finally:
        _totals.pop()
    try:
        return result, sum(total) / batch if total else 1
    except jax.errors.UnexpectedTracerError:
        raise UserError(
            "evaluations are counted in a function that was compiled by itself inside of what is "
            "counted; leave out its own jax.jit, and compile around the whole"
        ) from None
