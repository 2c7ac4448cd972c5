"""Where along the way a rule acts: guidance in an interval of noise, and a start without motion."""

import math
from typing import Literal

import jax.numpy as jnp

from scorediff.counting import either, record
from scorediff.diffusion import target as targets
from scorediff.diffusion.conditions import evaluate
from scorediff.diffusion.process import Process, expand_to
from scorediff.errors import UserError
from scorediff.types import Array, Cond, DenoiseFn


def interval(
    guide: DenoiseFn,
    plain: DenoiseFn,
    *,
    process: Process,
    low: float = 0.0,
    high: float = math.inf,
    clock: Literal["noise", "t"] = "noise",
) -> DenoiseFn:
    """`guide` where low <= sigma/alpha <= high (clock "t": low <= t <= high), elsewhere `plain`.

    Kynkäänniemi et al., arXiv 2404.07724; their noise level is sigma/alpha. Any rule can be limited
    so: interval(classifier_free(denoise, ...), denoise, ...). With a scalar t, as in sampling, only
    one of the two is evaluated and counted; with times [b] both are.
    """
    if clock not in ("noise", "t"):
        raise UserError(f"interval: clock must be noise or t, got {clock!r}")
    if not 0 <= low < high:
        raise UserError(f"interval needs 0 <= low < high, got low={low}, high={high}")

    def limited(x: Array, t: Array, cond: Cond = None) -> Array:
        at = jnp.asarray(t)
        if clock == "noise":
            m = process(t)
            # alpha = 0 may be rounded below; the ratio is infinite there, which high = inf contains
            at = m.sigma / jnp.maximum(m.alpha, 0)
        return _where(
            (low <= at) & (at <= high),
            lambda: evaluate(guide, x, t, cond),
            lambda: evaluate(plain, x, t, cond),
            x,
        )

    return limited


def zero_init(denoise: DenoiseFn, *, process: Process, above: float) -> DenoiseFn:
    """The velocity is zero for t > above, at no evaluation; elsewhere `denoise`.

    Fan et al., arXiv 2503.18886, algorithm 1, whose K first steps are those from nodes above. A
    velocity of zero, alpha' x0_hat + sigma' eps_hat = 0, is x0_hat = sigma' x / det (equation 2 of
    `guidance`): x itself on straight paths, where a step then leaves x alone.
    """
    if not math.isfinite(above):
        raise UserError(f"zero_init: above must be a time, got {above}")
    targets.check_determined("zero_init", process, targets.velocity, (process.t_min, process.t_max))

    def started(x: Array, t: Array, cond: Cond = None) -> Array:
        def still() -> Array:
            m = process(t).expand(x)
            record(0)
            return targets.solve(targets.velocity, m, x, jnp.zeros_like(x))[0]

        return _where(jnp.asarray(t) > above, still, lambda: evaluate(denoise, x, t, cond), x)

    return started


def _where(condition: Array, first, second, x: Array) -> Array:
    """One of two estimates: by a branch for a scalar condition, sample by sample for [b]."""
    if condition.ndim == 0:
        return either(condition, first, second, batch=x.shape[0])
    return jnp.where(expand_to(condition, x), first(), second())
