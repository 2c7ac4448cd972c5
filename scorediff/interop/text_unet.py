"""UNet2DConditionModel: the U-Nets of Stable Diffusion 1.x, 2.x, XL and LCM, diffusers' names."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from scorediff.errors import UserError
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import POINTWISE, TORCH, Entry, Form, within
from scorediff.interop.settings import complete, only, per_level
from scorediff.interop.shared import RESIDUAL
from scorediff.models.text_unet import TextUNet, Trunk

SHARED_DEFAULTS = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "class_embed_type": None,
    "cross_attention_dim": 1280,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "downsample_padding": 1,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "default",
    "transformer_layers_per_block": 1,
    "use_linear_projection": False,
}
DEFAULTS = SHARED_DEFAULTS | {
    "attention_type": "default",
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "out_channels": 4,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}
# How it was trained, and what changes nothing under a softmax that is float32 anyway.
UNUSED = ("sample_size", "upcast_attention", "addition_embed_type_num_heads")
DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
MIDDLES = {"UNetMidBlock2DCrossAttn": "text", "UNetMidBlock2D": "block", None: "none"}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu"}


def chosen(config: Config, field: str, choices: Mapping[str, Any]) -> Any:
    """What one of a few names stands for; UserError names those that are supported."""
    only(config, **{field: tuple(choices)})
    return choices[config[field]]


def attending(config: Config, field: str, kinds: Mapping[str, bool]) -> list[bool]:
    """Whether each block of a config attends to the text."""
    names = per_level(list(config[field]), len(config["block_out_channels"]), field)
    unknown = [name for name in names if name not in kinds]
    if unknown:
        raise UserError(f"{field}: {unknown[0]} is not supported here, only {', '.join(kinds)}")
    return [kinds[name] for name in names]


def layers(config: Config, field: str) -> tuple[int, ...]:
    """Whole numbers, one a level."""
    values = per_level(config[field], len(config["block_out_channels"]), field)
    if not all(isinstance(value, int) for value in values):
        raise UserError(f"{field} should be a whole number a level, got {list(values)}")
    return values


def text_width(config: Config) -> int:
    """The channels of the text, which every level reads."""
    widths = set(
        per_level(
            config["cross_attention_dim"], len(config["block_out_channels"]), "cross_attention_dim"
        )
    )
    if len(widths) > 1:
        raise UserError(f"cross_attention_dim must be the same everywhere, got {sorted(widths)}")
    return widths.pop()


def trunk(config: Config) -> dict[str, Any]:
    """The fields of a `Trunk` from a completed config."""
    only(
        config,
        addition_embed_type=(None, "text_time"),
        class_embed_type=None,
        encoder_hid_dim=None,
        encoder_hid_dim_type=None,
        only_cross_attention=False,
    )
    levels = len(config["block_out_channels"])
    depth = layers(config, "transformer_layers_per_block")
    reads = attending(config, "down_block_types", DOWN)
    heads = config["num_attention_heads"] or config["attention_head_dim"]
    added = config["addition_embed_type"] == "text_time"
    return {
        "channels": tuple(config["block_out_channels"]),
        "blocks": layers(config, "layers_per_block"),
        "depth": tuple(d if reading else 0 for d, reading in zip(depth, reads, strict=True)),
        "middle": chosen(config, "mid_block_type", MIDDLES),
        "middle_depth": depth[-1],
        "heads": per_level(heads, levels, "attention_head_dim"),
        "text_width": text_width(config),
        "in_channels": config["in_channels"],
        "num_classes": config["num_class_embeds"],
        "added_width": config["projection_class_embeddings_input_dim"] if added else None,
        "size_features": config["addition_time_embed_dim"] if added else Trunk.size_features,
        "scale_shift": chosen(
            config, "resnet_time_scale_shift", {"default": False, "scale_shift": True}
        ),
        "groups": config["norm_num_groups"],
        "epsilon": config["norm_eps"],
        "act": chosen(config, "act_fn", ACTIVATIONS),
        "sin_first": not config["flip_sin_to_cos"],
        "frequency_shift": float(config["freq_shift"]),
        "halve_padding": config["downsample_padding"],
        "middle_rescale": float(config["mid_block_scale_factor"]),
        "linear_projection": config["use_linear_projection"],
    }


def trunk_config(network: Trunk) -> dict[str, Any]:
    """The inverse of `trunk`."""
    depth = (*network.depth[:-1], network.middle_depth)
    if network.depth[-1] not in (0, network.middle_depth):
        raise UserError(
            f"this class cannot say that the middle has {network.middle_depth} layers and the last "
            f"level {network.depth[-1]}"
        )
    added = network.added_width is not None
    return {
        "act_fn": network.act,
        "addition_embed_type": "text_time" if added else None,
        "addition_time_embed_dim": network.size_features if added else None,
        "attention_head_dim": list(network.heads),
        "block_out_channels": list(network.channels),
        "cross_attention_dim": network.text_width,
        "down_block_types": [_name(DOWN, reads > 0) for reads in network.depth],
        "downsample_padding": network.halve_padding,
        "flip_sin_to_cos": not network.sin_first,
        "freq_shift": network.frequency_shift,
        "in_channels": network.in_channels,
        "layers_per_block": _one_or_list(network.blocks),
        "mid_block_scale_factor": network.middle_rescale,
        "mid_block_type": next(n for n, middle in MIDDLES.items() if middle == network.middle),
        "norm_eps": network.epsilon,
        "norm_num_groups": network.groups,
        "num_class_embeds": network.num_classes,
        "projection_class_embeddings_input_dim": network.added_width,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        # A level without transformers still has a number there.
        "transformer_layers_per_block": [max(1, layers) for layers in depth],
        "use_linear_projection": network.linear_projection,
    }


def _name(kinds: Mapping[str, bool], attends: bool) -> str:
    return next(name for name, kind in kinds.items() if kind == attends)


def _one_or_list(values: tuple) -> Any:
    return values[0] if len(set(values)) == 1 else list(values)


def _network(config: Config) -> TextUNet:
    config = complete(config, DEFAULTS, unused=UNUSED)
    only(
        config,
        attention_type="default",
        class_embeddings_concat=False,
        cross_attention_norm=None,
        dual_cross_attention=False,
        mid_block_only_cross_attention=(None, False),
        num_attention_heads=None,
        resnet_out_scale_factor=1.0,
        resnet_skip_time_act=False,
        time_embedding_act_fn=None,
        time_embedding_type="positional",
        timestep_post_act=None,
    )
    field = "reverse_transformer_layers_per_block"
    field = "transformer_layers_per_block" if config[field] is None else field
    depth = layers(config, field)
    depth = (
        depth[::-1] if field.startswith("reverse") else depth
    )  # theirs is in the order of going up
    reads = reversed(attending(config, "up_block_types", UP))
    shared = trunk(config)
    up_depth = tuple(d if reading else 0 for d, reading in zip(depth, reads, strict=True))
    return TextUNet(
        **shared,
        condition_width=config["time_embedding_dim"],
        guidance_width=config["time_cond_proj_dim"],
        dropout=float(config["dropout"]),
        up_depth=None if up_depth == shared["depth"] else up_depth,
        out_channels=config["out_channels"],
        side_in=config["conv_in_kernel"],
        side_out=config["conv_out_kernel"],
        centre_input=config["center_input_sample"],
    )


def _config(network: TextUNet) -> dict[str, Any]:
    shared = trunk_config(network)
    up_depth = network.depth if network.up_depth is None else network.up_depth
    down = shared["transformer_layers_per_block"]
    mirrored = all(up in (0, layers) for up, layers in zip(up_depth, down, strict=True))
    reverse = None if mirrored else [max(1, layers) for layers in reversed(up_depth)]
    return shared | {
        "_class_name": "UNet2DConditionModel",
        "center_input_sample": network.centre_input,
        "conv_in_kernel": network.side_in,
        "conv_out_kernel": network.side_out,
        "dropout": network.dropout,
        "out_channels": network.out_channels or network.in_channels,
        "reverse_transformer_layers_per_block": reverse,
        "time_cond_proj_dim": network.guidance_width,
        "time_embedding_dim": network.condition_width,
        "up_block_types": [_name(UP, layers > 0) for layers in reversed(up_depth)],
    }


LAYER = [
    Entry("norm_self", "norm1"),
    Entry("self/qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
    Entry("self/out", "attn1.to_out.0"),
    Entry("norm_cross", "norm2"),
    Entry("cross/q", "attn2.to_q"),
    Entry("cross/kv", ("attn2.to_k", "attn2.to_v")),
    Entry("cross/out", "attn2.to_out.0"),
    Entry("norm_mlp", "norm3"),
    Entry("mlp_in", "ff.net.0.proj"),
    Entry("mlp_out", "ff.net.2"),
]
CONDITION = [
    Entry("noise_in", "time_embedding.linear_1"),
    Entry("noise_out", "time_embedding.linear_2"),
    Entry("guidance", "time_embedding.cond_proj"),
    Entry("label", "class_embedding"),
    Entry("added_in", "add_embedding.linear_1"),
    Entry("added_out", "add_embedding.linear_2"),
]


def transformer(outer: Form) -> list[Entry]:
    """The table of a `TextTransformer`. outer: how its two outer matrices are kept."""
    return [
        Entry("norm", "norm"),
        Entry("matrix_in", "proj_in", outer),
        *within("layers", "transformer_blocks.{}", LAYER),
        Entry("matrix_out", "proj_out", outer),
    ]


def outer(network: Trunk) -> Form:
    """How files keep the outer matrices of this network's transformers."""
    return TORCH if network.linear_projection else POINTWISE


