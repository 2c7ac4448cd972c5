"""Several conditions put to one network in one evaluation.

A condition maps names to leaves [b, ...]. What stands for "no condition" is data: for each name a
number (the label after the last class) or an array (the embedding of an empty prompt). A condition
may also say by itself what it should be guided away from: where it holds "negative_label" beside
"label", that takes the place of the null label, sample by sample.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from scorediff.counting import counted
from scorediff.errors import UserError
from scorediff.types import Array, Cond

NullCond = Mapping[str, float | Array]
NEGATIVE = "negative_"


def evaluate(denoise, x: Array, t: Array, cond: Cond) -> Any:
    """denoise(x, t, cond), counted as at least one evaluation even where it is an exact formula."""
    return counted(lambda: denoise(x, t, cond), batch=x.shape[0])[0]


def side_by_side(denoise, x: Array, t: Array, conds: Sequence[Cond]) -> list[Any]:
    """What `denoise` says of x [b, *d] under each of n conditions, from one batch of n b samples.

    The n copies of a sample lie next to each other, so that a batch spread over devices stays where
    it is. A scalar t stays scalar. `denoise` may return any tree of arrays [b, ...].
    """
    n, b = len(conds), x.shape[0]

    def spread(*leaves: Array) -> Array:
        return jnp.stack(leaves, axis=1).reshape(n * b, *leaves[0].shape[1:])

    times = t if jnp.ndim(t) == 0 else spread(*[t] * n)
    together = evaluate(denoise, spread(*[x] * n), times, jax.tree.map(spread, *conds))
    return [
        jax.tree.map(lambda leaf, i=i: leaf.reshape(b, n, *leaf.shape[1:])[:, i], together)
        for i in range(n)
    ]


def given_and_null(cond: Cond, null_cond: NullCond) -> tuple[dict, dict]:
    """The condition without its negatives, and the null condition in the shapes of its leaves."""
    if not cond:
        raise UserError(f"guidance needs a condition, got cond={cond!r}")
    given = {key: leaf for key, leaf in cond.items() if not key.startswith(NEGATIVE)}
    null = {key: cond[NEGATIVE + key] for key in given if NEGATIVE + key in cond}
    missing = sorted(set(given) - set(null) - set(null_cond))
    if missing:
        raise UserError(
            f"null_cond lacks {missing}, which the condition has; null_cond has "
            f"{sorted(null_cond)}; say for each key what stands for no condition"
        )
    return given, {
        key: _like(key, leaf, null[key] if key in null else null_cond[key])
        for key, leaf in given.items()
    }


def _like(key: str, leaf: Array, value: float | Array) -> Array:
    value = jnp.asarray(value, leaf.dtype)
    try:
        return jnp.broadcast_to(value, leaf.shape)
    except ValueError:
        raise UserError(
            f"the null condition of {key!r} has shape {value.shape}, which does not fit the "
            f"condition's {leaf.shape}"
        ) from None
