"""UNetModel of openai/guided-diffusion: ADM's U-Net (arXiv 2105.05233), and iDDPM's before it.

Blocks are numbered in the order of computation, the steps between levels among them. The order in
which the one matrix of queries, keys and values holds its outputs is a flag of the config that no
file holds, so there are two formats: heads first, as in most of the released files, and parts first
(`use_new_attention_order`, the 64 x 64 ones).
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from scorediff.errors import UserError
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import Entry, Form, pointwise, within
from scorediff.interop.settings import complete, only
from scorediff.interop.shared import ADM_RESIDUAL
from scorediff.interop.unets import (
    channels_in,
    example,
    levels_of,
    refuse_difference,
    table_rows,
)
from scorediff.models.unet import UNet

DEFAULTS: Mapping[str, Any] = {
    "image_size": None,
    "in_channels": None,
    "model_channels": None,
    "out_channels": None,
    "num_res_blocks": None,
    "attention_resolutions": None,
    "dropout": 0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "num_heads": 1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "num_groups": 32,  # a constant of the repository
}
REQUIRED = ("in_channels", "model_channels", "out_channels", "num_res_blocks")
REQUIRED += ("attention_resolutions",)
UNUSED = ("class", "use_checkpoint", "use_fp16")


def read_config(config: Config, *, parts_first: bool) -> UNet:
    """The network of the class's arguments; those it must have are checked for."""
    c = complete(config, DEFAULTS, unused=UNUSED)
    only(c, dims=2, use_new_attention_order=parts_first)
    only(c, num_heads_upsample=(-1, c["num_heads"]))
    lacking = [field for field in REQUIRED if c[field] is None]
    if lacking:
        raise UserError(f"the config of an ADM network lacks {lacking[0]}")
    # The resolutions are how often the image has been halved, as a power of two.
    counts = range(len(c["channel_mult"]))
    attend = tuple(2**level in c["attention_resolutions"] for level in counts)
    step = "block" if c["resblock_updown"] else "conv" if c["conv_resample"] else "pool"
    head = c["num_head_channels"]
    return UNet(
        channels=c["model_channels"],
        multipliers=tuple(c["channel_mult"]),
        stem=round(c["model_channels"] * c["channel_mult"][0]),
        blocks=c["num_res_blocks"],
        attention=(),
        attend_down=attend,
        attend_up=attend,
        heads=c["num_heads"],
        head_width=None if head == -1 else head,
        halve=step,
        double=step,
        halve_padding="both",
        dropout=c["dropout"],
        scale_shift=c["use_scale_shift_norm"],
        groups=c["num_groups"],
        epsilon=1e-5,
        num_classes=c["num_classes"],
        null_class="refused",
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        image_size=c["image_size"],
    )


def config(network: UNet, *, parts_first: bool) -> dict[str, Any]:
    """The arguments that make a network of ours; what the class cannot have is a UserError."""
    levels = levels_of(network)
    config = {
        "class": "UNetModel",
        "image_size": network.image_size,
        "in_channels": channels_in(network),
        "model_channels": network.channels,
        "out_channels": network.out_channels or channels_in(network),
        "num_res_blocks": network.blocks,
        "attention_resolutions": [2**i for i, level in enumerate(levels) if level.attend_down],
        "dropout": network.dropout,
        "channel_mult": list(network.multipliers),
        "conv_resample": all(level.halve != "pool" for level in levels),
        "num_classes": table_rows(network) or None,
        "num_heads": network.heads,
        "num_head_channels": network.head_width or -1,
        "use_scale_shift_norm": network.scale_shift,
        "resblock_updown": any(level.halve == "block" for level in levels),
        "use_new_attention_order": parts_first,
        "num_groups": network.groups or 32,
    }
    refuse_difference("UNetModel", network, read_config(config, parts_first=parts_first))
    return config


