"""UNet2DModel with skip blocks (diffusers): NCSN++ as google/ncsnpp-* have it.

down_block_types of SkipDownBlock2D and AttnSkipDownBlock2D, up_block_types of SkipUpBlock2D and
AttnSkipUpBlock2D. Attention keeps its matrices apart (to_q, to_k, to_v; query, key, value,
proj_attn up to 0.16).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from scorediff.errors import UserError
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import POINTWISE, SAME, Entry, within
from scorediff.interop.ncsnpp import example, refuse_difference
from scorediff.interop.settings import complete, only
from scorediff.interop.shared import ATTENTION, RESIDUAL, modern
from scorediff.models.ncsnpp import Middle, NCSNpp

DEFAULTS: Mapping[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
# What skip blocks do not look at: how plain blocks resample, how the model was trained.
UNUSED = (
    "downsample_padding",
    "downsample_type",
    "upsample_type",
    "num_train_timesteps",
)
FIR = (1, 3, 3, 1)


def _attending(blocks: Sequence[str], direction: str) -> tuple[bool, ...]:
    """Whether each block attends; other kinds of blocks are refused."""
    plain, attending = f"Skip{direction}Block2D", f"AttnSkip{direction}Block2D"
    other = [block for block in blocks if block not in (plain, attending)]
    if other:
        raise UserError(f"UNet2DModel: {other[0]} beside skip blocks is not supported here")
    return tuple(block == attending for block in blocks)


def read_config(config: Config) -> NCSNpp:
    """The network of a config of UNet2DModel."""
    c = complete(config, DEFAULTS, unused=UNUSED)
    only(c, class_embed_type=None, mid_block_type="UNetMidBlock2D")
    only(c, time_embedding_type=("positional", "fourier"))
    only(c, resnet_time_scale_shift=("default", "scale_shift"), act_fn=("silu", "gelu", "swish"))
    fourier = c["time_embedding_type"] == "fourier"
    first, *_ = widths = c["block_out_channels"]
    if len(widths) != len(c["down_block_types"]) or len(widths) != len(c["up_block_types"]):
        raise UserError(f"UNet2DModel: block_out_channels {widths} is not one number a block")
    return NCSNpp(
        channels=first,
        multipliers=tuple(_plain(width / first) for width in widths),
        blocks=c["layers_per_block"],
        attend_down=_attending(c["down_block_types"], "Down"),
        attend_up=_attending(c["up_block_types"][::-1], "Up"),
        head_width=c["attention_head_dim"],
        dropout=c["dropout"],
        embedding="log_fourier" if fourier else "positional",
        freq_shift=c["freq_shift"],
        sin_first=not c["flip_sin_to_cos"],
        condition_width=c["time_embedding_dim"],
        num_classes=c["num_class_embeds"],
        class_table=True,
        taps=FIR,
        progressive_in="skip",
        progressive_out="skip",
        scale_shift=c["resnet_time_scale_shift"] == "scale_shift",
        groups=c["norm_num_groups"],
        epsilon=c["norm_eps"],
        act={"swish": "silu"}.get(c["act_fn"], c["act_fn"]),
        hub_groups=True,
        middle=_middle(c),
        centre_input=c["center_input_sample"],
        divide_by_noise=fourier,
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        image_size=c["sample_size"],
    )


def _plain(ratio: float) -> float:
    return int(ratio) if ratio == int(ratio) else ratio


def _middle(c: Config) -> Middle:
    """Without groups of its own, attention in a scale-shift network is not normalised there."""
    groups = c["attn_norm_num_groups"]
    return Middle(
        rescale=c["mid_block_scale_factor"],
        attention=c["add_attention"],
        attention_groups=groups,
        normalise=groups is not None or c["resnet_time_scale_shift"] == "default",
    )


def config(network: NCSNpp) -> dict[str, Any]:
    """The config of a network of ours; what the class cannot have is a UserError."""
    found = {
        "_class_name": "UNet2DModel",
        "sample_size": network.image_size,
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "center_input_sample": network.centre_input,
        "time_embedding_type": "fourier" if network.divide_by_noise else "positional",
        "time_embedding_dim": network.condition_width,
        "freq_shift": network.freq_shift,
        "flip_sin_to_cos": not network.sin_first,
        "down_block_types": [_name(attend, "Down") for attend in network.attend_down],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": [_name(attend, "Up") for attend in reversed(network.attends_up)],
        "block_out_channels": list(network.widths),
        "layers_per_block": network.blocks,
        "mid_block_scale_factor": network.middle.rescale or network.rescale,
        "dropout": network.dropout,
        "act_fn": network.act,
        "attention_head_dim": network.head_width,
        "norm_num_groups": network.groups,
        "attn_norm_num_groups": network.middle.attention_groups,
        "norm_eps": network.epsilon,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "add_attention": network.middle.attention,
        "class_embed_type": None,
        "num_class_embeds": network.num_classes,
    }
    refuse_difference("UNet2DModel with skip blocks", network, read_config(found))
    return found


def _name(attend: bool, direction: str) -> str:
    return f"{'Attn' if attend else ''}Skip{direction}Block2D"


def entries(network: NCSNpp) -> list[Entry]:
    """The names of a network's parameters."""
    table = [
        Entry("conv_in", "conv_in"),
        Entry("condition/fourier/frequencies", "time_proj.weight", SAME),
        Entry("condition/noise_in", "time_embedding.linear_1"),
        Entry("condition/noise_out", "time_embedding.linear_2"),
        Entry("condition/label", "class_embedding", SAME),
        Entry("norm_out", "conv_norm_out"),
        Entry("conv_out", "conv_out"),
        *within("middle_0_residual", "mid_block.resnets.0", RESIDUAL),
        *within("middle_0_attention", "mid_block.attentions.0", ATTENTION),
        *within("middle_1_residual", "mid_block.resnets.1", RESIDUAL),
    ]
    last = len(network.multipliers) - 1
    for level in range(last + 1):
        table += _down(network, level, f"down_blocks.{level}")
        table += _up(network, level, f"up_blocks.{last - level}")
    return table


def _down(network: NCSNpp, level: int, block: str) -> list[Entry]:
    """One level of the encoder, and the step to the next."""
    table = [
        *within(f"down{level + 1}_halve", f"{block}.resnet_down", RESIDUAL),
        Entry(f"down{level + 1}_pyramid", f"{block}.skip_conv", POINTWISE),
    ]
    for i in range(network.blocks):
        table += within(f"down{level}_{i}_residual", f"{block}.resnets.{i}", RESIDUAL)
        table += within(f"down{level}_{i}_attention", f"{block}.attentions.{i}", ATTENTION)
    return table


def _up(network: NCSNpp, level: int, block: str) -> list[Entry]:
    """One level of the decoder, and the step to the next."""
    table = [
        *within(f"up{level}_attention", f"{block}.attentions.0", ATTENTION),
        *within(f"up{level}_double", f"{block}.resnet_up", RESIDUAL),
        Entry(f"up{level}_pyramid_norm", f"{block}.skip_norm"),
        Entry(f"up{level}_pyramid", f"{block}.skip_conv"),
    ]
    for i in range(network.blocks + 1):
        table += within(f"up{level}_{i}_residual", f"{block}.resnets.{i}", RESIDUAL)
    return table


UNET2D_SKIP = Format(
    name="UNet2DModel (NCSN++)",
    network=read_config,
    config=config,
    entries=entries,
    example=example,
    modern=modern,
)
