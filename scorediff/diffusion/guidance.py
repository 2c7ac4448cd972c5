"""Guidance, wrapped around `denoise`: a `DenoiseFn` goes in, a `DenoiseFn` comes out.

Most rules compare two estimates, the conditional c and one to move away from, u (without the
condition, with a negative one, or by a weaker model), at the same x. Classifier-free guidance moves
along the line through both,

    guided = u + scale (c - u),                                                                 (1)

so scale = 1 is off and returns the very same function, and scale = 0 is unconditional. Every
prediction is affine in x0_hat at given x, so (1) says the same for x0_hat, eps_hat, v, velocity and
score. Rules that are not linear depend on the space: projection works on x0_hat, `rescaled` and
`cfg_zero` on a prediction of `target`. With the target's row (a, b) and det = alpha b - sigma a,

    sigma y = b x - det x0_hat,       x0_hat = (b x - sigma y) / det,                           (2)

where a common factor sigma of both predictions drops out of every rule here.

`scale` is a Python number, a scalar array, or one number per sample [b]. What stands for no
condition comes from `null_cond` (see `conditions`). Unless it says otherwise, a rule costs one
evaluation of twice the batch, NFE 2.
"""

import math
from collections.abc import Sequence
from numbers import Real

import jax
import jax.numpy as jnp

from scorediff.diffusion import target as targets
from scorediff.diffusion.conditions import (
    NEGATIVE,
    NullCond,
    evaluate,
    given_and_null,
    side_by_side,
)
from scorediff.diffusion.denoiser import VarianceFn
from scorediff.diffusion.process import Marginal, Process, expand_to
from scorediff.diffusion.target import Target, check_determined, determinant
from scorediff.errors import UserError
from scorediff.types import Array, Cond, DenoiseFn

_TINY = 1e-20  # below every squared norm that matters; keeps 0/0 out of values and derivatives

Scale = float | Array


def classifier_free(denoise: DenoiseFn, *, null_cond: NullCond, scale: Scale) -> DenoiseFn:
    """null + scale (conditional - null): equation (1), from one evaluation of the doubled batch.

    Ho & Salimans, arXiv 2207.12598, eq. 6, whose w is scale - 1. scale = 0 costs one evaluation.
    Raises UserError for a condition with a key that null_cond lacks.
    """
    _check_scale("classifier_free", scale)
    if _is(scale, 1):
        return denoise

    def guided(x: Array, t: Array, cond: Cond = None) -> Array:
        given, null = given_and_null(cond, null_cond)
        if _is(scale, 0):
            return evaluate(denoise, x, t, null)
        c, u = side_by_side(denoise, x, t, (given, null))
        return u + _per_sample(scale, x) * (c - u)

    return guided


def classifier_free_variance(
    denoise: VarianceFn, *, null_cond: NullCond, scale: Scale
) -> VarianceFn:
    """`classifier_free` for a network with learned variance: x0_hat is guided, v the conditional's.

    As DiT samples (Peebles & Xie, arXiv 2212.09748); see `Denoiser.bind_variance`.
    """
    _check_scale("classifier_free_variance", scale)
    if _is(scale, 1):
        return denoise

    def guided(x: Array, t: Array, cond: Cond = None) -> tuple[Array, Array]:
        (c, v), (u, _) = side_by_side(denoise, x, t, given_and_null(cond, null_cond))
        return u + _per_sample(scale, x) * (c - u), v

    return guided


def composed(denoise: DenoiseFn, *, null_cond: NullCond, scales: Sequence[Scale]) -> DenoiseFn:
    """null + sum_i scales[i] (c_i - null): several conditions at once, all of them to hold.

    Liu et al., arXiv 2206.01714, whose conjunction this is; a negative scale is their negation.
    Each leaf of the condition is [b, n, ...] with the n = len(scales) conditions of a sample. One
    evaluation of n + 1 times the batch.
    """
    if not scales:
        raise UserError("composed needs one scale for each condition, got scales=()")
    for scale in scales:
        _check_scale("composed", scale)

    def guided(x: Array, t: Array, cond: Cond = None) -> Array:
        conds = _one_by_one(cond, len(scales))
        split = [given_and_null(one, null_cond) for one in conds]
        u, *cs = side_by_side(denoise, x, t, (split[0][1], *(given for given, _ in split)))
        return u + sum(_per_sample(scale, x) * (c - u) for scale, c in zip(scales, cs, strict=True))

    return guided


def autoguidance(denoise: DenoiseFn, weak: DenoiseFn, *, scale: Scale) -> DenoiseFn:
    """weak + scale (denoise - weak): away from a smaller or less trained model of the same data.

    Karras et al., arXiv 2406.02507, eq. 3. Both get the same condition. One evaluation of each
    model, counted as two whatever the weak one costs.
    """
    _check_scale("autoguidance", scale)
    if _is(scale, 1):
        return denoise

    def guided(x: Array, t: Array, cond: Cond = None) -> Array:
        u = evaluate(weak, x, t, cond)
        return u + _per_sample(scale, x) * (evaluate(denoise, x, t, cond) - u)

    return guided


