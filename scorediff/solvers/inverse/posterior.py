"""Posterior sampling by guidance with the measurement: Pi-GDM and DPS.

The exact posterior has E[x0 | x_t, y] = x0_hat + (sigma^2/alpha) grad log p(y | x_t), which is what
a solver wants in place of x0_hat. Both methods approximate p(x0 | x_t) by N(x0_hat, r^2 I), whence
p(y | x_t) = N(A x0_hat, r^2 A A^T + noise_std^2 I) and, with J = d x0_hat / d x_t,

    x0_hat + (sigma^2/alpha) J^T A^T (r^2 A A^T + noise_std^2)^-1 (y - A x0_hat).                (1)

Song et al. (Pi-GDM, ICLR 2023, eq. 7 to 8) take r from a data variance; equation (1) is exact where
p(x0) is Gaussian and r^2 its true posterior variance. Chung et al. (DPS, arXiv 2209.14687, eq. 14
to 16) take r = 0, and in their algorithm 1 a step length of its own.

Each wraps `denoise`, so that any solver runs it; J^T costs one backward pass, and no evaluation.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.diffusion.process import Marginal, Process
from scorediff.errors import UserError
from scorediff.solvers.inverse.operators import LinearOperator
from scorediff.solvers.table import COLUMNS, StepTable
from scorediff.types import Array, Cond, DenoiseFn

Variance = Callable[[Marginal], Array]

_M0 = COLUMNS.index("m0")


def unit_data(m: Marginal, *, std: float = 1.0) -> Array:
    """r^2 of data N(0, std^2 I): (1/std^2 + (alpha/sigma)^2)^-1 (Pi-GDM, section 3.3)."""
    return (m.sigma * std) ** 2 / ((m.alpha * std) ** 2 + m.sigma**2)


def pigdm(
    denoise: DenoiseFn,
    operator: LinearOperator,
    y: Array,
    *,
    process: Process,
    noise_std: float = 0.0,
    variance: Variance = unit_data,
    scale: float = 1.0,
) -> DenoiseFn:
    """Equation (1) for y [b, *data_shape], r^2 = variance(marginal); `scale` times the addition.

    The published sampler multiplies by r^2 as well; here scale = 1 is the posterior's own. At
    alpha = 0, where J = 0, nothing is added.
    """
    if noise_std < 0:
        raise UserError(f"pigdm: noise_std must be at least 0, got {noise_std}")
    operator.check(y)
    seen = operator.data_coordinates(y)
    s = jnp.asarray(operator.singular, y.dtype)

    def guided(x: Array, t: Array, cond: Cond = None) -> Array:
        x0_hat, back = jax.vjp(lambda x: denoise(x, t, cond), x)
        m = process(t)
        missing = seen - s * operator.coordinates(x0_hat)
        spread = variance(m.expand(missing)) * s**2 + noise_std**2
        return x0_hat + scale * _toward(back, operator.image(s / spread * missing), m.expand(x))

    return guided


def dps(
    denoise: DenoiseFn,
    operator: LinearOperator,
    y: Array,
    *,
    process: Process,
    noise_std: float,
    scale: float = 1.0,
) -> DenoiseFn:
    """DPS with the likelihood's own weight, 1/noise_std^2 (arXiv 2209.14687, eq. 16): r = 0 in (1).

    Stiff where noise_std is small against sigma/alpha: then it needs many steps, or `dps_steps`.
    """
    if not noise_std > 0:
        raise UserError(f"dps: noise_std must be positive, got {noise_std}; dps_steps has no such")
    return pigdm(
        denoise,
        operator,
        y,
        process=process,
        noise_std=noise_std,
        variance=lambda m: jnp.zeros_like(m.sigma),
        scale=scale,
    )


def dps_steps(
    denoise: DenoiseFn, operator: LinearOperator, y: Array, *, table: StepTable, step: float = 1.0
) -> DenoiseFn:
    """DPS with the step length of its algorithm 1, to be run by this very table.

    Each row's result moves by -(step / |y - A x0_hat|) grad |y - A x0_hat|^2, each sample with its
    own norm. Moving x0_hat by the same, over the row's coefficient of x0_hat, does so; the table
    must therefore have one evaluation a step and remember x0_hat (`ancestral`, `ddim`). The total
    push grows with the number of rows: the paper's step of 0.3 to 1 is for 1000.
    """
    operator.check(y)
    plain = np.array_equal(table.keep, np.tile([0.0, 1.0], (table.nfe, 1)))
    if not plain or table.e[:, COLUMNS.index("b")].any() or (np.diff(table.t) >= 0).any():
        raise UserError(
            "dps_steps: needs a table that falls in t with one evaluation a step and x0_hat in its"
            " history, such as ancestral or ddim"
        )

    def guided(x: Array, t: Array, cond: Cond = None) -> Array:
        x0_hat, back = jax.vjp(lambda x: denoise(x, t, cond), x)
        row = jnp.argmin(jnp.abs(jnp.asarray(table.t[:-1], x.dtype) - t))
        missing = y - operator.forward(x0_hat)
        length = jnp.sqrt(jnp.sum(missing.reshape(len(x), -1) ** 2, axis=1))
        (gradient,) = back(operator.adjoint(missing))
        share = 2 * step / jnp.asarray(table.e[:, _M0], x.dtype)[row]
        per_sample = share / jnp.maximum(length, jnp.finfo(x.dtype).tiny)
        return x0_hat + per_sample.reshape(-1, *[1] * (x.ndim - 1)) * gradient

    return guided


def _toward(back: Callable, pull: Array, m: Marginal) -> Array:
    """(sigma^2/alpha) J^T pull, without the 0/0 at alpha = 0."""
    (gradient,) = back(pull)
    signal = m.alpha > 0
    return jnp.where(signal, m.sigma**2 / jnp.where(signal, m.alpha, 1.0), 0.0) * gradient
