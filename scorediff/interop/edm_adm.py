"""DhariwalUNet of NVlabs/edm: ADM's U-Net as Karras et al. train it (arXiv 2206.00364).

The names, the preconditioners and the interleaved queries, keys and values are those of `edm`. A
head has 64 channels; a level that is narrower has no attention, whatever its size.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from scorediff.errors import UserError
from scorediff.interop import edm
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import Entry, Form, within
from scorediff.interop.settings import complete, only
from scorediff.interop.unets import (
    channels_in,
    example,
    head_width,
    levels_of,
    refuse_difference,
    table_rows,
)
from scorediff.models.unet import UNet

DEFAULTS: Mapping[str, Any] = {
    "label_dim": 0,
    "augment_dim": 0,
    "model_type": "DhariwalUNet",
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "channel_mult_emb": 4,
    "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
    "dropout": 0.10,
    "channels_per_head": 64,  # a constant of the repository
}
TRANSPOSED = Form(np.transpose, np.transpose)


def read_config(config: Config, *, preconditioner: str) -> UNet:
    """The network of a preconditioner's arguments; those it must have are checked for."""
    known = dict.fromkeys(edm.REQUIRED) | DEFAULTS | edm.PRECONDITIONERS[preconditioner]
    c = complete(config, known, unused=edm.UNUSED)
    only(c, model_type="DhariwalUNet", augment_dim=0)
    lacking = [field for field in edm.REQUIRED if c[field] is None]
    if lacking:
        raise UserError(f"the config of an EDM network lacks {lacking[0]}")
    size, channels, head = c["img_resolution"], c["img_channels"], c["channels_per_head"]
    widths = [c["model_channels"] * multiplier for multiplier in c["channel_mult"]]
    attend = tuple(
        size >> level in c["attn_resolutions"] and width >= head
        for level, width in enumerate(widths)
    )
    return UNet(
        channels=c["model_channels"],
        multipliers=tuple(c["channel_mult"]),
        stem=widths[0],
        blocks=c["num_blocks"],
        attention=(),
        attend_down=attend,
        attend_up=attend,
        head_width=head,
        middle="attention" if widths[-1] >= head else "blocks",
        halve="block",
        double="block",
        dropout=c["dropout"],
        scale_shift=True,
        epsilon=1e-5,
        condition_width=c["model_channels"] * c["channel_mult_emb"],
        num_classes=c["label_dim"] or None,
        null_class="zero",
        in_channels=channels,
        out_channels=channels * (2 if preconditioner == "iDDPMPrecond" else 1),  # and variances
        image_size=size,
    )


def config(network: UNet, *, preconditioner: str) -> dict[str, Any]:
    """The arguments that make a network of ours; what the class cannot have is a UserError."""
    attend = [level.attend_down for level in levels_of(network)]
    width = network.condition_width or 4 * network.channels
    config = {
        "class": preconditioner,
        "img_resolution": size_of(network, 0),
        "img_channels": channels_in(network),
        "label_dim": table_rows(network),
        "augment_dim": 0,
        "model_type": "DhariwalUNet",
        "model_channels": network.channels,
        "channel_mult": list(network.multipliers),
        "channel_mult_emb": width // network.channels,
        "num_blocks": network.blocks,
        "attn_resolutions": [size_of(network, i) for i, attends in enumerate(attend) if attends],
        "dropout": network.dropout,
        "channels_per_head": head_width(network) or max(network.widths),
    }
    back = read_config(config, preconditioner=preconditioner)
    refuse_difference("DhariwalUNet", network, back)
    return config


def size_of(network: UNet, level: int) -> int:
    """Side of a level's feature maps in the images that the network was trained on."""
    if not isinstance(network.image_size, int):
        raise UserError("UNet.image_size must be a number: EDM's names hold the sizes of levels")
    return network.image_size >> level


def entries(network: UNet) -> list[Entry]:
    """The names of a network's parameters."""
    levels = len(network.multipliers)
    sides = [f"{size}x{size}" for size in (size_of(network, i) for i in range(levels))]
    table = [
        Entry("condition/noise_in", "model.map_layer0"),
        Entry("condition/noise_out", "model.map_layer1"),
        Entry("condition/label/embedding", "model.map_label.weight", TRANSPOSED),
        Entry("conv_in", f"model.enc.{sides[0]}_conv"),
        Entry("norm_out", "model.out_norm"),
        Entry("conv_out", "model.out_conv"),
    ]
    for i, side in enumerate(sides):
        for j in range(network.blocks):
            table += _stage(f"down{i}_{j}", f"model.enc.{side}_block{j}")
        for j in range(network.blocks + 1):
            table += _stage(f"up{i}_{j}", f"model.dec.{side}_block{j}")
        if i:
            table += within(f"down{i}_halve", f"model.enc.{side}_down", edm.RESIDUAL)
            table += within(f"up{i}_double", f"model.dec.{sides[i - 1]}_up", edm.RESIDUAL)
    for j in range(2):
        table += _stage(f"middle_{j}", f"model.dec.{sides[-1]}_in{j}")
    return table


def _stage(ours: str, theirs: str) -> list[Entry]:
    return [
        *within(f"{ours}_residual", theirs, edm.RESIDUAL),
        *within(f"{ours}_attention", theirs, edm.ATTENTION),
    ]


def buffers(network: UNet, *, preconditioner: str) -> dict[str, np.ndarray]:
    """The 2 x 2 mean of everything that resamples, and iDDPM's noise levels."""
    found = {}
    for i in range(1, len(network.multipliers)):
        fine, coarse = size_of(network, i - 1), size_of(network, i)
        for place in (f"enc.{coarse}x{coarse}_down", f"dec.{fine}x{fine}_up"):
            for part in ("conv0", "skip"):
                name = f"model.{place}.{part}.resample_filter"
                found[name] = np.full((1, 1, 2, 2), 0.25, np.float32)
    return found | ({"u": edm.iddpm_levels()} if preconditioner == "iDDPMPrecond" else {})


def _format(preconditioner: str) -> Format:
    return Format(
        name=f"edm/{preconditioner}(DhariwalUNet)",
        network=partial(read_config, preconditioner=preconditioner),
        config=partial(config, preconditioner=preconditioner),
        entries=entries,
        example=example,
        buffers=partial(buffers, preconditioner=preconditioner),
        stem="model",
    )


VP, VE, IDDPM, EDM = map(_format, edm.PRECONDITIONERS)
