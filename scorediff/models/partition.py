"""From a network's partition rules to how each of its parameters is cut over a mesh of devices.

The rules stand beside the network, in its module, as `PARTITION`: pairs of a regular expression,
searched in the parameter's path ("layers/mlp_in/kernel"), and the mesh axes of the parameter's last
axes. The first rule that matches holds; a parameter that none matches is replicated. Rules are
about the last axes, so a stack of scanned layers is cut like one layer.

"fsdp" spreads the memory: a parameter is gathered where it is used. "tensor" spreads the work: the
first matrix of a branch is cut along its outputs, the last along its inputs, so that a branch needs
one sum over the devices (Shoeybi et al., arXiv 1909.08053, section 3).
"""

import re
import sys
from collections.abc import Mapping

import jax
from flax import linen as nn
from jax.sharding import PartitionSpec

from scorediff.errors import UserError
from scorediff.types import Params

AXES = ("fsdp", "tensor")
Rules = tuple[tuple[str, tuple[str | None, ...]], ...]


def rules_of(network: nn.Module) -> Rules:
    """The PARTITION of the module that defines the network's class."""
    home = sys.modules[type(network).__module__]
    if not hasattr(home, "PARTITION"):
        raise UserError(f"{home.__name__} has no PARTITION rules for {type(network).__name__}")
    return home.PARTITION


def partition(params: Params, rules: Rules, sizes: Mapping[str, int]) -> Params:
    """The tree of `params` (arrays or their shapes) with a PartitionSpec in place of each.

    sizes: of the mesh's axes, `mesh.shape`. An axis that the mesh lacks, or whose size does not
    divide the dimension, is left out, and the dimension stays whole there.
    Raises UserError for a rule with an axis other than "fsdp" and "tensor", with one twice, or with
    more axes than a parameter that it matches has.
    """
    for pattern, axes in rules:
        named = [axis for axis in axes if axis is not None]
        if not set(named) <= set(AXES) or len(named) > len(set(named)):
            raise UserError(f"PARTITION: {pattern!r} has the axes {axes}; known are {AXES}, once")

    def place(path: tuple, leaf) -> PartitionSpec:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = next((axes for pattern, axes in rules if re.search(pattern, name)), ())
        if not axes:
            return PartitionSpec()
        if len(axes) > len(leaf.shape):
            raise UserError(f"PARTITION has {len(axes)} axes for {name} of shape {leaf.shape}")
        return _spec(leaf.shape, axes, sizes)

    return jax.tree_util.tree_map_with_path(place, params)


def _spec(
    shape: tuple[int, ...], axes: tuple[str | None, ...], sizes: Mapping[str, int]
) -> PartitionSpec:
    """`axes` for the last axes of `shape`, without those that do not divide it."""
    whole = (None,) * (len(shape) - len(axes))
    lengths = shape[len(whole) :]
    fitting = (
        axis if axis in sizes and length % sizes[axis] == 0 else None
        for length, axis in zip(lengths, axes, strict=True)
    )
    return PartitionSpec(*whole, *fitting)
