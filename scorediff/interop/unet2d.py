"""UNet2DModel of diffusers as our `UNet`, or as our `MixedUNet` where it has skip blocks.

Its config names a block a level, each side by itself. What a name says is whether the level is one
of NCSN++ (a skip block), whether it attends, and whether the step to the next level is a
convolution or a residual block; for the attending blocks, `downsample_type` and `upsample_type` say
the latter.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from scorediff.errors import UserError
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import POINTWISE, SAME, TORCH, Entry, within
from scorediff.interop.settings import complete, only
from scorediff.interop.shared import ATTENTION, RESIDUAL, modern
from scorediff.interop.unets import (
    attending_widths,
    channels_in,
    example,
    head_width,
    leaves_out,
    levels_of,
    multipliers,
    norm_groups,
    refuse_difference,
    skip_levels,
    table_rows,
)
from scorediff.models.mixed_unet import MixedUNet
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
DOWN = ("DownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D")
UP = ("UpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D")
LABELS = {None: "class", "timestep": "noise", "identity": "vector"}  # theirs -> ours
OLD_PREFIX = "UNetRes"  # of the blocks' names in the oldest configs
ACTIVATIONS = {"silu": "silu", "swish": "silu", "mish": "mish", "gelu": "gelu", "relu": "relu"}


class Block(NamedTuple):
    """What the name of a level's block says."""

    attend: bool
    step: str  # to the next level: "conv" or "block"
    skip: bool = False  # a level of NCSN++, which makes its own step


def read_config(config: Config) -> UNet:
    """The network of a config; what it cannot have is refused by name."""
    config = complete(config, DEFAULTS, unused=UNUSED)
    only(
        config,
        act_fn=tuple(ACTIVATIONS),
        class_embed_type=tuple(LABELS),
        downsample_padding=(0, 1),
        downsample_type=tuple(STEPS),
        mid_block_type=("UNetMidBlock2D", None),
        resnet_time_scale_shift=("default", "scale_shift"),
        time_embedding_type=("positional", "fourier"),
        upsample_type=tuple(STEPS),
    )
    widths = config["block_out_channels"]
    down, up = _sides(config)
    built = _kind(down, up)(
        channels=widths[0],
        multipliers=multipliers(widths),
        blocks=config["layers_per_block"],
        attention=(),
        attend_down=tuple(block.attend for block in down),
        attend_up=tuple(block.attend for block in up),
        halve=tuple(block.step for block in down[:-1]),
        double=tuple(block.step for block in up[1:]),
        **_middle(config),
        head_width=config["attention_head_dim"],  # None: one head
        halve_padding="both" if config["downsample_padding"] else "end",
        dropout=config["dropout"],
        scale_shift=config["resnet_time_scale_shift"] == "scale_shift",
        groups=_groups(config, (*down, *up)),
        epsilon=config["norm_eps"],
        act=ACTIVATIONS[config["act_fn"]],
        condition_width=config["time_embedding_dim"],
        freq_shift=config["freq_shift"],
        sin_first=not config["flip_sin_to_cos"],
        fourier=config["time_embedding_type"] == "fourier",
        num_classes=None if config["class_embed_type"] else config["num_class_embeds"],
        null_class="refused",
        label_kind=LABELS[config["class_embed_type"]],
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        centre_input=config["center_input_sample"],
        image_size=_size(config["sample_size"]),
    )
    _check_heads(built)
    exact = built.clone(exact_heads=True)
    return exact if leaves_out(exact) else built


def _check_heads(network: UNet) -> None:
    """A level with fewer channels than a head has is none that the class can compute."""
    widths = attending_widths(network)
    if network.head_width and widths and min(widths) < network.head_width:
        raise UserError(
            f"{NAME}: attention_head_dim={network.head_width} is more than a level's "
            f"{min(widths)} channels"
        )


def _size(size: int | list[int] | None) -> int | tuple[int, ...] | None:
    return tuple(size) if isinstance(size, list | tuple) else size


def _groups(config: Config, blocks: tuple[Block, ...]) -> int | None:
    """None, as many as fit, is what the class has in skip blocks, in the middle and at the end."""
    if config["norm_num_groups"] is None and not all(block.skip for block in blocks):
        raise UserError(
            f"{NAME}: norm_num_groups must be a number unless all blocks are skip blocks"
        )
    return config["norm_num_groups"]


def _kind(down: list[Block], up: list[Block]) -> Callable[..., UNet]:
    """The network that has such levels."""
    if not any(block.skip for block in (*down, *up)):
        return UNet
    skips = {"skip_down": down, "skip_up": up}
    return partial(
        MixedUNet, **{side: tuple(b.skip for b in blocks) for side, blocks in skips.items()}
    )


def _sides(config: Config) -> tuple[list[Block], list[Block]]:
    """The blocks of encoder and decoder, finest level first."""
    downs, ups = config["down_block_types"], tuple(reversed(config["up_block_types"]))
    if not len(downs) == len(ups) == len(config["block_out_channels"]):
        raise UserError(
            f"{NAME}: down_block_types, up_block_types and block_out_channels need one value a "
            f"level each, got {len(downs)}, {len(ups)} and {len(config['block_out_channels'])}"
        )
    down = [_block(name, DOWN, STEPS[config["downsample_type"]]) for name in downs]
    up = [_block(name, UP, STEPS[config["upsample_type"]]) for name in ups]
    return down, up


