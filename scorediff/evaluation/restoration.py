"""Degraded images restored by a model: the methods of `solvers.inverse`, and what they achieve.

A method is a function of a `Setting`, with options written name:option=value; it looks at grid and
solver on the host and gives a `Restorer`, whose `run` is what is compiled. Guided methods put the
measurement into the condition, so that any solver may split a batch, as adaptive ones do.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.errors import UserError
from scorediff.evaluation.examples import Batch, Examples, batches
from scorediff.evaluation.generate import Generator, kept
from scorediff.evaluation.solver_names import parse
from scorediff.solvers import StepTable, inverse, make_grid
from scorediff.solvers import program as programs
from scorediff.solvers.grid import Grid
from scorediff.solvers.inverse import LinearOperator
from scorediff.solvers.noise import check_path, independent, normal, stream_of
from scorediff.solvers.program import Driver, Program
from scorediff.solvers.sample import Adjust, Outcome, run
from scorediff.solvers.step_control import Adaptive
from scorediff.solvers.table import COLUMNS
from scorediff.types import Array, Cond, DenoiseFn, Key, Params

PEAK = 2.0  # of images in [-1, 1]
_MEASUREMENT = (1 << 22) + 6  # stream of an example's own key


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a method has: the model and how it is sampled, the solver, the operator and its noise.

    noise_std: of the measurement y = A x0 + n, in units of x0.
    """

    generator: Generator
    solver: Callable
    operator: LinearOperator
    noise_std: float = 0.0

    def __post_init__(self):
        if not self.noise_std >= 0:
            raise UserError(f"noise_std must be at least 0, got {self.noise_std}")
        if self.generator.sampling.corrector is not None:
            raise UserError("restoring takes no corrector; leave config.sampling.corrector None")

    @property
    def process(self):
        return self.generator.denoiser.process

    def program(self, **changes: Any) -> Program:
        """The solver on the config's grid, with changes to `Sampling`."""
        sampling = dataclasses.replace(self.generator.sampling, **changes)
        found = sampling.program(self.solver, self.process)
        if not isinstance(found, StepTable | Driver):
            raise UserError("restoring takes no learned variance; name another solver")
        return found

    def table(self, **changes: Any) -> StepTable:
        """The same where the method needs one evaluation a step, falling in t."""
        found = self.program(**changes)
        falls = isinstance(found, StepTable) and (np.diff(found.t) < 0).all()
        if not falls or found.e[:, COLUMNS.index("b")].any():
            raise UserError(
                "this method needs a solver with one evaluation a step, such as ddim or ancestral"
            )
        return found

    def grid(self) -> Grid:
        """The config's grid, of as many steps as its budget."""
        s = self.generator.sampling
        ends = {"to_data": s.to_data, "t_start": s.t_start, "t_end": s.t_end}
        return make_grid(self.process, s.grid, s.nfe, **ends)


class Restorer(NamedTuple):
    """run: (denoise, y, keys, cond) -> samples. program: the solver's, or a method's own grid."""

    run: Callable[[DenoiseFn, Array, Key, Cond], Outcome | Adaptive]
    program: Program | Grid

    @property
    def rows(self) -> int | None:
        """The evaluations of `denoise`, where they are known before."""
        grid = isinstance(self.program, Grid)
        return len(self.program) if grid else programs.rows(self.program)

    @property
    def times(self) -> np.ndarray:
        """Where the network is evaluated, or both ends of it."""
        if not isinstance(self.program, Grid):
            return programs.times(self.program)
        return np.array([node.t for node in self.program.nodes[:-1]])


def pigdm(setting: Setting, *, scale: float = 1.0, data_std: float = 1.0) -> Restorer:
    """Pi-GDM; data_std is the deviation of the data that its variance assumes."""
    variance = functools.partial(inverse.unit_data, std=data_std)
    return _guided(setting, setting.program(), inverse.pigdm, variance=variance, scale=scale)


