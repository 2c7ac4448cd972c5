"""Hand-made solvers on one problem: what the instruments `compare` and `search` measure.

The error of a solver is the root mean square distance of its samples from where the exact flow
takes the same noise. On a trained run the flow is followed in many steps; on a bed the denoiser is
exact, so the flow can be followed to far less noise than t_min as well.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.counting import counted
from scorediff.data.toy import ExactDistribution, Gaussian, GaussianMixture
from scorediff.diffusion.process import Process
from scorediff.errors import UserError
from scorediff.evaluation.table_search import Problem, rms
from scorediff.solvers import Sampler, StepTable, dpmpp_multistep, sample, sample_keys
from scorediff.solvers.grid import Spacing
from scorediff.solvers.sample import Solver, sample_bounded
from scorediff.solvers.spacing import logsnr, trigonometric
from scorediff.solvers.table import NOISE, pad
from scorediff.training.mesh import batch_sharding, make_mesh
from scorediff.types import Array, Cond, DenoiseFn

_TURNS = np.radians([20.0, 75.0, -40.0, 110.0, 0.0])

BEDS: Mapping[str, ExactDistribution] = {
    "A": GaussianMixture(
        weights=(0.3, 0.25, 0.2, 0.15, 0.1),
        means=((-1.2, -0.6), (0.9, -1.1), (0.2, 0.8), (1.4, 0.9), (-0.7, 1.3)),
        stds=((0.35, 0.12), (0.28, 0.15), (0.4, 0.1), (0.2, 0.18), (0.3, 0.08)),
        axes=tuple(((np.cos(a), -np.sin(a)), (np.sin(a), np.cos(a))) for a in _TURNS.tolist()),
    ),
    "B": Gaussian(mean=(0.5, -0.5) * 8, stds=tuple(np.geomspace(0.05, 1.5, 16).tolist())),
}

HAND_MADE = (
    "ddim,euler,heun,midpoint,dpmpp_multistep:order=2,dpmpp_multistep:order=3,"
    "dpmpp_multistep:order=2:lower_order_final=false,"
    "dpmpp_multistep:order=3:lower_order_final=false,dpm_multistep:order=2,dpm_multistep:order=3,"
    "unipc:order=2,unipc:order=3,unipc:order=3:lower_order_final=false,deis:order=2,deis:order=3,"
    "ipndm:order=2,ipndm:order=3,ipndm:order=4,ipndm:order=2:extrapolate_to_data=true,"
    "ipndm:order=3:extrapolate_to_data=true,unipc:order=1:variant=bh1:prediction=eps,"
    "lms:order=2,lms:order=3,lms:order=4,"
    "dpm_singlestep:order=2,dpm_singlestep_mixed:order=2,dpm_singlestep_mixed:order=3"
)
SPACINGS = (
    "uniform,quadratic,logsnr,beta,trigonometric,"
    "karras:rho=2,karras:rho=3,karras:rho=5,karras,karras:rho=12"
)
"""What a found table has to beat."""


class Model(NamedTuple):
    """What is sampled: a denoiser under a process, the shape of x0, and the condition by index."""

    denoise: DenoiseFn
    process: Process
    shape: tuple[int, ...]
    cond: Callable[[np.ndarray], Cond]


class Candidate(NamedTuple):
    """A hand-made solver on a grid, and what it measured."""

    name: str
    spacing: str
    sampler: Sampler
    table: StepTable
    error: float = np.inf

    def __str__(self) -> str:
        end = "" if self.sampler.to_data else " not to data"
        end += "" if self.sampler.t_end is None else f" t_end={self.sampler.t_end:.3g}"
        return f"{self.name} on {self.spacing}{end}"


def is_noisy(table: StepTable) -> bool:
    """Whether a table adds noise, in its rows or before them."""
    return bool(table.start[1] or np.any(table.e[:, NOISE]) or np.any(table.b[:, NOISE]))


def bed_model(name: str, process: Process) -> Model:
    """A bed, exactly known, under a process."""
    if name not in BEDS:
        raise UserError(f"--bed={name}: the beds are {', '.join(BEDS)}")
    bed = BEDS[name]
    return Model(bed.denoiser(process), process, (bed.dim,), lambda index: None)


def reference_table(process: Process, nfe: int) -> StepTable:
    """Many steps of third order, which stand for the exact flow."""
    solver = functools.partial(dpmpp_multistep, order=3)
    try:
        return Sampler(solver=solver, grid=logsnr, nfe=nfe).table(process)
    except UserError:  # pure noise at t_max, or pure data at t_min
        return Sampler(solver=solver, grid=trigonometric, nfe=nfe).table(process)


class Bench:
    """Runs any table on one model with a single compilation, `batch` samples at once."""

    def __init__(self, model: Model, *, rows: int, batch: int = 256):
        self.model, self.rows = model, rows
        devices = make_mesh().size
        self.batch = -(-batch // devices) * devices

    def __call__(self, table: StepTable, x: Array, cond: Cond) -> np.ndarray:
        """Where the table takes x [n, *d]."""
        padded, rows = pad(table, self.rows), table.nfe
        return self._in_batches(lambda *part: self._run(padded, rows, *part), x, cond)

    def points(self, table: StepTable, x: Array, cond: Cond) -> np.ndarray:
        """Where the table evaluates on the way from x [n, *d], [nfe, n, *d]."""
        points = self._in_batches(lambda *part: self._points(table, *part), x, cond)
        return np.moveaxis(points, 1, 0)

    def estimate(self, x: np.ndarray, t: float, cond: Cond) -> np.ndarray:
        """x0_hat of x [n, *d] at one time."""
        t = np.asarray(t, jnp.result_type(float))
        return self._in_batches(lambda x, cond: self._estimate(x, t, cond), x, cond)

    def _in_batches(self, run: Callable[..., Array], x: Array, cond: Cond) -> np.ndarray:
        """run(x, cond) of `batch` samples at once."""
        taken, n = [], x.shape[0]
        for start in range(0, n, self.batch):
            index = np.arange(start, start + self.batch) % n  # the last batch is filled up
            part = jax.tree.map(operator.itemgetter(index), (x, cond))
            part = jax.device_put(part, batch_sharding(make_mesh()))
            taken.append(np.asarray(run(*part))[: n - start])
        return np.concatenate(taken)

    def calls(self, table: StepTable) -> float:
        """Network evaluations of a sample, as counted at the network: a guided row makes two."""
        return sum(float(self._count(t)) for t in table.t[: table.nfe])

    @functools.cached_property
    def _count(self):
        x, cond = jnp.zeros((1, *self.model.shape)), self.model.cond(np.zeros(1, int))

        @jax.jit
        def count(t: Array) -> Array:
            return jnp.asarray(counted(lambda: self.model.denoise(x, t, cond), batch=1)[1])

        return count

    @functools.cached_property
    def _run(self):
        @jax.jit
        def run(table: StepTable, rows: Array, x: Array, cond: Cond) -> Array:
            keys = sample_keys(jax.random.key(0), jnp.arange(x.shape[0]))
            return sample_bounded(self.model.denoise, table, rows, x, keys=keys, cond=cond)

        return run

    @functools.cached_property
    def _points(self):
        @jax.jit
        def points(table: StepTable, x: Array, cond: Cond) -> Array:
            keys = sample_keys(jax.random.key(0), jnp.arange(x.shape[0]))
            denoise, trace = self.model.denoise, operator.attrgetter("x")
            seen = sample(denoise, table, x, keys=keys, cond=cond, trace=trace)[1]
            return jnp.moveaxis(seen, 0, 1)

        return points

    @functools.cached_property
    def _estimate(self):
        return jax.jit(self.model.denoise)

    def problem(self, reference: StepTable, n: int, *, seed: int) -> Problem:
        """n noises of t_max and where the reference takes them."""
        sigma = float(self.model.process.host(np.array([self.model.process.t_max])).sigma[0])
        noise = np.random.default_rng(seed).standard_normal((n, *self.model.shape))
        x, cond = jnp.asarray(sigma * noise, jnp.result_type(float)), self.model.cond(np.arange(n))
        return Problem(x, cond, jnp.asarray(self(reference, x, cond)), jnp.ones(n))

    def error(self, table: StepTable, problem: Problem) -> float:
        """Root mean square distance from the reference."""
        return rms(self(table, problem.x, problem.cond), problem.target, problem.weight)

    def measured(self, candidates: Sequence[Candidate], problem: Problem) -> list[Candidate]:
        """The candidates with their errors, the best first."""
        found = [c._replace(error=self.error(c.table, problem)) for c in candidates]
        return sorted(found, key=lambda candidate: candidate.error)


def candidates(
    process: Process,
    solvers: Mapping[str, Solver],
    spacings: Mapping[str, Spacing],
    nfe: int,
    *,
    ends: Sequence[tuple[bool, float | None]] = ((True, None), (False, None)),
) -> Iterator[Candidate]:
    """Every solver without noise on every spacing, within `nfe`; what does not fit is left out.

    ends: (to_data, t_end), as in `Sampler`. Those that end at t_min are taken for data.
    """
    for (name, solver), (where, grid), (to_data, t_end) in itertools.product(
        solvers.items(), spacings.items(), ends
    ):
        sampler = Sampler(solver=solver, grid=grid, nfe=nfe, to_data=to_data, t_end=t_end)
        try:
            table = sampler.table(process)
        except UserError:
            continue
        if not is_noisy(table) and all(np.isfinite(leaf).all() for leaf in (table.e, table.b)):
            yield Candidate(name, where, sampler, table)


def tuned(candidate: Candidate, process: Process, levels: Sequence[float]) -> list[Candidate]:
    """The same solver and spacing, also ending at other noise levels sigma/alpha."""
    times = process.host_when(np.ones(len(levels)), np.array(levels))
    ends = [(to_data, t) for to_data in (True, False) for t in times.tolist() if t > 0]
    sampler = candidate.sampler
    solvers, spacings = {candidate.name: sampler.solver}, {candidate.spacing: sampler.grid}
    return list(candidates(process, solvers, spacings, sampler.nfe, ends=ends))


def best_hand_made(
    bench: Bench,
    solvers: Mapping[str, Solver],
    spacings: Mapping[str, Spacing],
    nfe: int,
    problem: Problem,
    *,
    levels: Sequence[float] = (0.01, 0.02, 0.04, 0.08, 0.16),
    tune: int = 2,
) -> list[Candidate]:
    """Hand-made solvers, the best first: all on all spacings, each on its best `tune` of these with
    tuned ends too."""
    process = bench.model.process
    ranked = bench.measured(list(candidates(process, solvers, spacings, nfe)), problem)
    more = []
    for name in solvers:
        best = {c.spacing: c for c in reversed(ranked) if c.name == name}  # of each spacing
        for one in sorted(best.values(), key=lambda c: c.error)[:tune]:
            more += tuned(one, process, levels)
    return sorted([*ranked, *bench.measured(more, problem)], key=lambda c: c.error)
