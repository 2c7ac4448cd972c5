"""Langevin correctors: steps along the score at a fixed noise level, before a solver's own step.

Song et al., arXiv 2011.13456, algorithms 4 and 5. With score = (alpha x0_hat - x) / sigma^2, one
step at the marginal of t is

    x <- x + epsilon score + sqrt(2 epsilon) z,                                                 (1)

which leaves that marginal as it is up to O(epsilon). Its size is, with `snr` the relative length
of drift and noise,

    norms:     epsilon = 2 a (snr |z| / |score|)^2,                                             (2)
    annealed:  epsilon = 2 a (snr sigma)^2,                                                     (3)

where (3) is (2) for a score of its expected length, |z| / sigma. Per sample, the step size (2) is
itself random: it prefers points of small score and long noise, and what it leaves unchanged is too
wide by a relative 4 / (numbers in a sample) in variance, however small snr is. That is nothing for
images; for a handful of dimensions use (3), or norms averaged over the batch.

The factor `a` is 1 for VE and, for VP with discrete betas, 1 - beta_k in the original, which has
none for sub-VP. It is 1 here by default, on every process; `alpha_ratio` is the original's for any
process.

A corrector is the `adjust` of `sample`, which calls it before every row. It belongs to solvers with
one evaluation a step (ddim, ancestral, euler, euler_maruyama, reverse_diffusion): elsewhere it
would move the stages between which a step takes its slopes, or a history of other states.
"""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp

from scorediff.counting import counted
from scorediff.diffusion.process import Process, expand_to
from scorediff.errors import UserError
from scorediff.solvers.noise import NoiseSource, independent
from scorediff.solvers.sample import Adjust, Point
from scorediff.types import Array, Cond, DenoiseFn, Key

Factor = Callable[[Point], Array]


def langevin(
    denoise: DenoiseFn,
    *,
    snr: float = 0.16,
    steps: int = 1,
    rule: Literal["norms", "annealed"] = "norms",
    coupled: bool = False,
    factor: Factor | None = None,
    cond: Cond = None,
    noise: NoiseSource = independent,
) -> Adjust:
    """The corrector with `steps` steps of size (2) or (3) at every row; each costs one evaluation.

    The norms in (2) are each sample's own. `coupled=True` takes their means over the batch, as
    score_sde does; then a sample depends on the others. `factor` gives a, as a scalar, from the
    `Point`. `noise` is called with the stream k steps + i in row k, step i.
    """
    if rule not in ("norms", "annealed"):
        raise UserError(f"langevin: rule must be norms or annealed, got {rule!r}")
    if steps < 1:
        raise UserError(f"langevin: steps must be at least 1, got {steps}")
    if coupled and rule == "annealed":
        raise UserError('langevin: coupled needs rule="norms"; annealed steps have no norms')

    def adjust(point: Point, keys: Key) -> Array:
        a = 1.0 if factor is None else factor(point)
        x = point.x
        for i in range(steps):
            x0_hat, _ = counted(lambda x=x: denoise(x, point.t, cond), batch=x.shape[0])
            score = (point.alpha * x0_hat - x) / point.sigma**2
            z = noise(keys, point.k * steps + i, jnp.full(2, jnp.nan), x)
            ratio = point.sigma if rule == "annealed" else _norm_ratio(z, score, coupled)
            size = expand_to(2 * a * (snr * ratio) ** 2, x)
            x = x + size * score + jnp.sqrt(2 * size) * z
        return x

    return adjust


def alpha_ratio(process: Process, *, train_steps: int = 1000) -> Factor:
    """a = (alpha(t) / alpha(t - 1/train_steps))^2, for langevin's `factor`.

    For VP this is 1 - beta_k of the discretisation in train_steps (score_sde's factor), and 1 where
    alpha is constant (VE, EDM). At alpha = 0 it is 0, and the corrector does nothing.
    """

    def factor(point: Point) -> Array:
        before = jnp.maximum(point.t - 1 / train_steps, 0.0)
        return (process.alpha(point.t) / process.alpha(before)) ** 2

    return factor


def _norm_ratio(z: Array, score: Array, coupled: bool) -> Array:
    """|z| / |score|: [b] per sample, or one number of the means over the batch."""
    lengths = [jnp.linalg.norm(a.reshape(a.shape[0], -1), axis=-1) for a in (z, score)]
    if coupled:
        lengths = [jnp.mean(length) for length in lengths]
    return lengths[0] / lengths[1]