class Place(NamedTuple):
    """Where a part of the network stands: our path, diffusers' name, and the kind of part."""

    ours: str
    theirs: str
    kind: str  # "residual", "transformer", "halve" or "double"


def trunk_places(network: Trunk) -> Iterator[Place]:
    """The parts of the way down and of the middle, in the order of the computation."""
    last = len(network.channels) - 1
    for level in range(last + 1):
        for i in range(network.blocks[level]):
            yield from _stage(
                f"down{level}_{i}", f"down_blocks.{level}", i, network.depth[level] > 0
            )
        if level < last:
            name = f"down_blocks.{level}.downsamplers.0.conv"
            yield Place(f"down{level + 1}_halve", name, "halve")
    if network.middle != "none":
        yield from _stage("middle_0", "mid_block", 0, network.middle == "text")
    if network.middle == "text":
        yield Place("middle_1_residual", "mid_block.resnets.1", "residual")


def up_places(network: TextUNet) -> Iterator[Place]:
    """The parts of the way up."""
    last = len(network.channels) - 1
    depth = network.depth if network.up_depth is None else network.up_depth
    for level in reversed(range(last + 1)):
        block = f"up_blocks.{last - level}"
        for i in range(network.blocks[level] + 1):
            yield from _stage(f"up{level}_{i}", block, i, depth[level] > 0)
        if level:
            yield Place(f"up{level}_double", f"{block}.upsamplers.0.conv", "double")


