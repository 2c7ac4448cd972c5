"""Exact log-likelihoods by the probability-flow ODE, with any deterministic solver table.

The ODE (Song et al., arXiv 2011.13456, eq. 13), with p and q the process's own, is

    dx/dt = v = p x + q x0_hat,    p = sigma'/sigma,    q = alpha' - alpha sigma'/sigma,       (1)

and along a solution log p changes by -div v (their eq. 38 to 39). From t_min up to t_max therefore

    log p_min(x) = log p_max(x_max) + int div v dt,
    int div v dt = D log(sigma_max/sigma_min) + int q div(x0_hat) dt.                          (2)

The first term is exact. The second needs no quadrature of its own: a component y of the state with
"x0_hat" equal to m obeys dy/dt = p y + q m, so y/sigma = int (q/sigma) m dt. One more channel,
started at 0, whose x0_hat is m = sigma div(x0_hat), thus ends at sigma_max times the second term,
to the order of whatever solver runs it. Every table on an upward grid (`grid.upward`) will do, and
so does adaptive integration. Multistep solvers start with a first-order step, where the divergence
is largest; Runge-Kutta methods do not and are far more accurate here.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.diffusion.process import Process
from scorediff.errors import UserError
from scorediff.solvers.adaptive_ode import Control, Pair, integrate, probability_flow
from scorediff.solvers.noise import stream_of
from scorediff.solvers.sample import run
from scorediff.solvers.table import NOISE, StepTable
from scorediff.types import Array, Cond, DenoiseFn, Key

Divergence = Literal["exact", "hutchinson"]
Probe = Literal["rademacher", "gaussian"]
LogPdf = Callable[[Array], Array]

_PROBES = 1 << 22  # stream of a sample's own key; those of the loop lie below


class Likelihood(NamedTuple):
    """Log-density of the state at the table's first node, in nats, and where its path ends."""

    logp: Array  # [b]
    x_end: Array  # [b, *d]
    nfe: Array  # [], or [b] where steps are adaptive


class _Given(NamedTuple):
    """What the packed `denoise` has for its cond: the network's own, and vectors of the trace."""

    cond: Cond
    vectors: Array  # [b, n, *d], of which the mean of v v^T, times n, is the unit matrix


def log_likelihood(
    denoise: DenoiseFn,
    table: StepTable,
    x: Array,
    *,
    keys: Key,
    process: Process,
    divergence: Divergence = "exact",
    probes: int = 1,
    probe: Probe = "rademacher",
    prior: LogPdf | None = None,
    cond: Cond = None,
) -> Likelihood:
    """log p of x [b, *d] at the table's first node (low noise); the table climbs to its last.

    divergence: `exact`, D products with the Jacobian for each evaluation, or `hutchinson`, unbiased
      from `probes` random vectors, which stay the same along a sample's whole path and come from
      its own key (keys [b]; arXiv 2011.13456, eq. 40).
    prior: log-density [b] of states at the last node; None: N(0, sigma^2 I) there, which is what
      `sample_prior` draws from, so that the number is the density of the sampler itself.
    The NFE are those of the ODE: derivatives share the evaluation they belong to.

    Raises UserError for a table that falls in t or adds noise (concrete tables only: inside jit the
    caller does it with `check_ode`).
    """
    if not isinstance(table.t, jax.core.Tracer):
        check_ode(table)
    vectors = trace_vectors(divergence, keys, x, probes=probes, probe=probe)
    out = run(
        with_divergence(denoise, process),
        table,
        _pack(x),
        keys=keys,
        cond=_Given(cond, vectors),
        noise=no_noise,
    )
    return _unpack(out.x, out.nfe, x.shape, (table.sigma[0], table.sigma[-1]), prior)


def log_likelihood_adaptive(
    denoise: DenoiseFn,
    process: Process,
    x: Array,
    *,
    keys: Key,
    t_start: float | None = None,
    t_end: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: Pair = "dopri5",
    control: Control = "standard",
    coupled: bool = False,
    max_evaluations: int = 10_000,
    divergence: Divergence = "exact",
    probes: int = 1,
    probe: Probe = "rademacher",
    prior: LogPdf | None = None,
    cond: Cond = None,
) -> Likelihood:
    """`log_likelihood` of x [b, *d] at t_start (t_min), integrated adaptively up to t_end (t_max).

    rtol, atol, solver, control, coupled, max_evaluations: as in `adaptive_ode`; score_sde's own
    tolerances are 1e-5.
    """
    t_start = process.t_min if t_start is None else t_start
    t_end = process.t_max if t_end is None else t_end
    sigmas = process.host(np.array([t_start, t_end])).sigma
    if not (t_start < t_end and sigmas[0] > 0):
        raise UserError(
            f"likelihood: goes up in t from where sigma > 0, got t_start={t_start}, t_end={t_end},"
            f" sigma={sigmas[0]:g} at t_start"
        )
    vectors = trace_vectors(divergence, keys, x, probes=probes, probe=probe)
    out = integrate(
        probability_flow(with_divergence(denoise, process), process),
        _pack(x),
        t_start=t_start,
        t_end=t_end,
        rtol=rtol,
        atol=atol,
        solver=solver,
        control=control,
        coupled=coupled,
        cond=_Given(cond, vectors),
        max_evaluations=max_evaluations,
    )
    return _unpack(out.x, out.nfe, x.shape, tuple(sigmas.tolist()), prior)


