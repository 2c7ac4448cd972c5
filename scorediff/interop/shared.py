"""Names that several published classes share: diffusers' blocks, and those of the ADM code."""

import re

import numpy as np

from scorediff.interop.layout import POINTWISE, Entry, Tensors

RESIDUAL = (
    Entry("norm_in", "norm1"),
    Entry("conv_in", "conv1"),
    Entry("condition", "time_emb_proj"),
    Entry("norm_out", "norm2"),
    Entry("conv_out", "conv2"),
    Entry("shortcut", "conv_shortcut", POINTWISE),
)
ATTENTION = (
    Entry("norm", "group_norm"),
    Entry("attention/qkv", ("to_q", "to_k", "to_v")),
    Entry("attention/out", "to_out.0"),
)
ADM_RESIDUAL = (  # also of Stable Diffusion's single files, which come from the same code
    Entry("norm_in", "in_layers.0"),
    Entry("conv_in", "in_layers.2"),
    Entry("condition", "emb_layers.1"),
    Entry("norm_out", "out_layers.0"),
    Entry("conv_out", "out_layers.3"),
    Entry("shortcut", "skip_connection", POINTWISE),
)
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAME = re.compile(rf"(.*attentions\.\d+)\.({'|'.join(OLD)})\.(weight|bias)")


def modern(tensors: Tensors) -> dict[str, np.ndarray]:
    """Attention under its names of diffusers up to 0.16 -> today's."""

    def renamed(name: str) -> str:
        old = OLD_NAME.fullmatch(name)
        return f"{old[1]}.{OLD[old[2]]}.{old[3]}" if old else name

    return {renamed(name): tensor for name, tensor in tensors.items()}
