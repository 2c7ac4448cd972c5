"""Log-likelihoods of examples under a model, in bits per dimension.

Two ways: the density of the probability-flow ODE, exact up to its solver and the estimate of the
divergence, and the variational bound. Both are of the model itself. Guidance and thresholds are
left out, since a guided field is not the score of any density that the model has learned.

The density is that of x_t / alpha at the smallest time t, whose noise is part of the model:

    log p(x0) = log p_t(alpha x0) + D log alpha.                                               (1)

Whole numbers become real ones by `solvers.dequantise`, and the bound has that built in.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.diffusion.process import Marginal, Process
from scorediff.errors import UserError, check_choice
from scorediff.evaluation.examples import Batch, Examples, batches
from scorediff.evaluation.generate import Sampling
from scorediff.solvers import Sampler, StepTable, adaptive_ode
from scorediff.solvers import dequantise as dq
from scorediff.solvers.elbo import check_logsnr, elbo
from scorediff.solvers.likelihood import (
    Divergence,
    check_ode,
    log_likelihood,
    log_likelihood_adaptive,
)
from scorediff.solvers.program import Driver, is_adaptive, make_driver
from scorediff.types import Array, Cond, DenoiseFn, Key, Params

Route = Literal["uniform", "decoder"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a likelihood is measured, beside the solver of the ODE.

    dequantisation: `uniform` noise in the bin of each whole number, or the noise of the smallest
      time and a `decoder` (`solvers.dequantise`); real data need none.
    divergence, probes: of `solvers.likelihood`. times: noise levels an example of the bound.
    seed: of all noise; example i draws from (seed, i).
    """

    dequantisation: Route = "uniform"
    divergence: Divergence = "hutchinson"
    probes: int = 1
    times: int = 16
    seed: int = 0

    def __post_init__(self):
        check_choice("likelihood: dequantisation", self.dequantisation, get_args(Route))
        check_choice("likelihood: divergence", self.divergence, get_args(Divergence))
        for name in ("probes", "times"):
            if getattr(self, name) < 1:
                raise UserError(f"likelihood: {name} must be at least 1, got {getattr(self, name)}")

    def trace(self) -> str:
        """The divergence in words."""
        return "exact" if self.divergence == "exact" else f"hutchinson, {self.probes} probes"


def climb(sampling: Sampling, solver: Callable, process: Process) -> StepTable | Driver:
    """A solver of the probability-flow ODE, from the smallest time up to the largest.

    On the grid and within the budget of `sampling`. Raises UserError for what is no such ODE.
    """
    low = process.t_min if sampling.t_end is None else sampling.t_end
    high = process.t_max if sampling.t_start is None else sampling.t_start
    if not process.host(np.array([low])).sigma[0] > 0:
        raise UserError(
            f"likelihood: there is no noise at t={low:g}, hence no density; set "
            "config.sampling.t_end where sigma is positive"
        )
    if is_adaptive(solver):
        if getattr(solver, "func", solver) is not adaptive_ode:
            raise UserError("likelihood: of the adaptive solvers only adaptive_ode can climb")
        return make_driver(solver, process, t_start=low, t_end=high, to_data=False)
    table = Sampler(
        solver=solver,
        grid=sampling.grid,
        nfe=sampling.nfe,
        to_data=False,
        t_start=high,
        t_end=low,
        climbs=True,
    ).table(process)
    if not isinstance(table, StepTable):
        raise UserError("likelihood: learned variance is noise, and no ODE; name an ODE solver")
    check_ode(table)
    return table


