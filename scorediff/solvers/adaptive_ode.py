"""Adaptive integration of the probability-flow ODE, by diffrax.

The ODE is equation (2) of `process`, dx/dt = alpha' x0_hat + sigma' eps_hat with eps_hat = (x -
alpha x0_hat) / sigma, which is finite where alpha = 0. At sigma = 0, where x is data and tells
nothing about the noise, E[eps | x] = 0 for every distribution that has a density.

diffrax integrates upwards in s = t or s = -t. What it is given here beside the vector field: a
step-size rule (`step_control`), the first step, and the first slope, so that no evaluation is made
twice. Every evaluation is counted: two before the first step, then the stages of every attempt
(six for the pairs of order 5, whose last stage is the first of the next step).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import diffrax
import jax
import jax.numpy as jnp

from scorediff.counting import counted
from scorediff.diffusion.process import Process
from scorediff.errors import UserError, check_choice
from scorediff.solvers.step_control import (
    RUNGE_KUTTA_RULES,
    Adaptive,
    RungeKuttaRule,
    check_options,
    denoised,
    first_step,
    rms,
    solve_samples,
)
from scorediff.types import Array, Cond, DenoiseFn

Field = Callable[[Any, Array, Cond], Any]
Slope = Callable[[Array, Any], Any]  # the field on the rising clock s
Count = Callable[[Array], Array]  # network evaluations at s
Pair = Literal["dopri5", "tsit5", "bosh3", "dopri8"]
Control = Literal["standard", "scipy", "torchdiffeq"]

_PAIRS = {  # in all of them a step's last stage is the next one's first
    "dopri5": diffrax.Dopri5,
    "tsit5": diffrax.Tsit5,
    "bosh3": diffrax.Bosh3,
    "dopri8": diffrax.Dopri8,
}
_FAR = 1e3  # a solve that may step past its end stops there at the latest, in lengths of the span


def adaptive_ode(
    denoise: DenoiseFn,
    process: Process,
    x: Array,
    *,
    t_start: float | None = None,
    t_end: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: Pair = "dopri5",
    control: Control = "standard",
    coupled: bool = False,
    to_data: bool = False,
    cond: Cond = None,
    max_evaluations: int = 10_000,
) -> Adaptive:
    """Carry x [b, *d] along the probability-flow ODE from t_start to t_end, up or down in t.

    The ends default to the process's t_max and t_min. By default each sample has its own steps, so
    it does not depend on the batch; with `coupled` the batch has one step size, from the error over
    all of it, which is what scipy and torchdiffeq do with a batch. `to_data` ends with one more
    evaluation, x0_hat at t_end.

    control: "standard"; or as "scipy" (its RK45) or "torchdiffeq" (its dopri5, which steps past
    t_end and interpolates) do, with solver="dopri5" and coupled=True.

    Song et al., arXiv 2011.13456, section 4.3. Raises UserError for options that make no sense;
    samples that need more than max_evaluations come back as NaN (`step_control.check_finished`).
    """
    t_start = process.t_max if t_start is None else t_start
    t_end = process.t_min if t_end is None else t_end
    if to_data and not t_end < t_start:
        raise UserError(
            f"adaptive_ode: to_data needs t_end < t_start, got t_start={t_start}, t_end={t_end}"
        )
    out = integrate(
        probability_flow(denoise, process),
        x,
        t_start=t_start,
        t_end=t_end,
        rtol=rtol,
        atol=atol,
        solver=solver,
        control=control,
        coupled=coupled,
        cond=cond,
        max_evaluations=max_evaluations,
    )
    return denoised(denoise, out, t_end, cond) if to_data else out


def probability_flow(denoise: DenoiseFn, process: Process) -> Field:
    """dx/dt of the probability-flow ODE as a function of (x [b, *d], t [b] or [], cond)."""

    def slope(x: Array, t: Array, cond: Cond) -> Array:
        m = process(t).expand(x)
        x0_hat = denoise(x, t, cond)
        at_data = m.sigma == 0
        eps_hat = (x - m.alpha * x0_hat) / jnp.where(at_data, 1.0, m.sigma)
        return m.dalpha * x0_hat + m.dsigma * jnp.where(at_data, 0.0, eps_hat)

    return slope


def integrate(
    field: Field,
    x: Any,
    *,
    t_start: float,
    t_end: float,
    rtol: float,
    atol: float,
    solver: Pair = "dopri5",
    control: Control = "standard",
    coupled: bool = False,
    cond: Cond = None,
    max_evaluations: int = 10_000,
) -> Adaptive:
    """Integrate dx/dt = field(x, t, cond) for any pytree x whose leaves are [b, ...].

    For an ODE that carries more than the state, as a likelihood does. Options as in `adaptive_ode`.
    `field` sees batches: [1, ...] where each sample has its own steps (they are vmapped), else all.
    """
    check_options("adaptive_ode", rtol=rtol, atol=atol, max_evaluations=max_evaluations)
    check_choice("adaptive_ode: solver", solver, tuple(_PAIRS))
    check_choice("adaptive_ode: control", control, tuple(RUNGE_KUTTA_RULES))
    if control != "standard" and solver != "dopri5":
        raise UserError(f"adaptive_ode: control={control!r} needs solver='dopri5', got {solver!r}")
    if t_start == t_end:
        raise UserError(f"adaptive_ode: t_start and t_end must differ, both are {t_start}")
    solve = _Solve(
        field=field,
        pair=_PAIRS[solver](),
        rule=RUNGE_KUTTA_RULES[control],
        t_start=t_start,
        t_end=t_end,
        rtol=rtol,
        atol=atol,
        max_evaluations=max_evaluations,
    )
    return solve_samples(solve, x, cond, coupled=coupled)


class _Solve(NamedTuple):
    """One solve with one step size, over a batch x."""

    field: Field
    pair: Any
    rule: RungeKuttaRule
    t_start: float
    t_end: float
    rtol: float
    atol: float
    max_evaluations: int

    def __call__(self, x: Any, cond: Cond) -> Adaptive:
        dtype = jnp.result_type(*jax.tree.leaves(x), jnp.float32)
        up = 1 if self.t_end > self.t_start else -1
        first, last = (jnp.asarray(up * t, dtype) for t in (self.t_start, self.t_end))

        def slope(s: Array, x: Any) -> Any:
            return jax.tree.map(lambda leaf: up * leaf, self.field(x, up * s, cond))

        batch = jax.tree.leaves(x)[0].shape[0]
        here, spent_here = counted(lambda: slope(first, x), batch=batch)
        step, spent_there = counted(
            lambda: self.first_step(slope, first, last, x, here), batch=batch
        )
        solution = self.solve(slope, first, last, step, x, here, _count_at(slope, x, batch))
        arrived = diffrax.is_successful(solution.result) | diffrax.is_event(solution.result)
        spent = spent_here + spent_there + solution.controller_state.spent
        return Adaptive(
            x=jax.tree.map(lambda leaf: jnp.where(arrived, leaf[0], jnp.nan), solution.ys),
            nfe=jnp.asarray(spent, jnp.float32),
            accepted=solution.stats["num_accepted_steps"],
            rejected=solution.stats["num_rejected_steps"],
            finished=arrived,
        )

    def first_step(self, slope: Slope, first: Array, last: Array, x: Any, here: Any) -> Array:
        return jax.lax.stop_gradient(
            first_step(
                slope,
                first,
                x,
                here,
                rtol=self.rtol,
                atol=self.atol,
                order=self.pair.order(None),
                longest=jnp.inf if self.rule.steps_past_end else last - first,
            )
        )

    def solve(
        self, slope: Slope, first: Array, last: Array, step: Array, x: Any, here: Any, count: Count
    ) -> diffrax.Solution:
        past = self.rule.steps_past_end
        stages = tuple(self.pair.tableau.c.tolist())  # all but the first, which is the last one's
        where = {"ts": last[None]} if past else {"t1": True}
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda s, x, args: slope(s, x)),
            self.pair,
            t0=first,
            t1=last + _FAR * (last - first) if past else last,
            dt0=step,
            y0=x,
            saveat=diffrax.SaveAt(**where, controller_state=True),
            stepsize_controller=_Controller(self.rtol, self.atol, rms, self.rule, count, stages),
            solver_state=(jnp.array(False), here),  # the first slope is known
            max_steps=max(1, (self.max_evaluations - 2) // len(stages)),
            event=diffrax.Event(lambda s, x, args, **solve: s >= last) if past else None,
            throw=False,
        )


def _count_at(slope: Slope, x: Any, batch: int) -> Count:
    """How many network evaluations one call of `slope` makes at s (guidance may depend on it)."""

    def count(s: Array) -> Array:
        return counted(lambda: slope(s, x), batch=batch)[1]

    seen = []
    jax.eval_shape(lambda s: seen.append(count(s)), jnp.zeros(()))
    return count if isinstance(seen[0], jax.core.Tracer) else lambda s: seen[0]


class _Memory(NamedTuple):
    rejected: Array  # whether the last attempt was
    spent: Array  # evaluations so far


class _Controller(diffrax.AbstractAdaptiveStepSizeController[_Memory, Array]):
    """A rule of `step_control` in diffrax's terms, which also counts evaluations."""

    rtol: float
    atol: float
    norm: Callable
    rule: RungeKuttaRule
    count: Count
    stages: tuple[float, ...]  # where in a step the network is evaluated, in [0, 1]

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return t0 + dt0, _Memory(jnp.array(False), jnp.zeros((), jnp.float32))

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        old, new, error = jax.lax.stop_gradient((y0, y1_candidate, y_error))
        largest = jax.tree.map(lambda a, b: jnp.maximum(jnp.abs(a), jnp.abs(b)), old, new)
        scale = jax.tree.map(lambda leaf: self.atol + self.rtol * leaf, largest)
        kept, factor = self.rule(self.norm(error, scale), error_order, controller_state.rejected)
        start, step = jnp.where(kept, t1, t0), (t1 - t0) * factor
        stuck = ~(start + step > start)  # too short for the clock, or NaN
        result = diffrax.RESULTS.where(
            stuck, diffrax.RESULTS.dt_min_reached, diffrax.RESULTS.successful
        )
        spent = sum(self.count(t0 + c * (t1 - t0)) for c in self.stages)
        memory = _Memory(~kept, controller_state.spent + spent)
        return kept, start, start + step, False, memory, result
