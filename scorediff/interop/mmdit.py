"""SD3Transformer2DModel: the network of Stable Diffusion 3 and 3.5 in diffusers' layout."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from scorediff.interop.dit import TABLE, attention, feed_forward, patch_form, two_layers
from scorediff.interop.dit import example as image_example
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import SAME, TORCH, Entry, Form, within
from scorediff.interop.settings import complete, only
from scorediff.models.mmdit import MMDiT

DEFAULTS: Mapping[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 96,
    "dual_attention_layers": (),
    "qk_norm": None,
}


def _network(config: Config) -> MMDiT:
    c = complete(config, DEFAULTS)
    width = c["num_attention_heads"] * c["attention_head_dim"]
    only(c, caption_projection_dim=width, qk_norm=(None, "rms_norm"))
    return MMDiT(
        patch_size=c["patch_size"],
        width=width,
        depth=c["num_layers"],
        heads=c["num_attention_heads"],
        text_features=c["joint_attention_dim"],
        pooled_features=c["pooled_projection_dim"],
        normalise=c["qk_norm"] is not None,
        dual_layers=tuple(c["dual_attention_layers"]),
        table_size=c["pos_embed_max_size"],
        trained_size=c["sample_size"] // c["patch_size"],
        in_channels=c["in_channels"],
        out_channels=c["in_channels"] if c["out_channels"] is None else c["out_channels"],
    )


def _config(network: MMDiT) -> dict[str, Any]:
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": network.trained_size * network.patch_size,
        "patch_size": network.patch_size,
        "in_channels": network.in_channels,
        "num_layers": network.depth,
        "attention_head_dim": network.width // network.heads,
        "num_attention_heads": network.heads,
        "joint_attention_dim": network.text_features,
        "caption_projection_dim": network.width,
        "pooled_projection_dim": network.pooled_features,
        "out_channels": network.out_channels,
        "pos_embed_max_size": network.table_size,
        "dual_attention_layers": list(network.dual_layers),
        "qk_norm": "rms_norm" if network.normalise else None,
    }


def _halves_swapped(a: np.ndarray) -> np.ndarray:
    return np.concatenate(np.split(a, 2, axis=-1)[::-1], axis=-1)


# Where diffusers has scale before shift, and we shift before scale as everywhere.
SWAPPED = Form(lambda a: _halves_swapped(a.T), lambda a: _halves_swapped(a).T)
SWAPPED_BIAS = Form(_halves_swapped, _halves_swapped)


def _block(*, last: bool) -> list[Entry]:
    """One block; what this kind of block lacks is passed over."""
    form, bias = (SWAPPED, SWAPPED_BIAS) if last else (TORCH, SAME)
    return [
        Entry("image_modulation", "norm1.linear"),
        Entry("text_modulation", "norm1_context.linear", form=form, bias=bias),
        Entry("image_qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
        Entry("text_qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
        Entry("image_norm_q", "attn.norm_q"),
        Entry("image_norm_k", "attn.norm_k"),
        Entry("text_norm_q", "attn.norm_added_q"),
        Entry("text_norm_k", "attn.norm_added_k"),
        Entry("image_out", "attn.to_out.0"),
        Entry("text_out", "attn.to_add_out"),
        *attention("attn2", "image_attention"),
        Entry("image_attention/norm_q", "attn2.norm_q"),
        Entry("image_attention/norm_k", "attn2.norm_k"),
        *feed_forward("ff", "image_mlp"),
        *feed_forward("ff_context", "text_mlp"),
    ]


def _run(start: int) -> list[Entry]:
    """The blocks of a run that starts with block `start`."""
    run = within(f"layers_{start}", "transformer_blocks.{}", _block(last=False))
    return [entry._replace(first=start) for entry in run]


def _entries(network: MMDiT) -> list[Entry]:
    text = within(
        "pooled",
        "time_text_embed.text_embedder",
        [Entry("first", "linear_1"), Entry("second", "linear_2")],
    )
    return [
        Entry("patch_in", "pos_embed.proj", form=patch_form(network.patch_size)),
        Entry("positions", "pos_embed.pos_embed", form=TABLE),
        *two_layers("condition", "time_text_embed.timestep_embedder"),
        *text,
        Entry("text_in", "context_embedder"),
        *[entry for start, _ in network.runs() for entry in _run(start)],
        *within("last", f"transformer_blocks.{network.depth - 1}", _block(last=True)),
        Entry("modulation", "norm_out.linear", form=SWAPPED, bias=SWAPPED_BIAS),
        Entry("patch_out", "proj_out"),
    ]


def _example(network: MMDiT) -> tuple:
    x, noise, _ = image_example(network, 1)
    cond = {
        "text": jnp.zeros((1, 1, network.text_features)),
        "pooled": jnp.zeros((1, network.pooled_features)),
    }
    return x, noise, cond


SD3_TRANSFORMER = Format(
    name="SD3Transformer2DModel",
    network=_network,
    config=_config,
    entries=_entries,
    example=_example,
)