@dataclass(frozen=True, kw_only=True)
class Density:
    """A model whose likelihood is measured.

    denoiser: has `process`, and `bind(params)`, the plain DenoiseFn.
    """

    denoiser: Any
    protocol: Protocol = Protocol()
    batch_size: int = 100

    def check_ode(self, examples: Examples) -> None:
        """UserError where the ODE's density says nothing about these examples."""
        if examples.levels is None and self.protocol.dequantisation == "decoder":
            raise UserError("likelihood: these data are real; there is nothing to dequantise")

    def check_elbo(self, examples: Examples) -> None:
        """UserError where the bound cannot be taken."""
        if examples.levels is None:
            raise UserError("elbo: the bound is for whole numbers, and these data are real")
        check_logsnr(self.denoiser.process)

    def ode(self, params: Params, program: StepTable | Driver, examples: Examples) -> dq.BitsPerDim:
        """By the probability-flow ODE, along a program that `climb` made."""
        run = functools.partial(self._ode, levels=examples.levels)
        return self._measured("probability-flow ODE", run, params, program, examples)

    def elbo(self, params: Params, examples: Examples) -> dq.BitsPerDim:
        """By the variational bound, between the process's own ends."""
        run = functools.partial(self._elbo, levels=examples.levels)
        return self._measured("variational bound", run, params, None, examples)

    def _measured(
        self, method: str, run: Callable, params: Params, program: Any, examples: Examples
    ) -> dq.BitsPerDim:
        compiled, found = jax.jit(run), []
        data = examples.x0 if examples.values is None else examples.values
        how = {"seed": self.protocol.seed, "size": self.batch_size}
        for batch, n in batches(data, examples.cond, **how):
            logp, nfe = compiled(params, program, batch)
            spent = np.broadcast_to(np.asarray(nfe, np.float64), logp.shape)
            found.append((np.asarray(logp)[:n], spent[:n]))
        logp, nfe = map(np.concatenate, zip(*found, strict=True))
        _check_finite(logp)
        offset = self._offset(program, examples.levels)
        dim = examples.x0[0].size
        return dq.bits_per_dim(logp, dim=dim, method=method, nfe=nfe.mean(), dequantisation=offset)

    def _offset(self, program: StepTable | Driver | None, levels: int | None) -> dq.Dequantisation:
        if levels is None:
            return dq.NONE
        if program is None:
            return dq.Dequantisation("decoder", 0.0)  # all of it is in the bound
        if self.protocol.dequantisation == "uniform":
            return dq.uniform_cost(levels=levels)
        return dq.decoder_cost(float(self._lowest(program).sigma))

    def _lowest(self, program: StepTable | Driver) -> Marginal:
        """The process at the smallest time, as Python floats."""
        t = program.t_start if isinstance(program, Driver) else np.asarray(program.t)[0]
        return Marginal(*(float(leaf[0]) for leaf in self.denoiser.process.host(np.array([t]))))

    def _ode(
        self, params: Params, program: StepTable | Driver, batch: Batch, *, levels: int | None
    ) -> tuple[Array, Array]:
        """log p [b] in nats and the evaluations made."""
        denoise, (data, keys, cond) = self.denoiser.bind(params), batch
        process = self.denoiser.process
        t = program.t_start if isinstance(program, Driver) else program.t[0]
        m = process(jnp.asarray(t, jnp.float32))
        decoded = levels is not None and self.protocol.dequantisation == "decoder"
        if decoded:
            x = dq.noised(data, keys, m, levels=levels)
        else:
            x = m.alpha * (data if levels is None else dq.uniform(data, keys, levels=levels))
        found = self._nats(denoise, program, x, keys, cond)
        if not decoded:
            return found.logp + x[0].size * jnp.log(m.alpha), found.nfe
        x0_hat = denoise(x, jnp.asarray(t, x.dtype), cond)
        bins = dq.decoder_logp(data, x0_hat, m.sigma / m.alpha, levels=levels)
        return found.logp + bins, found.nfe + 1

    def _nats(
        self, denoise: DenoiseFn, program: StepTable | Driver, x: Array, keys: Key, cond: Cond
    ):
        protocol, process = self.protocol, self.denoiser.process
        how = {"divergence": protocol.divergence, "probes": protocol.probes, "cond": cond}
        if isinstance(program, StepTable):
            return log_likelihood(denoise, program, x, keys=keys, process=process, **how)
        ends = {"t_start": program.t_start, "t_end": program.t_end}
        own = dict(program.options)
        return log_likelihood_adaptive(
            denoise, process, x, keys=keys, **ends, **own, **program.tolerances, **how
        )

    def _elbo(self, params: Params, _: None, batch: Batch, *, levels: int) -> tuple[Array, Array]:
        found = elbo(
            self.denoiser.bind(params),
            self.denoiser.process,
            batch.data,
            keys=batch.keys,
            times=self.protocol.times,
            levels=levels,
            cond=batch.cond,
        )
        return found.logp, found.nfe


def _check_finite(logp: np.ndarray) -> None:
    wrong = int(np.sum(~np.isfinite(logp)))
    if wrong:
        raise UserError(
            f"likelihood: {wrong} of {len(logp)} examples have no finite log p; loosen the "
            "tolerances, raise max_evaluations, or look for a network that returns NaN"
        )
