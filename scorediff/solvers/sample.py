"""The one loop that runs every table, and `Sampler`, which makes a table within a budget."""

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scorediff.diffusion.process import Process
from scorediff.errors import UserError
from scorediff.solvers.grid import Grid, Spacing, logsnr, make_grid
from scorediff.solvers.table import HISTORY, StepTable
from scorediff.types import Array, Cond, DenoiseFn, Key

_PRIOR, _START, _ROWS = 0, 1, 2  # streams of a sample's own key; row k draws from stream _ROWS + k


class Evaluation(NamedTuple):
    """What a trace sees at each row: the point, its time and the estimate there."""

    x: Array
    t: Array
    x0_hat: Array


Trace = Callable[[Evaluation], Any]
Solver = Callable[[Grid], StepTable]


def sample_keys(key: Key, indices: Array) -> Key:
    """One key per sample index [b]: a sample does not depend on the batch that it is drawn in."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def sample_prior(table: StepTable, keys: Key, shape: tuple[int, ...]) -> Array:
    """What sampling starts from, N(0, sigma^2) at the table's first node, [b, *shape] float32.

    The data's share alpha x0 of the true marginal is left out, as is usual: alpha is small there.
    """
    scale, churn = table.start[0], table.start[1]
    sigma = jnp.sqrt(table.sigma[0] ** 2 - churn**2) / scale  # before the first row's churn
    draw = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))
    return jnp.asarray(sigma, jnp.float32) * draw(_stream(keys, _PRIOR))


def sample(
    denoise: DenoiseFn,
    table: StepTable,
    x: Array,
    *,
    keys: Key,
    cond: Cond = None,
    trace: Trace | None = None,
) -> Array | tuple[Array, Any]:
    """Run a table from x [b, *d] at its first node; keys [b] are the samples' own.

    With a trace, returns (samples, what the trace returned at each row, stacked). Compile around it
    with the table as an argument: then no solver, grid, order, eta or churn of equal NFE compiles
    again.
    """
    table = jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), table)

    def noise(stream: Array, wanted: Array) -> Array:
        return jax.lax.cond(
            wanted != 0, lambda: _normal(_stream(keys, stream), x), lambda: jnp.zeros_like(x)
        )

    def row(carry, inputs):
        e, b, history = carry
        k, t, to_e, to_b = inputs
        x0_hat = denoise(e, t, cond)
        history = (x0_hat, *history[:-1])
        registers = (e, b, noise(_ROWS + k, to_e[2]), *history)
        seen = None if trace is None else trace(Evaluation(x=e, t=t, x0_hat=x0_hat))
        return (_combine(to_e, registers), _combine(to_b, registers), history), seen

    e = table.start[0] * x + table.start[1] * noise(_START, table.start[1])
    carry = (e, jnp.zeros_like(x), (jnp.zeros_like(x),) * HISTORY)
    inputs = (jnp.arange(table.nfe), table.t[:-1], table.e, table.b)
    (e, _, _), seen = jax.lax.scan(row, carry, inputs)
    return e if trace is None else (e, seen)


def _combine(coefficients: Array, registers: tuple[Array, ...]) -> Array:
    return sum(c * register for c, register in zip(coefficients, registers, strict=True))


def _stream(keys: Key, stream) -> Key:
    return jax.vmap(lambda key: jax.random.fold_in(key, stream))(keys)


def _normal(keys: Key, x: Array) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A solver, its spacing and a budget of network evaluations.

    `nfe` is an upper bound: the grid has the most steps whose table has no more rows than that
    (Heun to data spends an odd number). The table's `nfe` is what is really spent.
    """

    solver: Solver
    grid: Spacing = logsnr
    nfe: int = 20
    to_data: bool = True
    t_start: float | None = None
    t_end: float | None = None

    def __post_init__(self):
        if self.nfe < 1:
            raise ValueError(f"nfe must be at least 1, got {self.nfe}")

    def table(self, process: Process) -> StepTable:
        """The table within the budget."""
        table = self._with_steps(process, self.nfe)
        if table.nfe <= self.nfe:  # one evaluation a step, as most have
            return table
        steps = bisect.bisect_right(
            range(1, self.nfe), self.nfe, key=lambda n: self._with_steps(process, n).nfe
        )
        if steps == 0:
            raise UserError(f"no step of this solver fits into nfe={self.nfe}")
        return self._with_steps(process, steps)

    def _with_steps(self, process: Process, n: int) -> StepTable:
        grid = make_grid(
            process,
            self.grid,
            n,
            to_data=self.to_data,
            t_start=self.t_start,
            t_end=self.t_end,
        )
        return self.solver(grid)
