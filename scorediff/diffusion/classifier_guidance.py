"""Guidance by the gradient of a classifier of noisy samples."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.diffusion.process import Process
from scorediff.errors import UserError
from scorediff.types import Array, Cond, DenoiseFn

LogProbability = Callable[[Array, Array, Cond], Array]

_SMALLEST_ALPHA = 1e-4  # below, the float32 error of a gradient, over alpha, is seen in x0_hat


def classifier_guided(
    denoise: DenoiseFn, log_probability: LogProbability, *, process: Process, scale: float
) -> DenoiseFn:
    """x0_hat + scale sigma^2/alpha grad log p(y | x_t, t), with the gradient of a classifier.

    Dhariwal & Nichol, arXiv 2105.05233, algorithm 2: eps_hat - scale sigma grad, said in x0_hat.
    `log_probability` is (x [b, *d], t, cond) -> log p(y | x_t = x) [b], y being in cond. By Bayes'
    rule scale = 1 on an unconditional `denoise` is the conditional model; scale = 0 is off and
    returns `denoise` itself, which gets cond as well: where that holds labels that it should not
    see, use classifier_free(denoise, null_cond=..., scale=0). Costs no evaluation of the network.
    Raises UserError for a process that reaches alpha = 0, where x_t holds nothing to classify.
    """
    if not math.isfinite(scale):
        raise UserError(f"classifier_guided: scale must be finite, got {scale}")
    alpha = process.host(np.array([process.t_max])).alpha[0]
    if alpha < _SMALLEST_ALPHA:
        raise UserError(
            f"classifier_guided divides by alpha, which is {alpha:.1g} at t={process.t_max:g} of "
            f"{type(process).__name__}; give it the process with a smaller t_max and start there"
        )
    if scale == 0:
        return denoise

    def guided(x: Array, t: Array, cond: Cond = None) -> Array:
        m = process(t).expand(x)
        pull = jax.grad(lambda x: jnp.sum(log_probability(x, t, cond)))(x)
        return denoise(x, t, cond) + scale * m.sigma**2 / m.alpha * pull

    return guided