def _stage(ours: str, theirs: str, i: int, reads: bool) -> Iterator[Place]:
    yield Place(f"{ours}_residual", f"{theirs}.resnets.{i}", "residual")
    if reads:
        yield Place(f"{ours}_attention", f"{theirs}.attentions.{i}", "transformer")


def trunk_entries(network: Trunk, places: Iterator[Place]) -> list[Entry]:
    """The table of the condition, of the first convolution and of the parts at `places`."""
    tables = {"residual": RESIDUAL, "transformer": transformer(outer(network))}
    entries = [e._replace(ours=f"condition/{e.ours}") for e in CONDITION]
    entries.append(Entry("conv_in", "conv_in"))
    for place in places:
        if place.kind in tables:
            entries += within(place.ours, place.theirs, tables[place.kind])
        else:
            entries.append(Entry(place.ours, place.theirs))
    return entries


def _entries(network: TextUNet) -> list[Entry]:
    ends = [Entry("norm_out", "conv_norm_out"), Entry("conv_out", "conv_out")]
    return trunk_entries(network, [*trunk_places(network), *up_places(network)]) + ends


def example(network: Trunk) -> tuple:
    """x, noise and cond of the sizes that the network takes."""
    side = 2 ** (len(network.channels) - 1)
    cond = {"text": jnp.zeros((1, 1, network.text_width))}
    if network.num_classes is not None:
        cond["label"] = jnp.zeros(1, jnp.int32)
    if network.guidance_width is not None:
        cond["guidance"] = jnp.zeros((1, network.guidance_width))
    if network.added_width is not None:
        # Files give only the two widths together; how they are shared out changes no parameter.
        sizes = min(6, network.added_width // network.size_features)
        cond["sizes"] = jnp.zeros((1, sizes))
        cond["pooled"] = jnp.zeros((1, network.added_width - sizes * network.size_features))
    return jnp.zeros((1, side, side, network.in_channels)), np.zeros(1, np.float32), cond


TEXT_UNET = Format(
    name="UNet2DConditionModel",
    network=_network,
    config=_config,
    entries=_entries,
    example=example,
)
