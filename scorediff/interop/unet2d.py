"""UNet2DModel of diffusers as our `UNet`: every mix of its blocks without a skip pyramid.

Its config names a block a level, each side by itself. What a name says is whether the level attends
and whether the step to the next level is a convolution or a residual block; for the attending
blocks, `downsample_type` and `upsample_type` say the latter.
"""

from collections.abc import Mapping
from typing import Any

from scorediff.errors import UserError
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import SAME, Entry, within
from scorediff.interop.settings import complete, only
from scorediff.interop.shared import ATTENTION, RESIDUAL, modern
from scorediff.interop.unets import (
    attending_widths,
    channels_in,
    example,
    head_width,
    levels_of,
    multipliers,
    norm_groups,
    refuse_difference,
    table_rows,
)
from scorediff.models.unet import UNet

NAME = "UNet2DModel"
DEFAULTS: Mapping[str, Any] = {
    "act_fn": "silu",
    "add_attention": True,
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "block_out_channels": (224, 448, 672, 896),
    "center_input_sample": False,
    "class_embed_type": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "downsample_padding": 1,
    "downsample_type": "conv",
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "out_channels": 3,
    "resnet_time_scale_shift": "default",
    "sample_size": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "upsample_type": "conv",
}
UNUSED = ("num_train_timesteps",)  # of a learned table of timesteps, which is refused
STEPS = {"conv": "conv", "resnet": "block", None: "conv"}  # theirs -> ours
DOWN, UP = ("DownBlock2D", "ResnetDownsampleBlock2D"), ("UpBlock2D", "ResnetUpsampleBlock2D")
ACTIVATIONS = {"silu": "silu", "swish": "silu", "mish": "mish", "gelu": "gelu", "relu": "relu"}


def read_config(config: Config) -> UNet:
    """The network of a config; what it cannot have is refused by name."""
    config = complete(config, DEFAULTS, unused=UNUSED)
    only(
        config,
        act_fn=tuple(ACTIVATIONS),
        class_embed_type=None,
        downsample_padding=(0, 1),
        downsample_type=tuple(STEPS),
        mid_block_type=("UNetMidBlock2D", None),
        resnet_time_scale_shift=("default", "scale_shift"),
        time_embedding_type=("positional", "fourier"),
        upsample_type=tuple(STEPS),
    )
    widths = config["block_out_channels"]
    built = UNet(
        channels=widths[0],
        multipliers=multipliers(widths),
        blocks=config["layers_per_block"],
        attention=(),
        **_sides(config),
        **_middle(config),
        head_width=config["attention_head_dim"],  # None: one head
        halve_padding="both" if config["downsample_padding"] else "end",
        dropout=config["dropout"],
        scale_shift=config["resnet_time_scale_shift"] == "scale_shift",
        groups=_groups(config),
        epsilon=config["norm_eps"],
        act=ACTIVATIONS[config["act_fn"]],
        condition_width=config["time_embedding_dim"],
        freq_shift=config["freq_shift"],
        sin_first=not config["flip_sin_to_cos"],
        fourier=config["time_embedding_type"] == "fourier",
        num_classes=config["num_class_embeds"],
        null_class="refused",
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        centre_input=config["center_input_sample"],
        image_size=_size(config["sample_size"]),
    )
    _check_heads(built)
    return built


def _check_heads(network: UNet) -> None:
    """The class's attention has as many channels as its level only where the heads fill them."""
    for width in attending_widths(network):
        if network.head_width and width % network.head_width:
            raise UserError(
                f"{NAME}: attention_head_dim={network.head_width} does not divide a level's "
                f"{width} channels"
            )


def _size(size: int | list[int] | None) -> int | tuple[int, ...] | None:
    return tuple(size) if isinstance(size, list | tuple) else size


def _groups(config: Config) -> int:
    if config["norm_num_groups"] is None:
        raise UserError(f"{NAME}: norm_num_groups must be a number where no block is a Skip block")
    return config["norm_num_groups"]


def _sides(config: Config) -> dict[str, Any]:
    """Which levels attend, and what leads from level to level."""
    downs, ups = config["down_block_types"], tuple(reversed(config["up_block_types"]))
    if not len(downs) == len(ups) == len(config["block_out_channels"]):
        raise UserError(
            f"{NAME}: down_block_types, up_block_types and block_out_channels need one value a "
            f"level each, got {len(downs)}, {len(ups)} and {len(config['block_out_channels'])}"
        )
    down = [_block(name, DOWN, STEPS[config["downsample_type"]]) for name in downs]
    up = [_block(name, UP, STEPS[config["upsample_type"]]) for name in ups]
    return {
        "attend_down": tuple(attend for attend, _ in down),
        "attend_up": tuple(attend for attend, _ in up),
        "halve": tuple(step for _, step in down[:-1]),
        "double": tuple(step for _, step in up[1:]),
    }


def _block(name: str, plain: tuple[str, str], attending: str) -> tuple[bool, str]:
    """Whether a block attends, and its step: a convolution, a residual block or as it is told."""
    known = {plain[0]: (False, "conv"), plain[1]: (False, "block")}
    known[f"Attn{plain[0]}"] = (True, attending)
    if name not in known:
        raise UserError(f"{NAME}: no block {name!r} here, only {', '.join(known)}")
    return known[name]