ENDS = (
    Entry("condition/noise_in", "time_embed.0"),
    Entry("condition/noise_out", "time_embed.2"),
    Entry("condition/label", "label_emb"),
    Entry("conv_in", "input_blocks.0.0"),
    Entry("norm_out", "out.0"),
    Entry("conv_out", "out.2"),
)
LINE = pointwise(1)  # attention's matrices are convolutions along the flattened image


def heads_first(heads: int) -> tuple[Form, Form]:
    """Rows of a file's matrix by (head, part, channel), ours by (part, head, channel); its bias."""

    def parts_out(a: np.ndarray) -> np.ndarray:
        return a.reshape(heads, 3, -1, *a.shape[1:]).swapaxes(0, 1).reshape(a.shape)

    def heads_out(a: np.ndarray) -> np.ndarray:
        return a.reshape(3, heads, -1, *a.shape[1:]).swapaxes(0, 1).reshape(a.shape)

    kernel = Form(lambda a: LINE.read(parts_out(a)), lambda a: heads_out(LINE.write(a)))
    return kernel, Form(parts_out, heads_out)


def entries(network: UNet, *, parts_first: bool) -> list[Entry]:
    """The table of names."""

    def stage(ours: str, theirs: str, width: int) -> list[Entry]:
        forms = (LINE,) if parts_first else heads_first(network.heads_of(width))
        return [
            *within(f"{ours}_residual", f"{theirs}.0", ADM_RESIDUAL),
            *within(f"{ours}_attention", f"{theirs}.1", _attention(*forms)),
        ]

    widths = network.widths
    table = [*ENDS, *stage("middle_0", "middle_block", widths[-1])]
    table += within("middle_1_residual", "middle_block.2", ADM_RESIDUAL)
    for number, (i, j) in enumerate(_encoder(network), start=1):
        theirs = f"input_blocks.{number}"
        if j is None:
            table += _step(f"down{i}_halve", f"{theirs}.0", network, "op")
        else:
            table += stage(f"down{i}_{j}", theirs, widths[i])
    for number, (i, j) in enumerate(_decoder(network)):
        theirs = f"output_blocks.{number}"
        table += stage(f"up{i}_{j}", theirs, widths[i])
        if i and j == network.blocks:
            after = 1 + levels_of(network)[i].attend_up
            table += _step(f"up{i}_double", f"{theirs}.{after}", network, "conv")
    return table


def _attention(*forms: Form) -> tuple[Entry, ...]:
    return (
        Entry("norm", "norm"),
        Entry("attention/qkv", "qkv", *forms),
        Entry("attention/out", "proj_out", LINE),
    )


def _encoder(network: UNet) -> Iterator[tuple[int, int | None]]:
    """Level and block of each input block in order, None for the step to the level."""
    for i in range(len(network.multipliers)):
        if i:
            yield i, None
        yield from ((i, j) for j in range(network.blocks))


def _decoder(network: UNet) -> Iterator[tuple[int, int]]:
    """Level and block of each output block in order; a step to the next level ends the last."""
    for i in reversed(range(len(network.multipliers))):
        yield from ((i, j) for j in range(network.blocks + 1))


def _step(ours: str, theirs: str, network: UNet, convolution: str) -> list[Entry]:
    """A step between levels: a residual block, or a convolution under its own name."""
    if "block" in network.halve:
        return within(ours, theirs, ADM_RESIDUAL)
    return [Entry(ours, f"{theirs}.{convolution}")]


def _format(name: str, parts_first: bool) -> Format:
    return Format(
        name=name,
        network=partial(read_config, parts_first=parts_first),
        config=partial(config, parts_first=parts_first),
        entries=partial(entries, parts_first=parts_first),
        example=example,
        stem="model",
    )


ADM = _format("adm/UNetModel", False)
ADM_PARTS_FIRST = _format("adm/UNetModel (new attention order)", True)


def format_of(config: Config) -> Format:
    """The format of a config, by its order of queries, keys and values."""
    return ADM_PARTS_FIRST if config.get("use_new_attention_order") else ADM
