"""The one loop that runs every table, and `Sampler`, which makes a table within a budget."""

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scorediff.counting import counted, measured, record
from scorediff.diffusion.process import Process
from scorediff.errors import UserError
from scorediff.solvers.grid import Grid, Spacing, make_grid, upward
from scorediff.solvers.noise import NoiseSource, independent, stream_of
from scorediff.solvers.spacing import logsnr
from scorediff.solvers.table import NOISE, StepTable, marginal_before
from scorediff.types import Array, Cond, DenoiseFn, Key

# Streams of a sample's own key; row k draws from ROWS + k, and what adjusts it from _ADJUST + k.
_PRIOR, _START, ROWS, _ADJUST = 0, 1, 2, 1 << 20


class Evaluation(NamedTuple):
    """What a trace sees at each row: the point, its time and the estimate there."""

    x: Array
    t: Array
    x0_hat: Array


class Point(NamedTuple):
    """What an adjustment sees before each row: the state [b, *d] and where it stands."""

    x: Array
    t: Array
    alpha: Array
    sigma: Array
    k: Array  # number of the row


class Outcome(NamedTuple):
    """Samples [b, *d], the network evaluations made for each, and what the trace returned."""

    x: Array
    nfe: Array
    seen: Any


Trace = Callable[[Evaluation], Any]
Adjust = Callable[[Point, Key], Array]
Solver = Callable[[Grid], StepTable]  # what else samples: `program`


def sample_keys(key: Key, indices: Array) -> Key:
    """One key per sample index [b]: a sample does not depend on the batch that it is drawn in."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def sample_prior(table: StepTable, keys: Key, shape: tuple[int, ...]) -> Array:
    """What sampling starts from, N(0, sigma^2) at the table's first node, [b, *shape] float32.

    The data's share alpha x0 of the true marginal is left out, as is usual: alpha is small there.
    """
    return prior_noise(marginal_before(table)[1], keys, shape)


def prior_noise(sigma: float | Array, keys: Key, shape: tuple[int, ...]) -> Array:
    """The samples' own draws of N(0, sigma^2), [b, *shape] float32."""
    draw = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))
    return jnp.asarray(sigma, jnp.float32) * draw(stream_of(keys, _PRIOR))


def sample(
    denoise: DenoiseFn,
    table: StepTable,
    x: Array,
    *,
    keys: Key,
    cond: Cond = None,
    trace: Trace | None = None,
    noise: NoiseSource = independent,
    adjust: Adjust | None = None,
) -> Array | tuple[Array, Any]:
    """Run a table from x [b, *d] at its first node; keys [b] are the samples' own.

    With a trace, returns (samples, what the trace returned at each row, stacked). `adjust` may
    change the state before each evaluation (Langevin corrector, replacement). Compile around it
    with the table as an argument: then no solver, grid, order, eta or churn of equal NFE compiles
    again.
    """
    out = run(denoise, table, x, keys=keys, cond=cond, trace=trace, noise=noise, adjust=adjust)
    return out.x if trace is None else (out.x, out.seen)


def run(
    denoise: DenoiseFn,
    table: StepTable,
    x: Array,
    *,
    keys: Key,
    cond: Cond = None,
    trace: Trace | None = None,
    noise: NoiseSource = independent,
    adjust: Adjust | None = None,
) -> Outcome:
    """`sample`, with the network evaluations as they were counted at the network call."""
    loop = _Loop(denoise, _like(table, x), keys, cond, trace, noise, adjust)
    carry, seen = jax.lax.scan(loop.row, loop.start(x), jnp.arange(table.nfe))
    record(carry.nfe * x.shape[0])
    return Outcome(carry.e, carry.nfe, seen)


def sample_bounded(
    denoise: DenoiseFn,
    table: StepTable,
    rows: Array,
    x: Array,
    *,
    keys: Key,
    cond: Cond = None,
    noise: NoiseSource = independent,
    adjust: Adjust | None = None,
) -> Array:
    """Run the first `rows` rows of a padded table (`table.pad`), a number known only when run.

    One compilation serves every NFE up to the padded length; rows that are not run cost nothing.
    """
    loop = _Loop(denoise, _like(table, x), keys, cond, None, noise, adjust)
    return jax.lax.fori_loop(0, rows, lambda k, carry: loop.row(carry, k)[0], loop.start(x)).e


class _Carry(NamedTuple):
    e: Array
    b: Array
    history: tuple[Array, ...]
    nfe: Array


class _Loop(NamedTuple):
    """What stays the same from row to row."""

    denoise: DenoiseFn
    table: StepTable
    keys: Key
    cond: Cond
    trace: Trace | None
    noise: NoiseSource
    adjust: Adjust | None

    def start(self, x: Array) -> _Carry:
        scale, churn = self.table.start
        e = scale * x + churn * self.draw(_START, jnp.full(2, jnp.nan), churn != 0, x)
        zero = jnp.zeros_like(x)
        return _Carry(e, zero, (zero,) * self.table.history, jnp.zeros((), jnp.float32))

    def row(self, carry: _Carry, k: Array) -> tuple[_Carry, Any]:
        table = self.table
        t, keep, to_e, to_b = table.t[k], table.keep[k], table.e[k], table.b[k]
        (e, x0_hat), count = measured(lambda: self.evaluate(carry.e, k, t), carry.e.shape[0])
        history = (keep[0] * e + keep[1] * x0_hat, *carry.history[:-1])
        noisy = (to_e[NOISE] != 0) | (to_b[NOISE] != 0)
        registers = (e, carry.b, self.draw(ROWS + k, table.over[k], noisy, e), *history)
        seen = None if self.trace is None else self.trace(Evaluation(x=e, t=t, x0_hat=x0_hat))
        to = (_combine(to_e, registers), _combine(to_b, registers))
        return _Carry(*to, history, carry.nfe + count), seen

    def evaluate(self, e: Array, k: Array, t: Array) -> tuple[Array, Array]:
        if self.adjust is not None:
            point = Point(e, t, self.table.alpha[k], self.table.sigma[k], k)
            e = self.adjust(point, stream_of(self.keys, _ADJUST + k))
        return e, counted(lambda: self.denoise(e, t, self.cond), batch=e.shape[0])[0]

    def draw(self, stream: Array, over: Array, wanted: Array, x: Array) -> Array:
        return jax.lax.cond(
            wanted,
            lambda: self.noise(self.keys, stream, over, x),
            lambda: jnp.zeros_like(x),
        )


def _like(table: StepTable, x: Array) -> StepTable:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), table)


def _combine(coefficients: Array, registers: tuple[Array, ...]) -> Array:
    return sum(c * register for c, register in zip(coefficients, registers, strict=True))


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A solver, its spacing and a budget of network evaluations.

    `nfe` is an upper bound: the grid has the most steps whose table has no more rows than that
    (Heun to data spends an odd number). The table's `nfe` is what is really spent. With `climbs`
    the table goes from t_end up to t_start, for likelihoods and inversion.
    """

    solver: Solver
    grid: Spacing = logsnr
    nfe: int = 20
    to_data: bool = True
    t_start: float | None = None
    t_end: float | None = None
    climbs: bool = False

    def __post_init__(self):
        if self.nfe < 1:
            raise ValueError(f"nfe must be at least 1, got {self.nfe}")
        if self.climbs and self.to_data:
            raise ValueError("a table that climbs cannot end at data: to_data must be False")

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
        return self.solver(upward(grid) if self.climbs else grid)
