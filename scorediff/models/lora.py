"""Low-rank adaptation, LoRA (Hu et al., arXiv 2106.09685, section 4.1), on parameter trees.

An adapter changes a linear map or a convolution W by scale A B, where A has few output channels,
the rank, and B maps those to the outputs of W. A network knows nothing of it: adapters are merged
into its parameters and taken out again. Where the adapters are what is trained, `merge` is
differentiated.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct, traverse_util

from scorediff.errors import UserError
from scorediff.types import Array, Key, Params


class Adapter(struct.PyTreeNode):
    """What is added to one kernel, or to the part of it that holds one of several fused maps.

    down:  A, [*window, in, rank]; the window is that of the kernel.
    up:    B, [rank, out].
    path:  of the kernel, "down0_0_attention/matrix_in/kernel".
    scale: alpha / rank in the paper's words.
    layer: which of the layers that are stacked on axis 0 of the kernel, or None.
    start: first of the `out` columns that are meant on the kernel's last axis.

    The two arrays are the leaves of the tree; all else is fixed.
    """

    down: Array
    up: Array
    path: str = struct.field(pytree_node=False)
    scale: float = struct.field(pytree_node=False, default=1.0)
    layer: int | None = struct.field(pytree_node=False, default=None)
    start: int = struct.field(pytree_node=False, default=0)

    @property
    def place(self) -> tuple:
        """The index of the kernel's part that is meant."""
        columns = (Ellipsis, slice(self.start, self.start + self.up.shape[-1]))
        return columns if self.layer is None else (self.layer, *columns)

    def delta(self, dtype) -> Array:
        """What is added, computed in `dtype`."""
        return self.scale * (jnp.asarray(self.down, dtype) @ jnp.asarray(self.up, dtype))


def merge(params: Params, adapters: Sequence[Adapter], *, scale: float = 1.0) -> Params:
    """The parameters with `scale` times every adapter added.

    Sums are taken at least in float32 and rounded once to the kernel's own type. UserError where an
    adapter has no kernel, or not its shape.
    """
    flat = dict(traverse_util.flatten_dict(params, sep="/"))
    by_path: dict[str, list[Adapter]] = {}
    for adapter in adapters:
        by_path.setdefault(adapter.path, []).append(adapter)
    for path, found in by_path.items():
        if path not in flat:
            raise UserError(f"an adapter is for {path}, which this network does not have")
        flat[path] = _merged(flat[path], found, scale)
    return traverse_util.unflatten_dict(flat, sep="/")


def unmerge(params: Params, adapters: Sequence[Adapter], *, scale: float = 1.0) -> Params:
    """The inverse of `merge`, up to rounding."""
    return merge(params, adapters, scale=-scale)


def _merged(kernel: Array, adapters: Sequence[Adapter], scale: float) -> Array:
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    total = jnp.asarray(kernel, dtype)
    for adapter in adapters:
        part = jax.eval_shape(lambda k, place=adapter.place: k[place], total).shape
        if part != (*adapter.down.shape[:-1], adapter.up.shape[-1]):
            raise UserError(
                f"an adapter of shapes {adapter.down.shape} and {adapter.up.shape} does not fit "
                f"{adapter.path}, which has {part} there"
            )
        total = total.at[adapter.place].add(scale * adapter.delta(dtype))
    return total.astype(kernel.dtype)


def fresh(
    params: Params, paths: Sequence[str], *, rank: int, key: Key, scale: float = 1.0
) -> list[Adapter]:
    """New adapters for whole kernels, one for each layer of a stack: A drawn, B zero.

    paths: of the kernels ("middle_0_attention/layers/self/qkv/kernel"); one below "layers/" is
           stacked on axis 0. A normal of variance 1 / fan-in; B is zero, so that nothing changes at
           first.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    adapters = []
    for path in paths:
        if path not in flat or not path.endswith("kernel") or rank < 1:
            raise UserError(f"no adapter of rank {rank} can be made for {path}: it is no kernel")
        shape = flat[path].shape
        stacked = "layers/" in path
        layers = range(shape[0]) if stacked else [None]
        *window, inputs, outputs = shape[1:] if stacked else shape
        for layer in layers:
            drawn = jax.random.fold_in(key, len(adapters))
            init = jax.nn.initializers.lecun_normal()
            adapters.append(
                Adapter(
                    down=init(drawn, (*window, inputs, rank), jnp.float32),
                    up=jnp.zeros((rank, outputs), jnp.float32),
                    path=path,
                    scale=scale,
                    layer=layer,
                )
            )
    return adapters