def dps(setting: Setting, *, scale: float = 1.0) -> Restorer:
    """DPS with the likelihood's own weight; needs noise in the measurement."""
    return _guided(setting, setting.program(), inverse.dps, scale=scale)


def dps_steps(setting: Setting, *, step: float = 1.0) -> Restorer:
    """DPS with the step length of its algorithm 1."""
    table = setting.table()

    def guide(denoise: DenoiseFn, y: Array) -> DenoiseFn:
        return inverse.dps_steps(denoise, setting.operator, y, table=table, step=step)

    return _measured(setting, table, guide)


def replacement(setting: Setting) -> Restorer:
    """Noisy versions of the measurement before each evaluation."""
    return _replaced(setting, setting.table())


def repaint(setting: Setting, *, jump: int = 10, resamplings: int = 10) -> Restorer:
    """The same with RePaint's schedule on the grid, which spends more than the budget."""
    setting.table()  # of which it is made, with jumps up
    table = inverse.repaint(
        setting.grid(), jump=jump, resamplings=resamplings, solver=setting.solver
    )
    if setting.generator.sampling.noise is not independent:
        check_path(table)
    return _replaced(setting, table)


def ddrm(setting: Setting, *, eta: float = 0.85, eta_b: float = 1.0) -> Restorer:
    """DDRM, which is its own solver on the grid."""
    grid = setting.grid()
    if setting.generator.sampling.noise is not independent:
        raise UserError("ddrm draws its own noise; leave config.sampling.noise independent")

    def run(denoise: DenoiseFn, y: Array, keys: Key, cond: Cond) -> Outcome:
        noise = {"noise_std": setting.noise_std, "eta": eta, "eta_b": eta_b}
        return inverse.ddrm(denoise, grid, setting.operator, y, keys=keys, cond=cond, **noise)

    return Restorer(run, grid)


def sdedit(setting: Setting, *, t: float = 0.5) -> Restorer:
    """SDEdit from the smallest image that fits the measurement, noised to time t."""
    table = setting.program(t_start=t)
    if not isinstance(table, StepTable):
        raise UserError("sdedit needs a solver with a table, such as ddim")

    def run(denoise: DenoiseFn, y: Array, keys: Key, cond: Cond) -> Outcome:
        guide, noise = setting.operator.pseudo_inverse(y), setting.generator.sampling.noise
        return inverse.sdedit(denoise, table, guide, keys=keys, cond=cond, noise=noise)

    return Restorer(run, table)


METHODS: Mapping[str, Callable[..., Restorer]] = {
    method.__name__: method
    for method in (pigdm, dps, dps_steps, replacement, repaint, ddrm, sdedit)
}


def parse_method(text: str) -> Callable[[Setting], Restorer]:
    """The method of a text like "pigdm:data_std=0.5"."""
    methods = parse("method", text, METHODS)
    if len(methods) > 1:
        raise UserError(f"--method={text}: one at a time")
    return next(iter(methods.values()))


def prepare(method: Callable[[Setting], Restorer], setting: Setting) -> Restorer:
    """The method's restorer, tried without numbers on a denoiser that costs nothing."""
    restorer = method(setting)

    def trial(key: Key):
        y = jnp.zeros((1, *setting.operator.data_shape))
        return restorer.run(lambda x, t, cond=None: x, y, key[None], None)

    jax.eval_shape(trial, jax.random.key(0))
    return restorer


class _Given(NamedTuple):
    """What a guided denoiser has for its cond: the network's own, and the measurement."""

    cond: Cond
    y: Array


def _guided(setting: Setting, program: Program, rule: Callable, **options: Any) -> Restorer:
    def guide(denoise: DenoiseFn, y: Array) -> DenoiseFn:
        given = {"process": setting.process, "noise_std": setting.noise_std, **options}
        return rule(denoise, setting.operator, y, **given)

    return _measured(setting, program, guide)


