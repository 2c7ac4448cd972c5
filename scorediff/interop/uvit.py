"""U-ViT: the paper's own state dicts, with classes (libs.uvit) and with text (libs.uvit_t2i)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from scorediff.interop.dit import TABLE, patch_form
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import Entry, within
from scorediff.interop.settings import complete, only
from scorediff.models.uvit import UViT

DEFAULTS: Mapping[str, Any] = {
    "module": "libs.uvit",
    "img_size": 224,
    "patch_size": 16,
    "in_chans": 3,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": False,
    "qk_scale": None,
    "mlp_time_embed": False,
    "conv": True,
    "skip": True,
}
OF_CLASSES: Mapping[str, Any] = {"num_classes": -1}  # the null class is one of them
OF_TEXT: Mapping[str, Any] = {"clip_dim": 768, "num_clip_token": 77}
TEXT = "libs.uvit_t2i"


def _network(config: Config) -> UViT:
    with_text = config.get("module") == TEXT
    own = OF_TEXT if with_text else OF_CLASSES
    c = complete(config, {**DEFAULTS, **own}, unused=("class", "use_checkpoint"))
    only(c, module=("libs.uvit", TEXT), qk_scale=None)
    classes = c.get("num_classes", -1)
    return UViT(
        image_size=c["img_size"],
        patch_size=c["patch_size"],
        width=c["embed_dim"],
        depth=c["depth"],
        heads=c["num_heads"],
        mlp_ratio=c["mlp_ratio"],
        qkv_bias=c["qkv_bias"],
        noise_mlp=c["mlp_time_embed"],
        num_classes=classes - 1 if classes > 0 else None,
        text_tokens=c["num_clip_token"] if with_text else None,
        text_features=c["clip_dim"] if with_text else UViT.text_features,
        skips=c["skip"],
        smooth=c["conv"],
        in_channels=c["in_chans"],
    )


def _config(network: UViT) -> dict[str, Any]:
    with_text = network.text_tokens is not None
    classes = -1 if network.num_classes is None else network.num_classes + 1
    text = {"clip_dim": network.text_features, "num_clip_token": network.text_tokens}
    return {
        "class": "UViT",
        "module": TEXT if with_text else "libs.uvit",
        "img_size": network.image_size,
        "patch_size": network.patch_size,
        "in_chans": network.in_channels,
        "embed_dim": network.width,
        "depth": network.depth,
        "num_heads": network.heads,
        "mlp_ratio": network.mlp_ratio,
        "qkv_bias": network.qkv_bias,
        "qk_scale": None,
        "mlp_time_embed": network.noise_mlp,
        "conv": network.smooth,
        "skip": network.skips,
        **(text if with_text else {"num_classes": classes}),
    }


BLOCK = [
    Entry("skip", "skip_linear"),
    Entry("norm_attention", "norm1"),
    Entry("attention/qkv", "attn.qkv"),
    Entry("attention/out", "attn.proj"),
    Entry("norm_mlp", "norm2"),
    Entry("mlp_in", "mlp.fc1"),
    Entry("mlp_out", "mlp.fc2"),
]


def _entries(network: UViT) -> list[Entry]:
    return [
        Entry("patch_in", "patch_embed.proj", form=patch_form(network.patch_size)),
        Entry("positions", "pos_embed", form=TABLE),
        Entry("noise_in", "time_embed.0"),
        Entry("noise_out", "time_embed.2"),
        Entry("label", "label_emb"),
        Entry("text_in", "context_embed"),
        *within("down", "in_blocks.{}", BLOCK),
        *within("middle", "mid_block", BLOCK),
        *within("up", "out_blocks.{}", BLOCK),
        Entry("norm_out", "norm"),
        Entry("patch_out", "decoder_pred"),
        Entry("conv_out", "final_layer"),
    ]


def _example(network: UViT) -> tuple:
    size = network.image_size
    x, noise = jnp.zeros((1, size, size, network.in_channels)), jnp.zeros(1)
    if network.text_tokens is None:
        return x, noise, None
    return x, noise, {"text": jnp.zeros((1, network.text_tokens, network.text_features))}


UVIT = Format(
    name="uvit/UViT", network=_network, config=_config, entries=_entries, example=_example
)
