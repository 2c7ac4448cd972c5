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
from scorediff.diffusion.guidance import classifier_free
from scorediff.diffusion.intervals import interval
from scorediff.errors import UserError
from scorediff.solvers import Sampler, StepTable, logsnr, sample_keys, sample_prior
from scorediff.solvers.grid import Spacing
from scorediff.solvers.noise import NoiseSource, brownian_path, check_path, independent
from scorediff.solvers.sample import Adjust, Outcome, Solver, Trace, run
from scorediff.training.files import write_atomic
from scorediff.training.mesh import batch_sharding, make_mesh
from scorediff.types import Cond, DenoiseFn, Key, Params


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a run is sampled: everything but the solver.

    grid, nfe, to_data, t_start, t_end: of `Sampler`; nfe is the budget of solver rows, each one
      call of the guided denoiser, which may call the network twice.
    guidance: a rule of `diffusion.guidance`, called as guidance(denoise, null_cond=..., scale=...),
      and with process=... where it asks for that. guidance_scale: 1 is off.
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

    def table(self, solver: Solver, process: Process) -> StepTable:
        """The table of one solver on this grid, within the budget."""
        sampler = Sampler(
            solver=solver,
            grid=self.grid,
            nfe=self.nfe,
            to_data=self.to_data,
            t_start=self.t_start,
            t_end=self.t_end,
        )
        table = sampler.table(process)
        if self.noise is brownian_path:
            check_path(table)
        return table

    def guide(self, denoise: DenoiseFn, process: Process, null_cond: NullCond) -> DenoiseFn:
        """`denoise` with guidance and threshold around it."""
        guided = denoise
        if null_cond:
            given = {"null_cond": null_cond, "scale": self.guidance_scale, "process": process}
            guided = self.guidance(denoise, **self._asked(given))
        if self.guidance_interval is not None:
            if guided is denoise:
                raise UserError("guidance_interval without guidance: set a guidance_scale beside 1")
            low, high = self.guidance_interval
            guided = interval(guided, denoise, process=process, low=low, high=high)
        return guided if self.threshold is None else self.threshold(guided)

    def _asked(self, given: Mapping[str, object]) -> dict[str, object]:
        """Of what there is to give, what the rule asks for; a UserError if it needs more."""
        arguments = list(inspect.signature(self.guidance).parameters.values())[1:]
        lacking = [a.name for a in arguments if a.default is a.empty and a.name not in given]
        if lacking:
            raise UserError(
                f"guidance needs {', '.join(lacking)}, which a config cannot give: bind them, or "
                "wrap the denoiser in Python"
            )
        return {a.name: given[a.name] for a in arguments if a.name in given}


class Samples(NamedTuple):
    """What was drawn: x0 [n, *shape] float32, and the classes asked for, [n] or None.

    nfe: network evaluations made for each, as counted at the network: a guided pair is two.
    """

    x0: np.ndarray
    labels: np.ndarray | None
    nfe: float


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A denoiser, how it is sampled, and the shape of its samples.

    null_cond: the null condition of a class-conditional model, {"label": number of classes}; empty
      for an unconditional one.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    null_cond: Mapping[str, float]
    sampling: Sampling = Sampling()

    def __post_init__(self):
        if not self.null_cond and self.sampling.guidance_scale != 1:
            raise UserError(
                f"guidance scale {self.sampling.guidance_scale} needs a class-conditional model; "
                "this one is unconditional"
            )
        self.denoise(None)  # rules that do not fit the process say so now

    def denoise(self, params: Params) -> DenoiseFn:
        """The guided denoiser."""
        bound = self.denoiser.bind(params)
        return self.sampling.guide(bound, self.denoiser.process, self.null_cond)

    def labels(self, index: np.ndarray) -> np.ndarray | None:
        """The class asked of each sample index [b], in turn; None for an unconditional model."""
        if "label" not in self.null_cond:
            return None
        return (index % int(self.null_cond["label"])).astype(np.int32)

    def cond(self, index: np.ndarray) -> Cond:
        """The condition of each sample index [b]."""
        labels = self.labels(index)
        return None if labels is None else {"label": labels}

    def __call__(self, params: Params, table: StepTable, n: int, *, seed: int) -> Samples:
        """n samples; sample i depends on (seed, i) only, not on n or the batch size."""
        key, mesh = jax.random.key(seed), make_mesh()
        size = (
            -(-self.sampling.batch_size // mesh.size) * mesh.size
        )  # every device has an equal part
        batches = []
        for start in range(0, n, size):
            index = np.arange(start, start + size)
            keys, cond = jax.device_put(
                (sample_keys(key, index), self.cond(index)), batch_sharding(mesh)
            )
            out = self._run(params, table, keys, cond)
            batches.append(np.asarray(out.x)[: n - start])
        return Samples(np.concatenate(batches), self.labels(np.arange(n)), float(out.nfe))

    def trajectory(self, params: Params, table: StepTable, n: int, *, seed: int) -> np.ndarray:
        """x_t at each evaluation and the result, [nfe + 1, n, *shape]; for pictures."""
        index = np.arange(n)
        keys = sample_keys(jax.random.key(seed), index)
        out = self._traced(params, table, keys, self.cond(index))
        return np.concatenate([np.asarray(out.seen), np.asarray(out.x)[None]])

    @functools.cached_property
    def _run(self):
        return jax.jit(functools.partial(self._sample, trace=None))

    @functools.cached_property
    def _traced(self):
        return jax.jit(functools.partial(self._sample, trace=lambda at: at.x))

    def _sample(
        self, params: Params, table: StepTable, keys: Key, cond: Cond, *, trace: Trace | None
    ) -> Outcome:
        denoise, corrector = self.denoise(params), self.sampling.corrector
        return run(
            denoise,
            table,
            sample_prior(table, keys, self.shape),
            keys=keys,
            cond=cond,
            trace=trace,
            noise=self.sampling.noise,
            adjust=None if corrector is None else corrector(denoise, cond=cond),
        )


def save_samples(path: str | os.PathLike, samples: Samples) -> None:
    """Write an npz file with x0 and, where there are classes, label: whole or not at all."""
    arrays = {"x0": samples.x0} | ({} if samples.labels is None else {"label": samples.labels})
    data = io.BytesIO()
    np.savez(data, **arrays)
    write_atomic(Path(path), data.getvalue())