def _middle(config: Config) -> dict[str, Any]:
    """The middle; with scale-shift and no group count of its own, its attention has no norm."""
    kind = "attention" if config["add_attention"] else "blocks"
    groups = config["attn_norm_num_groups"]
    if groups is None and config["resnet_time_scale_shift"] == "scale_shift":
        groups = 0
    return {
        "middle": kind if config["mid_block_type"] else "none",
        "middle_groups": groups,
        "middle_rescale": config["mid_block_scale_factor"],
    }


def config(network: UNet) -> dict[str, Any]:
    """The config of a network of ours; what the class cannot have is a UserError.

    A learned null class becomes the last row of the class's table, a label like the others.
    """
    groups = network.groups or max(norm_groups(network).values())
    config = {
        "_class_name": NAME,
        "act_fn": network.act,
        "attention_head_dim": head_width(network),
        "attn_norm_num_groups": _middle_groups(network, groups),
        "block_out_channels": list(network.widths),
        "center_input_sample": network.centre_input,
        "downsample_padding": 1 if network.halve_padding == "both" else 0,
        "dropout": network.dropout,
        "flip_sin_to_cos": not network.sin_first,
        "freq_shift": network.freq_shift,
        "in_channels": channels_in(network),
        "layers_per_block": network.blocks,
        "mid_block_scale_factor": network.middle_rescale,
        "mid_block_type": None if network.middle == "none" else "UNetMidBlock2D",
        "add_attention": network.middle != "blocks",
        "norm_eps": network.epsilon,
        "norm_num_groups": groups,
        "num_class_embeds": table_rows(network) or None,
        "out_channels": network.out_channels or channels_in(network),
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "sample_size": network.image_size,
        "time_embedding_dim": network.condition_width,
        "time_embedding_type": "fourier" if network.fourier else "positional",
        **_block_types(network),
    }
    refuse_difference(NAME, network, read_config(config))
    return config


def _block_types(network: UNet) -> dict[str, Any]:
    """The names of the levels' blocks; the last on each side has no step and is named like one."""
    levels = levels_of(network)
    halve, double = ([getattr(l, side) for l in levels[1:]] for side in ("halve", "double"))
    down = [(l.attend_down, step) for l, step in zip(levels, halve, strict=False)]
    up = [(l.attend_up, step) for l, step in zip(levels[1:], double, strict=True)]
    down_end = levels[-1].attend_down, (halve or ["conv"])[-1]
    up_end = levels[0].attend_up, (double or ["conv"])[0]
    return {
        "down_block_types": [_name(DOWN, *level) for level in (*down, down_end)],
        "downsample_type": _attending_step(down),
        "up_block_types": [_name(UP, *level) for level in (*reversed(up), up_end)],
        "upsample_type": _attending_step(up),
    }


def _name(plain: tuple[str, str], attend: bool, step: str) -> str:
    """The block of a level that attends or not, with its step to the next."""
    return f"Attn{plain[0]}" if attend else plain[step == "block"]


def _attending_step(levels: list[tuple[bool, str]]) -> str:
    """The step that the attending levels take, or all where none attends."""
    steps = [step for attend, step in levels if attend] or [step for _, step in levels]
    return "resnet" if "block" in steps else "conv"


def _middle_groups(network: UNet, groups: int) -> int | None:
    """With scale-shift no number means no normalisation, otherwise the common number."""
    if network.middle_groups is None:
        return groups if network.scale_shift else None
    return network.middle_groups or None


ENDS = (
    Entry("condition/fourier/frequencies", "time_proj.weight", SAME),
    Entry("condition/noise_in", "time_embedding.linear_1"),
    Entry("condition/noise_out", "time_embedding.linear_2"),
    Entry("condition/label", "class_embedding"),
    Entry("conv_in", "conv_in"),
    Entry("norm_out", "conv_norm_out"),
    Entry("conv_out", "conv_out"),
)


def entries(network: UNet) -> list[Entry]:
    """The table of names."""
    table, levels = list(ENDS), levels_of(network)
    for i, level in enumerate(levels):
        down, up = f"down_blocks.{i}", f"up_blocks.{len(levels) - 1 - i}"
        for j in range(network.blocks):
            table += _stage(f"down{i}_{j}", down, j)
        for j in range(network.blocks + 1):
            table += _stage(f"up{i}_{j}", up, j)
        if i:
            before = f"down_blocks.{i - 1}"
            table += _step(f"down{i}_halve", f"{before}.downsamplers.0", level.halve)
            table += _step(f"up{i}_double", f"{up}.upsamplers.0", level.double)
    for j in range(2):
        table += _stage(f"middle_{j}", "mid_block", j)
    return table


def _stage(ours: str, theirs: str, j: int) -> list[Entry]:
    return [
        *within(f"{ours}_residual", f"{theirs}.resnets.{j}", RESIDUAL),
        *within(f"{ours}_attention", f"{theirs}.attentions.{j}", ATTENTION),
    ]


def _step(ours: str, theirs: str, step: str) -> list[Entry]:
    """A step between levels: a convolution or a residual block."""
    return within(ours, theirs, RESIDUAL) if step == "block" else [Entry(ours, f"{theirs}.conv")]


UNET2D = Format(
    name=NAME,
    network=read_config,
    config=config,
    entries=entries,
    example=example,
    modern=modern,
)
