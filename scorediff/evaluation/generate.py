"""Drawing samples from a model, in batches, with one compilation for every solver of equal NFE."""

import functools
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from scorediff.diffusion import Denoiser
from scorediff.diffusion.guidance import classifier_free
from scorediff.errors import UserError
from scorediff.solvers import Sampler, StepTable, logsnr, sample, sample_keys, sample_prior
from scorediff.solvers.grid import Spacing
from scorediff.solvers.sample import Solver, run
from scorediff.training.files import write_atomic
from scorediff.training.mesh import batch_sharding, make_mesh
from scorediff.types import Cond, DenoiseFn, Key, Params


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a run is sampled: everything but the solver.

    grid, nfe, to_data, t_start, t_end: of `Sampler`; nfe is the budget of solver rows, each one
    call of the guided denoiser, which may call the network twice. guidance_scale: 1 is off. ema:
    name of the averaged parameters; None: the raw ones. batch_size: samples drawn at once.
    """

    grid: Spacing = logsnr
    nfe: int = 20
    to_data: bool = True
    t_start: float | None = None
    t_end: float | None = None
    guidance_scale: float = 1.0
    ema: str | None = None
    batch_size: int = 250

    def __post_init__(self):
        for name in ("nfe", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")

    def sampler(self, solver: Solver) -> Sampler:
        """The sampler of one solver on this grid and budget."""
        return Sampler(
            solver=solver,
            grid=self.grid,
            nfe=self.nfe,
            to_data=self.to_data,
            t_start=self.t_start,
            t_end=self.t_end,
        )


class Samples(NamedTuple):
    """What was drawn: x0 [n, *shape] float32, and the classes asked for, [n] or None.

    nfe: network evaluations made for each, as counted at the network: a guided pair is two.
    """

    x0: np.ndarray
    labels: np.ndarray | None
    nfe: float


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A denoiser, how it is guided, and the shape and batch size of its samples.

    null_cond: the null condition of a class-conditional model, {"label": number of classes}; empty
      for an unconditional one.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    null_cond: Mapping[str, float]
    guidance_scale: float = 1.0
    batch_size: int = 250

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"sampling batch_size must be at least 1, got {self.batch_size}")
        if not self.null_cond and self.guidance_scale != 1:
            raise UserError(
                f"guidance scale {self.guidance_scale} needs a class-conditional model; "
                "this one is unconditional"
            )

    def denoise(self, params: Params) -> DenoiseFn:
        """The guided denoiser."""
        return classifier_free(
            self.denoiser.bind(params), null_cond=self.null_cond, scale=self.guidance_scale
        )

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
        size = -(-self.batch_size // mesh.size) * mesh.size  # every device has an equal part
        batches = []
        for start in range(0, n, size):
            index = np.arange(start, start + size)
            keys, cond = jax.device_put(
                (sample_keys(key, index), self.cond(index)), batch_sharding(mesh)
            )
            x0, nfe = self._run(params, table, keys, cond)
            batches.append(np.asarray(x0)[: n - start])
        return Samples(np.concatenate(batches), self.labels(np.arange(n)), float(nfe))

    def trajectory(self, params: Params, table: StepTable, n: int, *, seed: int) -> np.ndarray:
        """x_t at each evaluation and the result, [nfe + 1, n, *shape]; for pictures."""
        index = np.arange(n)
        keys = sample_keys(jax.random.key(seed), index)
        out, seen = self._traced(params, table, keys, self.cond(index))
        return np.concatenate([np.asarray(seen), np.asarray(out)[None]])

    @functools.cached_property
    def _run(self):
        @jax.jit
        def compiled(params: Params, table: StepTable, keys: Key, cond: Cond):
            x = sample_prior(table, keys, self.shape)
            out = run(self.denoise(params), table, x, keys=keys, cond=cond)
            return out.x, out.nfe

        return compiled

    @functools.cached_property
    def _traced(self):
        @jax.jit
        def compiled(params: Params, table: StepTable, keys: Key, cond: Cond):
            x = sample_prior(table, keys, self.shape)
            return sample(
                self.denoise(params), table, x, keys=keys, cond=cond, trace=lambda at: at.x
            )

        return compiled


def save_samples(path: str | os.PathLike, samples: Samples) -> None:
    """Write an npz file with x0 and, where there are classes, label: whole or not at all."""
    arrays = {"x0": samples.x0} | ({} if samples.labels is None else {"label": samples.labels})
    data = io.BytesIO()
    np.savez(data, **arrays)
    write_atomic(Path(path), data.getvalue())
