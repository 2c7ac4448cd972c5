"""One adaptive solve of an ODE, by diffrax.

diffrax integrates upwards in s = t or s = -t. What it is given here beside the vector field: a
step-size rule (`step_control`), the first step, and the first slope, so that no evaluation is made
twice. Every evaluation is counted: two before the first step, then the stages of every attempt
(six for the pairs of order 5, whose last stage is the first of the next step).

Importing diffrax takes a second, which runs with a table need not wait for: `adaptive_ode` imports
this module where it solves.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from scorediff.counting import counted
from scorediff.solvers.step_control import Adaptive, RungeKuttaRule, first_step, rms
from scorediff.types import Array, Cond

Field = Callable[[Any, Array, Cond], Any]
Slope = Callable[[Array, Any], Any]  # the field on the rising clock s
Count = Callable[[Array], Array]  # network evaluations at s


class _Interpolation(diffrax.Dopri5.interpolation_cls):
    """diffrax's, its coefficients a new array whenever it is traced.

    jax 0.10 keeps a numpy constant in the precision in which it first met that very array, so a
    solve in float32 would leave later ones in float64 of the same process 1e-9 off.
    """

    @property
    def c_mid(self) -> np.ndarray:
        return np.array(super().c_mid)


class _Dopri5(diffrax.Dopri5):
    interpolation_cls = _Interpolation


PAIRS = {  # in all of them a step's last stage is the next one's first
    "dopri5": _Dopri5,
    "tsit5": diffrax.Tsit5,
    "bosh3": diffrax.Bosh3,
    "dopri8": diffrax.Dopri8,
}
_FAR = 1e3  # a solve that may step past its end stops there at the latest, in lengths of the span


class Solve(NamedTuple):
    """One solve with one step size, over a batch x."""

    field: Field
    pair: Any  # one of PAIRS, made
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