def _block(name: str, names: tuple[str, str, str], attending: str) -> Block:
    """What a name says; the step of an attending block is told apart from it."""
    plain, resampling, skip = names
    known = {
        plain: Block(False, "conv"),
        resampling: Block(False, "block"),
        f"Attn{plain}": Block(True, attending),
        skip: Block(False, "conv", skip=True),
        f"Attn{skip}": Block(True, "conv", skip=True),
    }
    name = name.removeprefix(OLD_PREFIX)
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
    groups = network.groups
    if groups is None and not any(map(any, skip_levels(network))):
        groups = max(norm_groups(network).values())
    config = {
        "_class_name": NAME,
        "act_fn": network.act,
        "attention_head_dim": head_width(network),
        "attn_norm_num_groups": _middle_groups(network, groups),
        "block_out_channels": list(network.widths),
        "center_input_sample": network.centre_input,
        "class_embed_type": {ours: theirs for theirs, ours in LABELS.items()}[network.label_kind],
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
    levels, (skip_down, skip_up) = levels_of(network), skip_levels(network)
    halve, double = ([getattr(l, side) for l in levels[1:]] for side in ("halve", "double"))
    halve, double = [*halve, (halve or ["conv"])[-1]], [(double or ["conv"])[0], *double]
    down = [Block(l.attend_down, *rest) for l, *rest in zip(levels, halve, skip_down, strict=True)]
    up = [Block(l.attend_up, *rest) for l, *rest in zip(levels, double, skip_up, strict=True)]
    return {
        "down_block_types": [_name(DOWN, block) for block in down],
        "downsample_type": _attending_step(down[:-1]),
        "up_block_types": [_name(UP, block) for block in reversed(up)],
        "upsample_type": _attending_step(up[1:]),
    }


def _name(names: tuple[str, str, str], block: Block) -> str:
    """The inverse of `_block`."""
    plain, resampling, skip = names
    if block.skip:
        return f"Attn{skip}" if block.attend else skip
    return f"Attn{plain}" if block.attend else (resampling if block.step == "block" else plain)


def _attending_step(blocks: list[Block]) -> str:
    """The step that the attending levels take, or all where none attends."""
    steps = [b.step for b in blocks if b.attend and not b.skip] or [b.step for b in blocks]
    return "resnet" if "block" in steps else "conv"


def _middle_groups(network: UNet, groups: int | None) -> int | None:
    """With scale-shift no number means no normalisation, otherwise the common number."""
    if network.middle_groups is None:
        return groups if network.scale_shift else None
    return network.middle_groups or None


ENDS = (
    Entry("condition/fourier/frequencies", "time_proj.weight", SAME),
    Entry("condition/noise_in", "time_embedding.linear_1"),
    Entry("condition/noise_out", "time_embedding.linear_2"),
    Entry("condition/label", "class_embedding"),
    Entry("condition/label_in", "class_embedding.linear_1"),
    Entry("condition/label_out", "class_embedding.linear_2"),
    Entry("conv_in", "conv_in"),
    Entry("norm_out", "conv_norm_out"),
    Entry("conv_out", "conv_out"),
)


def entries(network: UNet) -> list[Entry]:
    """The table of names."""
    table, levels, (skip_down, skip_up) = list(ENDS), levels_of(network), skip_levels(network)
    for i, level in enumerate(levels):
        down, up = f"down_blocks.{i}", f"up_blocks.{len(levels) - 1 - i}"
        table += within(f"up{i}_attention", f"{up}.attentions.0", ATTENTION)  # of a skip level
        for j in range(network.blocks):
            table += _stage(f"down{i}_{j}", down, j)
        for j in range(network.blocks + 1):
            table += _stage(f"up{i}_{j}", up, j)
        if i:
            before = f"down_blocks.{i - 1}"
            halve = "skip" if skip_down[i - 1] else level.halve
            table += _step(f"down{i}", "halve", before, halve)
            table += _step(f"up{i}", "double", up, "skip" if skip_up[i] else level.double)
    for j in range(2):
        table += _stage(f"middle_{j}", "mid_block", j)
    return table


def _stage(ours: str, theirs: str, j: int) -> list[Entry]:
    return [
        *within(f"{ours}_residual", f"{theirs}.resnets.{j}", RESIDUAL),
        *within(f"{ours}_attention", f"{theirs}.attentions.{j}", ATTENTION),
    ]


def _step(level: str, verb: str, block: str, step: str) -> list[Entry]:
    """A step between levels: a convolution, a residual block, or one beside a pyramid."""
    ours, way = f"{level}_{verb}", {"halve": "down", "double": "up"}[verb]
    if step == "skip":
        return [
            *within(ours, f"{block}.resnet_{way}", RESIDUAL),
            Entry(f"{level}_pyramid_norm", f"{block}.skip_norm"),
            Entry(f"{level}_pyramid", f"{block}.skip_conv", POINTWISE if way == "down" else TORCH),
        ]
    theirs = f"{block}.{way}samplers.0"
    return within(ours, theirs, RESIDUAL) if step == "block" else [Entry(ours, f"{theirs}.conv")]


UNET2D = Format(
    name=NAME,
    network=read_config,
    config=config,
    entries=entries,
    example=example,
    modern=modern,
)
