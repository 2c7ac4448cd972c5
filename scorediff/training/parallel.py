"""Compiling a step for many devices: `jit` on a mesh, or `pmap`.

Both give a function step(state, batch, root_key) with the same arguments and results: `batch` holds
host arrays [global batch, ...] (with several processes: this process's share), the state given in
is used up. This is the one module that mentions pmap.
"""

import functools
from typing import Literal

import jax
from jax.sharding import Mesh

from scorediff.errors import UserError
from scorediff.training.mesh import batch_sharding, batch_shares, compiler_options, replicated
from scorediff.training.state import TrainState
from scorediff.training.step import StepFn
from scorediff.types import Batch, Key

PMAP_AXIS = "batch"


def compile_step(
    step: StepFn, mesh: Mesh, abstract: TrainState, *, mode: Literal["jit", "pmap"] = "jit"
) -> StepFn:
    """A compiled step whose state keeps the shardings of `abstract`.

    mode: "jit" lays state and batch on the mesh. "pmap" replicates the state over the mesh's
      devices and needs a step made with axis_name=PMAP_AXIS.
    """
    if mode == "jit":
        return _jit_step(step, mesh, abstract)
    if mode == "pmap":
        return _pmap_step(step, mesh)
    raise UserError(f"mode must be 'jit' or 'pmap', got {mode!r}")


def _jit_step(step: StepFn, mesh: Mesh, abstract: TrainState) -> StepFn:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    everywhere, cut = replicated(mesh), batch_sharding(mesh)
    compiled = jax.jit(
        step,
        in_shardings=(shardings, cut, everywhere),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )

    def run(state: TrainState, batch: Batch, root_key: Key):
        _check_divides(batch, batch_shares(mesh) // jax.process_count())
        put = functools.partial(jax.make_array_from_process_local_data, cut)
        return compiled(state, jax.tree.map(put, batch), root_key)

    return run


def _pmap_step(step: StepFn, mesh: Mesh) -> StepFn:
    devices = list(mesh.devices.flat)
    compiled = jax.pmap(
        step,
        axis_name=PMAP_AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        devices=devices,
        donate_argnums=0,
    )

    def run(state: TrainState, batch: Batch, root_key: Key):
        _check_divides(batch, len(devices))
        cut = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), batch)
        return compiled(state, cut, root_key)

    return run


def _check_divides(batch: Batch, shares: int) -> None:
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % shares:
        raise UserError(f"batch_size {size} does not divide into {shares} shares for the devices")