def projected(
    denoise: DenoiseFn,
    *,
    null_cond: NullCond,
    scale: Scale,
    eta: float = 0.0,
    max_norm: float = math.inf,
) -> DenoiseFn:
    """Adaptive projected guidance: c + (scale - 1) (d_orthogonal + eta d_parallel) of d = c - u.

    Sadat et al., arXiv 2410.02416, algorithm 1: d is first shortened to `max_norm` (their r), then
    split into its parts along and across c; the part along c is what oversaturates. In x0_hat, with
    norms and products over all dimensions of a sample. eta = 1 without max_norm is
    `classifier_free`. The paper's momentum is left out: it needs a state from step to step, which a
    DenoiseFn has not.
    """
    _check_scale("projected", scale)
    if not max_norm > 0:
        raise UserError(f"projected: max_norm must be positive, got {max_norm}")
    if not math.isfinite(eta):
        raise UserError(f"projected: eta must be finite, got {eta}")
    if _is(scale, 1):
        return denoise

    def guided(x: Array, t: Array, cond: Cond = None) -> Array:
        c, u = side_by_side(denoise, x, t, given_and_null(cond, null_cond))
        d = c - u
        if max_norm < math.inf:
            d *= jnp.minimum(1, max_norm * jax.lax.rsqrt(jnp.maximum(_dot(d, d), _TINY)))
        along = _dot(d, c) / jnp.maximum(_dot(c, c), _TINY) * c
        return c + (_per_sample(scale, x) - 1) * (d + (eta - 1) * along)

    return guided


def rescaled(
    denoise: DenoiseFn,
    *,
    process: Process,
    null_cond: NullCond,
    scale: Scale,
    phi: float = 0.7,
    target: Target = targets.v,
) -> DenoiseFn:
    """Guidance whose prediction keeps the conditional one's standard deviation, to the part phi.

    Lin et al., arXiv 2305.08891, section 3.4: y is multiplied by phi std(y_c) / std(y) + 1 - phi,
    with deviations over all dimensions of a sample. y is what the network predicts, which in the
    paper is v, the default; other networks keep to the paper with their own `target`. phi = 0 is
    `classifier_free`. Raises UserError where the target does not determine x0_hat (eps where
    alpha = 0).
    """
    _check_scale("rescaled", scale)
    if not 0 <= phi <= 1:
        raise UserError(f"rescaled: phi must be in [0, 1], got {phi}")
    check_determined("rescaled", process, target, (process.t_min, process.t_max))
    if phi == 0 or _is(scale, 1):
        return classifier_free(denoise, null_cond=null_cond, scale=scale)

    def guided(x: Array, t: Array, cond: Cond = None) -> Array:
        m = process(t).expand(x)
        c, u = side_by_side(denoise, x, t, given_and_null(cond, null_cond))
        y = _prediction(target, m, x, u + _per_sample(scale, x) * (c - u))
        wanted, found = _variance(_prediction(target, m, x, c)), _variance(y)
        ratio = jnp.where(found > _TINY, jnp.sqrt(wanted / jnp.maximum(found, _TINY)), 1)
        return _x0_hat(target, m, x, (phi * ratio + 1 - phi) * y)

    return guided


def cfg_zero(
    denoise: DenoiseFn, *, process: Process, null_cond: NullCond, scale: Scale
) -> DenoiseFn:
    """CFG-Zero*: s u + scale (c - s u) in velocities, with s = <c, u> / |u|^2 for each sample.

    Fan et al., arXiv 2503.18886, algorithm 1: s u is the multiple of the unconditional velocity
    that is nearest to the conditional one. Made for straight paths (FlowMatching), finite on all.
    Its other half, `zero_init`, is a rule of its own: zero_init(cfg_zero(...), ...).
    """
    _check_scale("cfg_zero", scale)
    check_determined("cfg_zero", process, targets.velocity, (process.t_min, process.t_max))
    if _is(scale, 1):
        return denoise

    def guided(x: Array, t: Array, cond: Cond = None) -> Array:
        m = process(t).expand(x)
        c, u = (
            _prediction(targets.velocity, m, x, x0_hat)
            for x0_hat in side_by_side(denoise, x, t, given_and_null(cond, null_cond))
        )
        u *= _dot(c, u) / jnp.maximum(_dot(u, u), _TINY)
        return _x0_hat(targets.velocity, m, x, u + _per_sample(scale, x) * (c - u))

    return guided


def _prediction(target: Target, m: Marginal, x: Array, x0_hat: Array) -> Array:
    """sigma times the prediction, equation (2)."""
    return target(m)[1] * x - determinant(target, m) * x0_hat


def _x0_hat(target: Target, m: Marginal, x: Array, y: Array) -> Array:
    return (target(m)[1] * x - y) / determinant(target, m)


def _one_by_one(cond: Cond, n: int) -> list[dict]:
    """The n conditions of leaves [b, n, ...]; negatives [b, ...] belong to all of them."""
    if not cond:
        raise UserError(f"composed needs a condition, got cond={cond!r}")
    several = {key: leaf for key, leaf in cond.items() if not key.startswith(NEGATIVE)}
    for key, leaf in several.items():
        if jnp.ndim(leaf) < 2 or leaf.shape[1] != n:
            raise UserError(
                f"composed: {n} scales need conditions [b, {n}, ...], but {key!r} has shape "
                f"{jnp.shape(leaf)}"
            )
    return [{**cond, **{key: leaf[:, i] for key, leaf in several.items()}} for i in range(n)]


def _per_sample(scale: Scale, x: Array) -> Array:
    return expand_to(jnp.asarray(scale, x.dtype), x)


def _check_scale(rule: str, scale: Scale) -> None:
    if isinstance(scale, Real) and not math.isfinite(scale):
        raise UserError(f"{rule}: scale must be finite, got {scale}")


def _is(scale: Scale, value: int) -> bool:
    """Whether the scale is this number, known before anything is compiled."""
    return isinstance(scale, Real) and scale == value


def _dot(x: Array, y: Array) -> Array:
    """<x, y> over all dimensions of a sample, [b, 1, ...]."""
    return jnp.sum(x * y, axis=tuple(range(1, x.ndim)), keepdims=True)


def _variance(x: Array) -> Array:
    """Over all dimensions of a sample, [b, 1, ...]."""
    return jnp.var(x, axis=tuple(range(1, x.ndim)), keepdims=True)
