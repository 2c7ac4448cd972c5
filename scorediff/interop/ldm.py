"""The original single files of Stable Diffusion: U-Net and autoencoder under CompVis's names.

One file holds every part of the model, told apart by prefixes: `split` cuts it. The networks, and
the configs that describe them, are those of diffusers; only the names of the tensors differ, so
each table here is diffusers' walk through the network with other names.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from scorediff.errors import UserError
from scorediff.interop import autoencoder, text_unet
from scorediff.interop.formats import Format
from scorediff.interop.layout import POINTWISE, Entry, Tensors, within
from scorediff.interop.shared import ADM_RESIDUAL
from scorediff.interop.text_unet import Place, outer, transformer, trunk_places, up_places
from scorediff.models.autoencoder import AutoencoderKL
from scorediff.models.text_unet import TextUNet

PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    # Stable Diffusion 1 and 2, and XL's two encoders; the text encoders have readers of their own.
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
# The schedule's tables, training's copies and counters, and a watermark: no parameters.
IGNORED = (
    "alphas_cumprod",
    "betas",
    "denoiser.",
    "global_step",
    "log_one_minus_alphas_cumprod",
    "logvar",
    "model_ema.",
    "posterior_",
    "sqrt_",
)


def split(tensors: Tensors) -> dict[str, dict[str, np.ndarray]]:
    """The parts of a single file, each under its names without the prefix.

    Keys are those of diffusers' folders: "unet", "vae", "text_encoder", "text_encoder_2", as far as
    the file has them. A tensor of no part that is known is a UserError.
    """
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        part, rest = _part(name)
        if part is not None:
            parts.setdefault(part, {})[rest] = tensor
    return parts


def _part(name: str) -> tuple[str | None, str]:
    for part, prefixes in PREFIXES.items():
        for prefix in prefixes:
            if name.startswith(prefix):
                return part, name.removeprefix(prefix)
    if name.startswith(IGNORED):
        return None, name
    raise UserError(f"{name} belongs to no part of a Stable Diffusion file that is known here")


def join(parts: Mapping[str, Tensors]) -> dict[str, np.ndarray]:
    """The inverse of `split`, with the prefixes of Stable Diffusion 1 and 2."""
    return {f"{PREFIXES[p][0]}{name}": a for p, part in parts.items() for name, a in part.items()}


UNET_ENDS = [
    Entry("condition/noise_in", "time_embed.0"),
    Entry("condition/noise_out", "time_embed.2"),
    Entry("condition/added_in", "label_emb.0.0"),
    Entry("condition/added_out", "label_emb.0.2"),
    Entry("condition/label", "label_emb"),
    Entry("conv_in", "input_blocks.0.0"),
    Entry("norm_out", "out.0"),
    Entry("conv_out", "out.2"),
]


def _numbered(places: Iterable[Place]) -> Iterator[Place]:
    """The U-Net's parts under names that count its blocks, not its levels.

    A residual block or a halving opens a new block; a transformer and a doubling stand behind the
    residual block that is open.
    """
    ways = {"down": "input_blocks", "up": "output_blocks"}
    opened = {"down": 0, "up": -1}  # the first convolution is input block 0
    middle = inside = 0
    for place in places:
        way = "down" if place.ours.startswith("down") else "up"
        if place.ours.startswith("middle"):
            yield place._replace(theirs=f"middle_block.{middle}")
            middle += 1
            continue
        opens = place.kind in ("residual", "halve")
        opened[way] += opens
        inside = 0 if opens else inside + 1
        leaf = {"halve": ".op", "double": ".conv"}.get(place.kind, "")
        yield place._replace(theirs=f"{ways[way]}.{opened[way]}.{inside}{leaf}")


def _unet(network: TextUNet) -> list[Entry]:
    if network.guidance_width is not None:
        raise UserError("the original files have no name for an embedding of the guidance scale")
    if network.middle != "text":
        raise UserError("the original files have a middle that reads the text")
    tables = {"residual": ADM_RESIDUAL, "transformer": transformer(outer(network))}
    entries = list(UNET_ENDS)
    for place in _numbered([*trunk_places(network), *up_places(network)]):
        if place.kind in tables:
            entries += within(place.ours, place.theirs, tables[place.kind])
        else:
            entries.append(Entry(place.ours, place.theirs))
    return entries


VAE_RESIDUAL = [
    Entry("norm_in", "norm1"),
    Entry("conv_in", "conv1"),
    Entry("norm_out", "norm2"),
    Entry("conv_out", "conv2"),
    Entry("shortcut", "nin_shortcut", POINTWISE),
]
VAE_ATTENTION = [
    Entry("norm", "norm"),
    Entry("attention/qkv", ("q", "k", "v"), POINTWISE),
    Entry("attention/out", "proj_out", POINTWISE),
]
VAE_ENDS = [
    Entry("encoder/conv_in", "encoder.conv_in"),
    Entry("encoder/norm_out", "encoder.norm_out"),
    Entry("encoder/conv_out", "encoder.conv_out"),
    Entry("quantise", "quant_conv", POINTWISE),
    Entry("dequantise", "post_quant_conv", POINTWISE),
    Entry("decoder/conv_in", "decoder.conv_in"),
    Entry("decoder/norm_out", "decoder.norm_out"),
    Entry("decoder/conv_out", "decoder.conv_out"),
]


def _autoencoder(network: AutoencoderKL) -> list[Entry]:
    """Levels are counted from the largest image in both halves, as ours are."""
    entries = list(VAE_ENDS)
    for half, way, blocks in (("encoder", "down", 0), ("decoder", "up", 1)):
        for level in range(len(network.channels)):
            for i in range(network.blocks + blocks):
                ours, theirs = (
                    f"{half}/{way}{level}_{i}_residual",
                    f"{half}.{way}.{level}.block.{i}",
                )
                entries += within(ours, theirs, VAE_RESIDUAL)
        for i in range(2):
            middle = f"{half}/middle_{i}_residual"
            entries += within(middle, f"{half}.mid.block_{i + 1}", VAE_RESIDUAL)
        entries += within(f"{half}/middle_0_attention", f"{half}.mid.attn_1", VAE_ATTENTION)
    for level in range(1, len(network.channels)):
        # A halving is counted with the level that it leaves, a doubling too.
        halve = f"encoder.down.{level - 1}.downsample.conv"
        entries.append(Entry(f"encoder/down{level}_halve", halve))
        entries.append(Entry(f"decoder/up{level}_double", f"decoder.up.{level}.upsample.conv"))
    return entries


TEXT_UNET = Format(
    name="ldm/UNetModel",
    network=text_unet.TEXT_UNET.network,
    config=text_unet.TEXT_UNET.config,
    entries=_unet,
    example=text_unet.TEXT_UNET.example,
)
AUTOENCODER_KL = Format(
    name="ldm/AutoencoderKL",
    network=autoencoder.AUTOENCODER_KL.network,
    config=autoencoder.AUTOENCODER_KL.config,
    entries=_autoencoder,
    example=autoencoder.AUTOENCODER_KL.example,
)
