"""What optax leaves to its users: which parameters decay, and chains that a config can name.

Everything else comes from optax as it is: `spec(optax.adam, learning_rate=...)`,
`spec(optax.warmup_cosine_decay_schedule, ...)`.
"""

import jax
import optax

from scorediff.types import Params

_NOT_DECAYED = ("bias", "scale", "embed")


def adamw(
    *,
    learning_rate: float | optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay on matrices and kernels only (arXiv 1711.05101).

    clip_norm: gradients with a larger global norm are scaled down to it first; None leaves them.
    """
    steps = [
        optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decay_mask),
    ]
    if clip_norm is not None:
        steps.insert(0, optax.clip_by_global_norm(clip_norm))
    return optax.chain(*steps)


def chain(*, transforms: tuple[optax.GradientTransformation, ...]) -> optax.GradientTransformation:
    """optax.chain with the transformations as one tuple, so that a config can name it."""
    return optax.chain(*transforms)


def decay_mask(params: Params) -> Params:
    """True where weight decay belongs: not on biases, scales of norms and embedding tables.

    By name as well as by rank, because layers that are scanned stack their biases to matrices.
    """
    return jax.tree_util.tree_map_with_path(_decays, params)


def _decays(path: tuple, param) -> bool:
    name = jax.tree_util.keystr(path[-1:], simple=True) if path else ""
    return param.ndim >= 2 and not any(word in name for word in _NOT_DECAYED)
