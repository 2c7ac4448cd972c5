"""From a network's partition rules to how each of its parameters is cut over a mesh of devices.

The rules stand beside the network, in its module, as `PARTITION`: pairs of a regular expression,
searched in the parameter's path ("layers/mlp_in/kernel"), and the mesh axes of the parameter's last
axes. The first rule that matches holds; a parameter that none matches is left to whoever lays it
out. Rules are about the last axes, so a stack of scanned layers is cut like one layer.

"fsdp" spreads the memory: a parameter is gathered where it is used. "tensor" spreads the work: the
first matrix of a branch is cut along its outputs, the last along its inputs, so that a branch needs
one sum over the devices (Shoeybi et al., arXiv 1909.08053, section 3).
"""

import re
import sys
from collections.abc import Mapping

import jax
from jax.sharding import PartitionSpec

from scorediff.errors import UserError
from scorediff.types import Network, Params

AXES = ("fsdp", "tensor")
Rules = tuple[tuple[str, tuple[str | None, ...]], ...]


def rules_of(network: Network) -> Rules:
    """The PARTITION of the module that defines the network's class; none where it has none."""
    return getattr(sys.modules[type(network).__module__], "PARTITION", ())


def partition_by_own_rules(
    network: Network, params: Params, sizes: Mapping[str, int]
) -> dict[str, PartitionSpec]:
    """`partition` by the rules beside the network.

    Raises UserError also where several devices are to share a layer's work and would share none.
    """
    specs, tensor = partition(params, rules_of(network), sizes), sizes.get("tensor", 1)
    if tensor > 1 and not any("tensor" in spec for spec in specs.values()):
        kind = type(network)
        raise UserError(
            f"tensor={tensor} would cut nothing of {kind.__name__}: no PARTITION rule in "
            f'{kind.__module__} has "tensor" for a dimension that {tensor} divides'
        )
    return specs


def partition(params: Params, rules: Rules, sizes: Mapping[str, int]) -> dict[str, PartitionSpec]:
    """How each of `params` (arrays or their shapes) that a rule matches is cut, by its path.

    sizes: of the mesh's axes, `mesh.shape`. An axis that the mesh lacks, or whose size does not
    divide the dimension, is left out, and the dimension stays whole there.
    Raises UserError for a rule with an axis other than "fsdp" and "tensor", with one twice, or with
    more axes than a parameter that it matches has.
    """
    _check_axes(rules)
    specs = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = next((axes for pattern, axes in rules if re.search(pattern, name)), None)
        if axes is not None:
            specs[name] = _spec(name, leaf.shape, axes, sizes)
    return specs


def _check_axes(rules: Rules) -> None:
    for pattern, axes in rules:
        named = [axis for axis in axes if axis is not None]
        if not set(named) <= set(AXES) or len(named) > len(set(named)):
            raise UserError(f"PARTITION: {pattern!r} has the axes {axes}; known are {AXES}, once")


def _spec(
    name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], sizes: Mapping[str, int]
) -> PartitionSpec:
    """`axes` for the last axes of `shape`, without those that do not divide it."""
    if len(axes) > len(shape):
        raise UserError(f"PARTITION has {len(axes)} axes for {name} of shape {shape}")
    whole = (None,) * (len(shape) - len(axes))
    lengths = shape[len(whole) :]
    fitting = (
        axis if axis in sizes and length % sizes[axis] == 0 else None
        for length, axis in zip(lengths, axes, strict=True)
    )
    return PartitionSpec(*whole, *fitting)
