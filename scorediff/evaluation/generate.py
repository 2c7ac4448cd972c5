"""Drawing samples from a model, in batches, with one compilation for every solver of equal NFE."""

import functools
import inspect
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from scorediff.diffusion import Denoiser, Process
from scorediff.diffusion.conditions import NullCond
from scorediff.diffusion.denoiser import VarianceFn
from scorediff.diffusion.guidance import classifier_free, classifier_free_variance
from scorediff.diffusion.intervals import interval
from scorediff.errors import UserError
from scorediff.solvers import Sampler, StepTable, logsnr, sample_keys
from scorediff.solvers import program as programs
from scorediff.solvers.grid import Spacing
from scorediff.solvers.learned_variance import VarianceTables, run_learned_variance
from scorediff.solvers.noise import NoiseSource, brownian_path, check_path, independent
from scorediff.solvers.program import Driver, Program
from scorediff.solvers.sample import Adjust, Outcome, Trace, run
from scorediff.solvers.step_control import Adaptive, check_finished
from scorediff.training.files import write_atomic
from scorediff.training.mesh import batch_sharding, make_mesh
from scorediff.types import Array, Cond, DenoiseFn, Key, Params


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a run is sampled: everything but the solver.

    grid, nfe, to_data, t_start, t_end: of `Sampler`; nfe is the budget of solver rows, each one
      call of the guided denoiser, which may call the network twice. Adaptive solvers have a
      tolerance instead of the first two.
    guidance: a rule of `diffusion.guidance`, called as guidance(denoise, null_cond=..., scale=...),
      and with process=... where it asks for that. guidance_scale: 1 is off.
    weak: the folder of a run whose model a rule like `autoguidance` moves away from; None: no rule
      that asks for one.
    guidance_interval: the noise levels sigma/alpha between which guidance acts; None: everywhere.
    threshold: keeps guided estimates in the data's range (`diffusion.clipping`); None: nothing.
    corrector: `solvers.corrector.langevin`, called before each row; None: no corrector.
    noise: independent in every row, or `brownian_path`, the same path for any number of rows.
    ema: name of the averaged parameters; None: the raw ones. batch_size: samples drawn at once.
    """

    grid: Spacing = logsnr
    nfe: int = 20
    to_data: bool = True
    t_start: float | None = None
    t_end: float | None = None
    guidance: Callable[..., DenoiseFn] = classifier_free
    guidance_scale: float = 1.0
    weak: str | None = None
    guidance_interval: tuple[float, float] | None = None
    threshold: Callable[[DenoiseFn], DenoiseFn] | None = None
    corrector: Callable[..., Adjust] | None = None
    noise: NoiseSource = independent
    ema: str | None = None
    batch_size: int = 250

    def __post_init__(self):
        for name in ("nfe", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.weak is not None and "weak" not in inspect.signature(self.guidance).parameters:
            raise UserError(
                f"weak={self.weak!r} has no effect: this guidance compares with no other model; "
                "set guidance=autoguidance"
            )

    def program(self, solver: Callable, process: Process) -> Program:
        """One solver on this grid, within the budget; an adaptive one between the same ends."""
        ends = {"to_data": self.to_data, "t_start": self.t_start, "t_end": self.t_end}
        if programs.is_adaptive(solver):
            if self.corrector is not None or self.noise is not independent:
                raise UserError("an adaptive solver has no rows, so no corrector and no noise")
            return programs.make_driver(solver, process, **ends)
        made = Sampler(solver=solver, grid=self.grid, nfe=self.nfe, **ends).table(process)
        learned = isinstance(made, VarianceTables)
        if learned and self.corrector is not None:
            raise UserError("a solver with learned variance takes no corrector")
        if self.noise is brownian_path:
            check_path(made.large if learned else made)
        return made

    def guide(
        self,
        denoise: DenoiseFn,
        process: Process,
        null_cond: NullCond,
        weak: DenoiseFn | None = None,
    ) -> DenoiseFn:
        """`denoise` with guidance and threshold around it."""
        guided = denoise
        if null_cond or weak is not None:
            given = {"null_cond": null_cond, "scale": self.guidance_scale, "process": process}
            given |= {} if weak is None else {"weak": weak}
            guided = self.guidance(denoise, **self._asked(given))
        if self.guidance_interval is not None:
            if guided is denoise:
                raise UserError("guidance_interval without guidance: set a guidance_scale beside 1")
            low, high = self.guidance_interval
            guided = interval(guided, denoise, process=process, low=low, high=high)
        return guided if self.threshold is None else self.threshold(guided)

    def guide_variance(self, denoise: VarianceFn, null_cond: NullCond) -> VarianceFn:
        """The same where the network says a variance too, which the guidance leaves alone."""
        if self.guidance is not classifier_free or self.guidance_interval is not None:
            raise UserError("learned variance goes with classifier_free guidance without interval")
        guided = denoise
        if null_cond:
            guided = classifier_free_variance(
                denoise, null_cond=null_cond, scale=self.guidance_scale
            )
        if self.threshold is None:
            return guided

        def within(x: Array, t: Array, cond: Cond = None) -> tuple[Array, Array]:
            x0_hat, v = guided(x, t, cond)
            return self.threshold(lambda x, t, cond: x0_hat)(x, t, cond), v

        return within

    def _asked(self, given: Mapping[str, object]) -> dict[str, object]:
        """Of what there is to give, what the rule asks for; a UserError if it needs more."""
        arguments = list(inspect.signature(self.guidance).parameters.values())[1:]
        lacking = [a.name for a in arguments if a.default is a.empty and a.name not in given]
        if lacking:
            how = "which a config cannot give: bind them, or wrap the denoiser in Python"
            if lacking == ["weak"]:
                how = "another model: name the folder of its run, config.sampling.weak"
            raise UserError(f"guidance needs {', '.join(lacking)}, {how}")
        return {a.name: given[a.name] for a in arguments if a.name in given}


class Samples(NamedTuple):
    """What was drawn: x0 [n, *shape] float32, and the classes asked for, [n] or None.

    nfe: network evaluations made for each, as counted at the network: a guided pair is two. Where
      they differ from sample to sample, their mean, and `nfe_range` the smallest and the largest.
    """

    x0: np.ndarray
    labels: np.ndarray | None
    nfe: float
    nfe_range: tuple[float, float] | None = None

    def spent(self) -> str:
        """The network evaluations in words."""
        if self.nfe_range is None:
            return f"{self.nfe:g} network evaluations each"
        low, high = self.nfe_range
        return f"{self.nfe:.1f} network evaluations each on average ({low:g} to {high:g})"


class Weak(NamedTuple):
    """Another trained model to move away from; `name` says which, for results."""

    denoiser: Denoiser
    params: Params
    name: str


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A denoiser, how it is sampled, and the shape of its samples.

    null_cond: the null condition of a class-conditional model, {"label": number of classes}; empty
      for an unconditional one. weak: the model of `sampling.weak`.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    null_cond: Mapping[str, float]
    sampling: Sampling = Sampling()
    weak: Weak | None = None

    def __post_init__(self):
        if not self.null_cond and self.weak is None and self.sampling.guidance_scale != 1:
            raise UserError(
                f"guidance scale {self.sampling.guidance_scale} needs a class-conditional model; "
                "this one is unconditional"
            )
        self.denoise(None)  # rules that do not fit the process say so now

    @property
    def weak_params(self) -> Params | None:
        """Of the weak model: an argument of whatever is compiled, beside the model's own."""
        return None if self.weak is None else self.weak.params

    def denoise(self, params: Params, weak_params: Params | None = None) -> DenoiseFn:
        """The guided denoiser."""
        bound, weak = self.denoiser.bind(params), None
        if self.weak is not None:
            weak = self.weak.denoiser.bind(self.weak_params if weak_params is None else weak_params)
        return self.sampling.guide(bound, self.denoiser.process, self.null_cond, weak)

    def check(self, program: Program) -> None:
        """UserError where this model cannot be sampled with a program."""
        if isinstance(program, VarianceTables):
            self._denoise_variance(None)

    def _denoise_variance(self, params: Params) -> VarianceFn:
        return self.sampling.guide_variance(self.denoiser.bind_variance(params), self.null_cond)

    def labels(self, index: np.ndarray) -> np.ndarray | None:
        """The class asked of each sample index [b], in turn; None for an unconditional model."""
        if "label" not in self.null_cond:
            return None
        return (index % int(self.null_cond["label"])).astype(np.int32)

    def cond(self, index: np.ndarray) -> Cond:
        """The condition of each sample index [b]."""
        labels = self.labels(index)
        return None if labels is None else {"label": labels}

    def __call__(self, params: Params, program: Program, n: int, *, seed: int) -> Samples:
        """n samples; sample i depends on (seed, i) only, not on n or the batch size."""
        key, mesh = jax.random.key(seed), make_mesh()
        size = (
            -(-self.sampling.batch_size // mesh.size) * mesh.size
        )  # every device has an equal part
        drawn = []
        for start in range(0, n, size):
            index = np.arange(start, start + size)
            keys, cond = jax.device_put(
                (sample_keys(key, index), self.cond(index)), batch_sharding(mesh)
            )
            out = self._run(params, self.weak_params, program, keys, cond)
            drawn.append(kept(out, n - start))
        x0, nfe = map(np.concatenate, zip(*drawn, strict=True))
        low, high = float(nfe.min()), float(nfe.max())
        spread = None if low == high else (low, high)
        return Samples(x0, self.labels(np.arange(n)), float(nfe.mean()), spread)

    def trajectory(self, params: Params, table: StepTable, n: int, *, seed: int) -> np.ndarray:
        """x_t at each evaluation of a table and the result, [nfe + 1, n, *shape]; for pictures."""
        index = np.arange(n)
        keys = sample_keys(jax.random.key(seed), index)
        out = self._traced(params, self.weak_params, table, keys, self.cond(index))
        return np.concatenate([np.asarray(out.seen), np.asarray(out.x)[None]])

    @functools.cached_property
    def _run(self):
        return jax.jit(functools.partial(self._sample, trace=None))

    @functools.cached_property
    def _traced(self):
        return jax.jit(functools.partial(self._sample, trace=lambda at: at.x))

    def _sample(
        self,
        params: Params,
        weak_params: Params | None,
        program: Program,
        keys: Key,
        cond: Cond,
        *,
        trace: Trace | None,
    ) -> Outcome | Adaptive:
        x, noise = programs.prior(program, keys, self.shape), self.sampling.noise
        if isinstance(program, VarianceTables):
            denoise = self._denoise_variance(params)
            return run_learned_variance(denoise, program, x, keys=keys, cond=cond, noise=noise)
        denoise, corrector = self.denoise(params, weak_params), self.sampling.corrector
        if isinstance(program, Driver):
            return program(denoise, x, cond=cond)
        adjust = None if corrector is None else corrector(denoise, cond=cond)
        return run(
            denoise, program, x, keys=keys, cond=cond, trace=trace, noise=noise, adjust=adjust
        )


def kept(out: Outcome | Adaptive, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first n samples and the evaluations of each; UserError if one did not arrive."""
    if isinstance(out, Adaptive):
        out = Adaptive(*(np.asarray(leaf)[:n] for leaf in out))
        check_finished(out)
    x = np.asarray(out.x)[:n]
    return x, np.broadcast_to(np.asarray(out.nfe, np.float64), len(out.x))[: len(x)]


def save_samples(path: str | os.PathLike, samples: Samples) -> None:
    """Write an npz file with x0 and, where there are classes, label: whole or not at all."""
    arrays = {"x0": samples.x0} | ({} if samples.labels is None else {"label": samples.labels})
    data = io.BytesIO()
    np.savez(data, **arrays)
    write_atomic(Path(path), data.getvalue())
