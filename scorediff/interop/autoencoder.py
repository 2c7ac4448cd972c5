"""AutoencoderKL: the autoencoders of Stable Diffusion and SD 3 as diffusers has them."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from scorediff.errors import UserError
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import POINTWISE, Entry, within
from scorediff.interop.settings import complete, only
from scorediff.interop.shared import ATTENTION, RESIDUAL, modern
from scorediff.interop.text_unet import ACTIVATIONS, Place, chosen
from scorediff.models.autoencoder import AutoencoderKL

DEFAULTS = {
    "act_fn": "silu",
    "block_out_channels": (64,),
    "down_block_types": ("DownEncoderBlock2D",),
    "in_channels": 3,
    "latent_channels": 4,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 1,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "out_channels": 3,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "up_block_types": ("UpDecoderBlock2D",),
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
UNUSED = ("sample_size", "force_upcast")  # the trained size, and advice about half precision


def _network(config: Config) -> AutoencoderKL:
    config = complete(config, DEFAULTS, unused=UNUSED)
    only(config, latents_mean=None, latents_std=None)
    levels = len(config["block_out_channels"])
    for field, kind in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        if list(config[field]) != [kind] * levels:
            raise UserError(f"{field} must be {kind} at each of the {levels} levels")
    return AutoencoderKL(
        channels=tuple(config["block_out_channels"]),
        blocks=config["layers_per_block"],
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        latent_channels=config["latent_channels"],
        groups=config["norm_num_groups"],
        act=chosen(config, "act_fn", ACTIVATIONS),
        middle_attention=config["mid_block_add_attention"],
        quantised=config["use_quant_conv"],
        dequantised=config["use_post_quant_conv"],
        scale=float(config["scaling_factor"]),
        shift=float(config["shift_factor"] or 0.0),
    )


def _config(network: AutoencoderKL) -> dict[str, Any]:
    levels = len(network.channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": network.act,
        "block_out_channels": list(network.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": network.in_channels,
        "latent_channels": network.latent_channels,
        "layers_per_block": network.blocks,
        "mid_block_add_attention": network.middle_attention,
        "norm_num_groups": network.groups,
        "out_channels": network.out_channels,
        "scaling_factor": network.scale,
        "shift_factor": network.shift or None,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": network.dequantised,
        "use_quant_conv": network.quantised,
    }


ENDS = [
    Entry("encoder/conv_in", "encoder.conv_in"),
    Entry("encoder/norm_out", "encoder.conv_norm_out"),
    Entry("encoder/conv_out", "encoder.conv_out"),
    Entry("quantise", "quant_conv", POINTWISE),
    Entry("dequantise", "post_quant_conv", POINTWISE),
    Entry("decoder/conv_in", "decoder.conv_in"),
    Entry("decoder/norm_out", "decoder.conv_norm_out"),
    Entry("decoder/conv_out", "decoder.conv_out"),
]


def places(network: AutoencoderKL) -> Iterator[Place]:
    """The parts between the ends; files count the decoder's levels from the smallest image."""
    last = len(network.channels) - 1
    for level in range(last + 1):
        block = f"encoder.down_blocks.{level}"
        for i in range(network.blocks):
            yield Place(f"encoder/down{level}_{i}_residual", f"{block}.resnets.{i}", "residual")
        if level < last:
            name = f"{block}.downsamplers.0.conv"
            yield Place(f"encoder/down{level + 1}_halve", name, "halve")
    for half in ("encoder", "decoder"):
        for i in range(2):
            name = f"{half}.mid_block.resnets.{i}"
            yield Place(f"{half}/middle_{i}_residual", name, "residual")
        if network.middle_attention:
            name = f"{half}.mid_block.attentions.0"
            yield Place(f"{half}/middle_0_attention", name, "attention")
    for level in reversed(range(last + 1)):
        block = f"decoder.up_blocks.{last - level}"
        for i in range(network.blocks + 1):
            yield Place(f"decoder/up{level}_{i}_residual", f"{block}.resnets.{i}", "residual")
        if level:
            yield Place(f"decoder/up{level}_double", f"{block}.upsamplers.0.conv", "double")


def _entries(network: AutoencoderKL) -> list[Entry]:
    tables = {"residual": RESIDUAL, "attention": ATTENTION}
    entries = list(ENDS)
    for place in places(network):
        if place.kind in tables:
            entries += within(place.ours, place.theirs, tables[place.kind])
        else:
            entries.append(Entry(place.ours, place.theirs))
    return entries


def example(network: AutoencoderKL) -> tuple:
    """An image of the smallest size."""
    side = 2 ** (len(network.channels) - 1)
    return (jnp.zeros((1, side, side, network.in_channels)),)


AUTOENCODER_KL = Format(
    name="AutoencoderKL",
    network=_network,
    config=_config,
    entries=_entries,
    example=example,
    modern=modern,
)
