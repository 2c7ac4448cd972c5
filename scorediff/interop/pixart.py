"""PixArtTransformer2DModel: PixArt-alpha's network in diffusers' layout."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from scorediff.errors import UserError
from scorediff.interop.dit import UNUSED as TRANSFORMER_UNUSED
from scorediff.interop.dit import attention, feed_forward, patch_form, two_layers
from scorediff.interop.dit import example as image_example
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import SAME, Entry, within
from scorediff.interop.settings import complete, only
from scorediff.models.pixart import PixArt

DEFAULTS: Mapping[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "cross_attention_dim": 1152,
    "attention_bias": True,
    "sample_size": 128,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "interpolation_scale": None,
    "use_additional_conditions": None,
    "caption_channels": None,
    "attention_type": "default",
}
UNUSED = {*TRANSFORMER_UNUSED, "num_embeds_ada_norm"} - set(DEFAULTS)
SIZED_FROM = 128  # sample_size at which the size is told unless the config says otherwise


def _network(config: Config) -> PixArt:
    c = complete(config, DEFAULTS, unused=UNUSED)
    width = c["num_attention_heads"] * c["attention_head_dim"]
    only(c, activation_fn="gelu-approximate", norm_elementwise_affine=False)
    only(c, norm_type="ada_norm_single", attention_type="default", cross_attention_dim=width)
    if c["caption_channels"] is None:
        raise UserError("PixArtTransformer2DModel: caption_channels, the text's width, is missing")
    sized, scale = c["use_additional_conditions"], c["interpolation_scale"]
    return PixArt(
        patch_size=c["patch_size"],
        width=width,
        depth=c["num_layers"],
        heads=c["num_attention_heads"],
        text_features=c["caption_channels"],
        sized=c["sample_size"] == SIZED_FROM if sized is None else sized,
        qkv_bias=c["attention_bias"],
        epsilon=c["norm_eps"],
        trained_size=c["sample_size"] // c["patch_size"],
        position_scale=max(c["sample_size"] // 64, 1) if scale is None else scale,
        in_channels=c["in_channels"],
        out_channels=c["in_channels"] if c["out_channels"] is None else c["out_channels"],
    )


def _config(network: PixArt) -> dict[str, Any]:
    return {
        "_class_name": "PixArtTransformer2DModel",
        "num_attention_heads": network.heads,
        "attention_head_dim": network.width // network.heads,
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "num_layers": network.depth,
        "cross_attention_dim": network.width,
        "attention_bias": network.qkv_bias,
        "sample_size": network.trained_size * network.patch_size,
        "patch_size": network.patch_size,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": network.epsilon,
        "interpolation_scale": network.position_scale,
        "use_additional_conditions": network.sized,
        "caption_channels": network.text_features,
        "attention_type": "default",
    }


def _vector(ours: str, theirs: str) -> list[Entry]:
    return within(ours, theirs, [Entry("first", "linear_1"), Entry("second", "linear_2")])


def _entries(network: PixArt) -> list[Entry]:
    block = [
        Entry("modulation", "scale_shift_table", form=SAME),
        *attention("attn1"),
        Entry("cross/q", "attn2.to_q"),
        Entry("cross/kv", ("attn2.to_k", "attn2.to_v")),
        Entry("cross/out", "attn2.to_out.0"),
        *feed_forward(),
    ]
    return [
        Entry("patch_in", "pos_embed.proj", form=patch_form(network.patch_size)),
        *two_layers("condition", "adaln_single.emb.timestep_embedder"),
        *_vector("resolution", "adaln_single.emb.resolution_embedder"),
        *_vector("aspect", "adaln_single.emb.aspect_ratio_embedder"),
        Entry("modulation", "adaln_single.linear"),
        Entry("text_in", "caption_projection.linear_1"),
        Entry("text_out", "caption_projection.linear_2"),
        *within("layers", "transformer_blocks.{}", block),
        Entry("modulation_out", "scale_shift_table", form=SAME),
        Entry("patch_out", "proj_out"),
    ]


def _example(network: PixArt) -> tuple:
    x, noise, _ = image_example(network, network.trained_size)
    cond = {
        "text": jnp.zeros((1, 1, network.text_features)),
        "resolution": jnp.zeros((1, 2)),
        "aspect": jnp.zeros((1, 1)),
    }
    return x, noise, cond


PIXART = Format(
    name="PixArtTransformer2DModel",
    network=_network,
    config=_config,
    entries=_entries,
    example=_example,
)