def _measured(setting: Setting, program: Program, guide: Callable) -> Restorer:
    """The program on denoise with the measurement around it."""

    def run(denoise: DenoiseFn, y: Array, keys: Key, cond: Cond) -> Outcome | Adaptive:
        def guided(x: Array, t: Array, given: _Given) -> Array:
            return guide(denoise, given.y)(x, t, given.cond)

        return _run(setting, program, guided, keys, _Given(cond, y))

    return Restorer(run, program)


def _replaced(setting: Setting, table: StepTable) -> Restorer:
    def run(denoise: DenoiseFn, y: Array, keys: Key, cond: Cond) -> Outcome:
        adjust = inverse.replacement(setting.operator, y, noise_std=setting.noise_std)
        out = _run(setting, table, denoise, keys, cond, adjust)
        # The last step estimates all of x0; what is known without noise need not be estimated.
        return out if setting.noise_std else out._replace(x=setting.operator.impose(out.x, y))

    return Restorer(run, table)


def _run(
    setting: Setting,
    program: Program,
    denoise: DenoiseFn,
    keys: Key,
    cond: Any,
    adjust: Adjust | None = None,
) -> Outcome | Adaptive:
    x = programs.prior(program, keys, setting.operator.shape)
    if isinstance(program, Driver):
        return program(denoise, x, cond=cond)
    noise = setting.generator.sampling.noise
    return run(denoise, program, x, keys=keys, cond=cond, noise=noise, adjust=adjust)


class Restored(NamedTuple):
    """n images [n, *shape]: as they were, the smallest that fits what was measured, and restored.

    missed: y - A x of the restored ones, [n, *data_shape]. nfe: evaluations for each, their mean.
    """

    original: np.ndarray
    measured: np.ndarray
    restored: np.ndarray
    missed: np.ndarray
    nfe: float

    def numbers(self) -> dict[str, float]:
        """rmse, inconsistency: over all examples. For images [h, w, c] psnr too, in dB."""
        found = {"rmse": _rms(self.restored - self.original), "inconsistency": _rms(self.missed)}
        if self.original.ndim == 4:
            found["psnr"] = _psnr(self.restored, self.original)
            found["psnr_of_measured"] = _psnr(self.measured, self.original)
        return found


def restore(
    setting: Setting, restorer: Restorer, params: Params, examples: Examples, *, seed: int
) -> Restored:
    """Degrade and restore examples; image i draws from (seed, i)."""
    compiled = jax.jit(functools.partial(_degrade_and_restore, setting, restorer))
    parts, spent = [], []
    size = setting.generator.sampling.batch_size
    for batch, n in batches(examples.x0, examples.cond, seed=seed, size=size):
        *arrays, out = compiled(params, setting.generator.weak_params, batch)
        x, nfe = kept(out, n)
        measured, missed = (np.asarray(leaf)[:n] for leaf in arrays)
        parts.append((np.asarray(batch.data)[:n], measured, x, missed))
        spent.append(nfe)
    return Restored(
        *map(np.concatenate, zip(*parts, strict=True)), float(np.concatenate(spent).mean())
    )


def _degrade_and_restore(
    setting: Setting, restorer: Restorer, params: Params, weak_params: Params | None, batch: Batch
):
    """(A^+ y, y - A x, outcome)."""
    operator, denoise = setting.operator, setting.generator.denoise(params, weak_params)
    y = operator.forward(batch.data)
    noise = operator.data(operator.data_coordinates(normal(stream_of(batch.keys, _MEASUREMENT), y)))
    y = y + setting.noise_std * noise
    out = restorer.run(denoise, y, batch.keys, batch.cond)
    return operator.pseudo_inverse(y), y - operator.forward(out.x), out


def _rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))


def _psnr(x: np.ndarray, original: np.ndarray) -> float:
    """Peak signal-to-noise ratio, 20 log10(PEAK / rms), mean over images."""
    squares = np.square(x - original, dtype=np.float64).reshape(len(x), -1).mean(axis=1)
    with np.errstate(divide="ignore"):
        return float(np.mean(10 * np.log10(PEAK**2 / squares)))
