"""The variational bound on the likelihood of discrete data, in continuous time.

Kingma et al. (arXiv 2107.00630, eq. 14 to 18). With lambda = logSNR and SNR = e^lambda,

    -log P(v) <= KL(q(x_max | x0) || prior)                                    prior
               + 1/2 int E_eps SNR |x0 - x0_hat(x_lambda)|^2 d lambda          diffusion
               + E_eps[-log P(v | x_min)],                                     reconstruction

lambda from its value at t_max to that at t_min. Their integral over t has -dSNR/dt as its factor;
over lambda it is SNR, which makes the integrand the squared error of eps_hat, bounded on the whole
range. So lambda is drawn uniformly, one in each of `times` equal strata for every example. The
prior N(0, sigma_max^2 I) is what `sample_prior` draws from: its divergence is
(alpha_max/sigma_max)^2 |x0|^2/2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scorediff.counting import counted
from scorediff.diffusion.process import Process
from scorediff.errors import UserError
from scorediff.solvers.dequantise import centred, decoder_logp, noised
from scorediff.solvers.noise import normal, stream_of
from scorediff.types import Array, Cond, DenoiseFn, Key

_TIMES, _NOISE = (
    (1 << 22) + 3,
    (1 << 22) + 4,
)  # streams of a sample's own key; k-th time: _NOISE + k


class Elbo(NamedTuple):
    """The three parts of the bound, in nats [b], and the evaluations made for each example."""

    prior: Array
    diffusion: Array
    reconstruction: Array
    nfe: Array

    @property
    def logp(self) -> Array:
        """The lower bound on log P(v), in nats [b]."""
        return -(self.prior + self.diffusion + self.reconstruction)


def elbo(
    denoise: DenoiseFn,
    process: Process,
    values: Array,
    *,
    keys: Key,
    times: int = 16,
    levels: int = 256,
    cond: Cond = None,
) -> Elbo:
    """The bound for values [b, *d] in 0 ... levels - 1 between the process's t_min and t_max.

    One draw of every expectation, `times` noise levels for each example, which spends times + 1
    evaluations; keys [b]. Raises UserError where logSNR is infinite at an end.
    """
    x0 = centred(values, levels=levels)
    t = jnp.asarray(process.t_min, x0.dtype)
    low = process(t)
    x_t = noised(values, keys, low, levels=levels)
    x0_hat, last = counted(lambda: denoise(x_t, t, cond), batch=len(x_t))
    diffusion, nfe = diffusion_cost(denoise, process, x0, keys=keys, times=times, cond=cond)
    return Elbo(
        prior=prior_cost(process, x0),
        diffusion=diffusion,
        reconstruction=-decoder_logp(values, x0_hat, low.sigma / low.alpha, levels=levels),
        nfe=nfe + last,
    )


def prior_cost(process: Process, x0: Array) -> Array:
    """KL(N(alpha x0, sigma^2 I) || N(0, sigma^2 I)) at t_max, in nats [b]."""
    high = process(jnp.asarray(process.t_max, x0.dtype))
    return 0.5 * (high.alpha / high.sigma) ** 2 * _sum_of_squares(x0)


def diffusion_cost(
    denoise: DenoiseFn,
    process: Process,
    x0: Array,
    *,
    keys: Key,
    times: int = 16,
    cond: Cond = None,
) -> tuple[Array, Array]:
    """The diffusion term for x0 [b, *d] at `times` noise levels, in nats [b], and its NFE."""
    if times < 1:
        raise UserError(f"elbo: times must be at least 1, got {times}")
    low, high = check_logsnr(process)
    u = jax.vmap(lambda key: jax.random.uniform(key, (), x0.dtype))(stream_of(keys, _TIMES))

    def add(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        total, nfe = carry
        t = process.time(low + (high - low) * (k + u) / times).astype(x0.dtype)
        m = process(t).expand(x0)
        x_t = m.alpha * x0 + m.sigma * normal(stream_of(keys, _NOISE + k), x0)
        x0_hat, count = counted(lambda: denoise(x_t, t, cond), batch=len(x0))
        return total + _sum_of_squares((x0 - x0_hat) * m.alpha / m.sigma), nfe + count

    start = jnp.zeros(len(x0), x0.dtype), jnp.zeros((), jnp.float32)
    total, nfe = jax.lax.fori_loop(0, times, add, start)
    return 0.5 * (high - low) * total / times, nfe


def check_logsnr(process: Process) -> tuple[float, float]:
    """logSNR at t_max and t_min; UserError where one of them is infinite."""
    ends = process.host([process.t_max, process.t_min])
    if not (ends.alpha > 0).all() or not (ends.sigma > 0).all():
        raise UserError(
            f"elbo: logSNR of {type(process).__name__} is infinite between t_min={process.t_min:g}"
            f" and t_max={process.t_max:g}; give the process ends where alpha and sigma are not 0"
        )
    low, high = ends.logsnr.tolist()
    return low, high


def _sum_of_squares(x: Array) -> Array:
    return jnp.sum(x.reshape(len(x), -1) ** 2, axis=1)
