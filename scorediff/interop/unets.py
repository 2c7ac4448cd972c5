"""What the published layouts of our `UNet` share: its levels, and whether a config says all of it.

A network of ours can have more settings than a published class. Rather than a list of refusals,
the config that is to be written is read back, and the two networks must compute the same.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from scorediff.errors import UserError
from scorediff.interop.layout import shapes_of
from scorediff.models.blocks import group_count
from scorediff.models.mixed_unet import MixedUNet
from scorediff.models.unet import Level, UNet

AS_THEY_ARE = ("channels", "blocks", "middle", "middle_rescale", "scale_shift", "epsilon", "act")
AS_THEY_ARE += ("dropout", "freq_shift", "sin_first", "fourier", "centre_input", "in_channels")
AS_THEY_ARE += ("label_kind",)


def multipliers(widths: Sequence[int]) -> tuple[float, ...]:
    """Each width over the first, whole numbers as such."""
    return tuple(w // widths[0] if w % widths[0] == 0 else w / widths[0] for w in widths)


def levels_of(network: UNet) -> tuple[Level, ...]:
    """A network's levels at the size that it is meant for."""
    if network.attend_down is not None:
        return network.levels(0)  # they attend at every size
    if network.image_size is None:
        raise UserError("set UNet.image_size, which says which levels UNet.attention means")
    size = network.image_size
    return network.levels(size if isinstance(size, int) else size[0])


def channels_in(network: UNet) -> int:
    """Channels of the image that a network is meant for."""
    if network.in_channels is None:
        raise UserError("set UNet.in_channels, which a published config names")
    return network.in_channels


def table_rows(network: UNet) -> int:
    """Rows of the table of classes; a learned null class is the last."""
    return (network.num_classes or 0) + bool(
        network.num_classes and network.null_class == "learned"
    )


def attending_widths(network: UNet) -> list[int]:
    """Channels of every place of a network that attends."""
    levels = levels_of(network)
    widths = [level.width for level in levels if level.attend_down or level.attend_up]
    return widths + [levels[-1].width] * (network.middle == "attention")


def leaves_out(network: UNet) -> bool:
    """Whether heads of exactly their width leave some of a level's channels out."""
    width = network.head_width if network.exact_heads else None
    return width is not None and any(level % width for level in attending_widths(network))


def head_width(network: UNet) -> int | None:
    """Channels of a head, as the class with one number for all levels has it; None: one head."""
    widths = attending_widths(network)
    if network.head_width or network.heads == 1 or not widths:
        return network.head_width
    return widths[0] // network.heads


def skip_levels(network: UNet) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Whether each level is one of NCSN++, in the encoder and in the decoder."""
    if isinstance(network, MixedUNet):
        return network.skip_down, network.skip_up
    none = (False,) * len(network.multipliers)
    return none, none


def norm_groups(network: UNet) -> dict[str, int | None]:
    """The groups of every normalisation by its path; a skip level's follow from its widths."""
    if isinstance(network, MixedUNet):
        return {"groups": network.groups, "middle_groups": network.middle_groups}
    key, arguments = jax.random.key(0), example(network)
    shapes = shapes_of(jax.eval_shape(network.init, key, *arguments)["params"])
    groups = {
        path: network.groups or group_count(shape[0])
        for path, shape in shapes.items()
        if path.endswith("scale")
    }
    middle = "middle_0_attention/norm/scale"
    return groups | ({middle: network.middle_groups} if network.middle_groups else {})


def example(network: UNet) -> tuple:
    """The arguments of the network's `init`: an image with every level in it, and a label."""
    levels_of(network)
    smallest = 2 ** (len(network.multipliers) - 1)
    side = smallest if network.attend_down is not None else network.image_size
    sides = (side, side) if isinstance(side, int) else side
    x = jax.ShapeDtypeStruct((1, *sides, channels_in(network)), jnp.float32)
    return x, jax.ShapeDtypeStruct((1,), jnp.float32), _label(network)


def _label(network: UNet) -> dict[str, jax.ShapeDtypeStruct] | None:
    """What the network is told beside the noise level."""
    if network.label_kind == "class" and not network.num_classes:
        return None
    width = network.condition_width or 4 * network.channels
    shape = (1, width) if network.label_kind == "vector" else (1,)
    kind = jnp.int32 if network.label_kind == "class" else jnp.float32
    return {"label": jax.ShapeDtypeStruct(shape, kind)}


def refuse_difference(name: str, network: UNet, back: UNet) -> None:
    """UserError where `back`, read from the config of a class, computes another thing."""
    theirs = dict(meaning(back))
    for field, value in meaning(network):
        if theirs[field] != value:
            raise UserError(f"{name} cannot have {field} {value}, it would be {theirs[field]}")


def meaning(network: UNet) -> Iterator[tuple[str, Any]]:
    """What a network computes: equal for two networks that differ in their words only."""
    for field in AS_THEY_ARE:
        yield field, getattr(network, field)
    levels = levels_of(network)
    yield "levels", levels
    yield "skip levels", skip_levels(network)
    yield "heads", [network.heads_of(width) for width in attending_widths(network)]
    yield "heads that leave channels out", leaves_out(network)
    yield "stem", network.stem or network.channels
    yield "condition_width", network.condition_width or 4 * network.channels
    yield "out_channels", network.out_channels or channels_in(network)
    yield "rows of its table of classes", table_rows(network)
    if any(level.halve == "conv" for level in levels):
        yield "halve_padding", network.halve_padding
    yield from norm_groups(network).items()