def check_ode(table: StepTable) -> None:
    """Refuse tables that are no ODE from low to high noise."""
    noisy = (table.e[:, NOISE] != 0) | (table.b[:, NOISE] != 0)
    if noisy.any() or tuple(table.start) != (1.0, 0.0):
        row = int(np.argmax(noisy)) if noisy.any() else 0
        raise UserError(
            f"likelihood: the table adds noise (first in row {row}), so it is no ODE; use a solver"
            " with eta=0 and no churn"
        )
    if not (table.t[-1] > table.t[0] and table.sigma[0] > 0 and np.isfinite(table.e).all()):
        raise UserError(
            f"likelihood: the table goes from t={table.t[0]:g} to t={table.t[-1]:g}; it must climb"
            " and be finite: build it on upward(make_grid(..., to_data=False))"
        )


def no_noise(keys: Key, stream: Array, over: Array, x: Array) -> Array:
    """The noise of a table that adds none; compiles faster than noise that is never drawn."""
    return jnp.zeros_like(x)


def _pack(x: Array) -> Array:
    """The state [b, D + 1] that the solver sees: x [b, *d], and a channel for the integral."""
    return jnp.pad(x.reshape(len(x), -1), ((0, 0), (0, 1)))


def _unpack(
    state: Array, nfe: Array, shape: tuple[int, ...], sigmas: tuple, prior: LogPdf | None
) -> Likelihood:
    """Equation (2) from the packed state at the end of a solve; sigmas at both ends of it."""
    first, last = sigmas
    x_end = state[:, :-1].reshape(shape)
    growth = (state.shape[1] - 1) * jnp.log(last / first) + state[:, -1] / last
    at_end = normal_logpdf(x_end, last) if prior is None else prior(x_end)
    return Likelihood(at_end + growth, x_end, nfe)


def normal_logpdf(x: Array, sigma: Array) -> Array:
    """log N(x; 0, sigma^2 I) of x [b, *d], in nats, [b]."""
    flat = x.reshape(len(x), -1)
    return -0.5 * jnp.sum((flat / sigma) ** 2 + jnp.log(2 * jnp.pi * sigma**2), axis=1)


def with_divergence(denoise: DenoiseFn, process: Process) -> DenoiseFn:
    """`denoise` on packed states [b, D + 1], whose last channel is sigma div(x0_hat).

    Its cond holds the network's own and the vectors of `trace_vectors`.
    """

    def packed(state: Array, t: Array, given: _Given) -> Array:
        cond, vectors = given
        x = state[:, :-1].reshape(len(state), *vectors.shape[2:])
        # v^T J rather than J v: every kernel of attention has it, and CPUs convolve it faster
        x0_hat, pull = jax.vjp(lambda x: denoise(x, t, cond), x)
        (rows,) = jax.vmap(pull, in_axes=1, out_axes=1)(vectors)
        products = vectors * rows
        trace = products.reshape(len(x), -1).sum(axis=1)
        share = process(t).sigma.astype(state.dtype) * trace
        return jnp.concatenate([x0_hat.reshape(len(x), -1), share[:, None]], axis=1)

    return packed


def trace_vectors(
    divergence: Divergence, keys: Key, x: Array, *, probes: int = 1, probe: Probe = "rademacher"
) -> Array:
    """Vectors v [b, n, *d] with sum_n v^T J v = trace J, exactly or in the mean, for x [b, *d]."""
    for name, value, known in (("divergence", divergence, Divergence), ("probe", probe, Probe)):
        if value not in get_args(known):
            raise UserError(f"likelihood: {name} is one of {get_args(known)}, got {value!r}")
    if probes < 1:
        raise UserError(f"likelihood: probes must be at least 1, got {probes}")
    shape = x.shape[1:]
    if divergence == "exact":
        dim = x[0].size
        return jnp.broadcast_to(
            jnp.eye(dim, dtype=x.dtype).reshape(dim, *shape), (len(x), dim, *shape)
        )
    draw = jax.random.rademacher if probe == "rademacher" else jax.random.normal
    own = jax.vmap(lambda key: draw(key, (probes, *shape), x.dtype))(stream_of(keys, _PROBES))
    return own / probes**0.5
