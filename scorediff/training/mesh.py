"""Where arrays live: a mesh with the axes `data`, `fsdp` and `tensor`, and how a state lies on it.

The batch is cut over `data` and `fsdp`; the devices along `tensor` share the work on the same
examples. Who knows the network says how parameters are cut; what nothing is said about is cut over
`fsdp` along its largest dimension that divides, and replicated if none does. Averages and optimiser
moments lie as their parameters do. The computation is written for one device; the compiler adds the
communication that the layout asks for.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scorediff.errors import UserError
from scorediff.training.fingerprint import leaf_names
from scorediff.training.state import TrainState
from scorediff.types import Key, Params

BATCH_AXES = ("data", "fsdp")
AXES = (*BATCH_AXES, "tensor")
UNOPTIMISED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

# XLA orders programs for CPUs so that independent operations can overlap, which two devices that
# share two cores pay for (measured, a DiT's training step: 3.9 s, in order 2.7 s, on jax 0.10).
IN_ORDER = {"xla_cpu_enable_concurrency_optimized_scheduler": False}

# (parameters or their shapes, sizes of the mesh's axes) -> how to cut those it knows, by their path
Partition = Callable[[Params, Mapping[str, int]], Mapping[str, PartitionSpec]]
# (path, shape) of a parameter -> how it is cut
Cuts = Mapping[tuple[str, tuple[int, ...]], PartitionSpec]


def make_mesh(
    *, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of all devices: `fsdp` share one copy of the state, `tensor` one layer's work.

    The axes are Auto: the default of jax.make_mesh, Explicit, makes Linen's dropout fail.
    """
    devices = jax.devices() if devices is None else list(devices)
    if min(fsdp, tensor) < 1 or len(devices) % (fsdp * tensor):
        sizes = f"fsdp={fsdp} times tensor={tensor}"
        raise UserError(f"{sizes} does not divide the {len(devices)} devices there are")
    shape = (len(devices) // (fsdp * tensor), fsdp, tensor)
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    check_processes(mesh)
    return mesh


def check_processes(mesh: Mesh) -> None:
    """UserError where devices that need the same examples belong to processes that read others."""
    rows = mesh.devices.reshape(-1, mesh.shape["tensor"])
    if any(len({device.process_index for device in row}) > 1 for row in rows):
        raise UserError(
            f"tensor={mesh.shape['tensor']} devices in a row belong to several processes, each of "
            "which reads other examples; tensor must divide the devices of one process"
        )


def compiler_options(mesh: Mesh) -> Mapping[str, Any] | None:
    """What the compiler is told of a training step: something on CPUs alone."""
    return IN_ORDER if _on_cpu(mesh) else None


def _on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shares(mesh: Mesh) -> int:
    """The number of parts that batch_sharding cuts a batch into."""
    return mesh.size // mesh.shape["tensor"]


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def leaf_spec(shape: tuple[int, ...], size: int) -> PartitionSpec:
    """Cut the largest dimension that `size` divides (the last of equals) over `fsdp`."""
    fits = [(length, axis) for axis, length in enumerate(shape) if length and length % size == 0]
    if size == 1 or not fits:
        return PartitionSpec()
    _, axis = max(fits)
    return PartitionSpec(*(None,) * axis, "fsdp")


def lay_out(tree: Any, mesh: Mesh, cuts: Cuts | None = None) -> Any:
    """A tree of arrays or shapes -> the same tree of jax.ShapeDtypeStruct with their shardings.

    cuts: a leaf is cut as the parameter whose path its own ends in, if it has the same shape, which
      a factored second moment has not. Leaves of no such parameter: leaf_spec.
    """
    cuts = cuts or {}

    def place(path: tuple, leaf) -> jax.ShapeDtypeStruct:
        ends = (
            jax.tree_util.keystr(path[i:], simple=True, separator="/") for i in range(len(path))
        )
        known = (cuts[end, leaf.shape] for end in ends if (end, leaf.shape) in cuts)
        spec = next(known, leaf_spec(leaf.shape, mesh.shape["fsdp"]))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, tree)


def abstract_state(
    init: Callable[[Key], TrainState], mesh: Mesh, partition: Partition | None = None
) -> TrainState:
    """Shapes, types and shardings of what init(key) gives, without computing it."""
    shapes = jax.eval_shape(init, jax.random.key(0))
    cuts = None if partition is None else _cuts(shapes.params, mesh, partition)
    return lay_out(shapes, mesh, cuts)


def _cuts(params: Params, mesh: Mesh, partition: Partition) -> Cuts:
    """Of every parameter, so that no path is mistaken for one that merely ends like it."""
    known = partition(params, mesh.shape)
    named = zip(leaf_names(params), jax.tree.leaves(params), strict=True)
    size = mesh.shape["fsdp"]
    return {(n, p.shape): known.get(n, leaf_spec(p.shape, size)) for n, p in named}


def initialise(init: Callable[[Key], Any], key: Key, abstract: Any) -> Any:
    """init(key), computed where it is to live, so that no device ever holds the whole.

    It runs once, so on CPUs the compiler is told not to optimise it, which for a U-Net costs a
    third of the time (measured: 6 against 22 s).
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    options = UNOPTIMISED if _on_cpu(jax.tree.leaves(shardings)[0].mesh) else None
    return jax.jit(init, out_shardings=shardings, compiler_options=options)(key)
