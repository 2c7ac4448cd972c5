"""The transformer inside a text-conditional U-Net (Rombach et al., arXiv 2112.10752, E.2.1).

Every position of a feature map is a token. A layer lets the tokens look at each other, then at the
text, then thinks about each by itself.
"""

import jax.numpy as jnp
from flax import linen as nn

from scorediff.models.attention import CrossAttention, SelfAttention
from scorediff.models.blocks import XAVIER, ZEROS, group_norm, stacked
from scorediff.models.dense import Dense
from scorediff.types import Array

MLP_RATIO = 4  # hidden width of the gated MLP over the width of a token


class TextBlock(nn.Module, kw_only=True):
    """Self-attention, attention to the text, gated MLP, each on normalised tokens and added.

    (x [b, n, c], text [b, m, d], bias [b, 1, 1, m] or None) -> (x, None), the shape of a scan's
    body; bias is added to the logits of the attention to the text.
    """

    heads: int
    dtype: str = "float32"
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x: Array, text: Array, bias: Array | None) -> tuple[Array, None]:
        options = {"heads": self.heads, "dtype": self.dtype, "kernel": self.kernel}
        look = SelfAttention(**options, qkv_bias=False, name="self")
        x = x + look(self.norm("norm_self")(x))
        read = CrossAttention(**options, qkv_bias=False, name="cross")
        x = x + read(self.norm("norm_cross")(x), text, bias)
        return x + self.mlp(self.norm("norm_mlp")(x)), None

    @nn.nowrap
    def norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name=name)

    @nn.nowrap
    def mlp(self, x: Array) -> Array:
        """Two layers with GEGLU between them (Shazeer, arXiv 2002.05202): the first half of the
        hidden channels times the exact GELU of the second."""
        width = x.shape[-1]
        hidden = 2 * MLP_RATIO * width
        h = Dense(hidden, dtype=self.dtype, kernel_init=XAVIER, name="mlp_in")(x)
        value, gate = jnp.split(h, 2, axis=-1)
        h = value * nn.gelu(gate, approximate=False)
        return Dense(width, dtype=self.dtype, kernel_init=XAVIER, name="mlp_out")(h)


class TextTransformer(nn.Module, kw_only=True):
    """x + matrix(layers(matrix(norm x))) over the positions of [b, h, w, c], told the text.

    The layers' parameters are stacked on axis 0 and the layers are scanned. The last matrix starts
    at zero. groups: of the normalisation in front, whose epsilon is 1e-6. Where heads do not divide
    the channels, tokens are as wide as the largest whole number of them a head allows.
    """

    depth: int
    heads: int
    groups: int
    dtype: str = "float32"
    remat: str = "none"
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x: Array, text: Array, bias: Array | None) -> Array:
        b, _, _, c = x.shape
        h = group_norm(c, self.dtype, "norm", groups=self.groups)(x).reshape(b, -1, c)
        inner = c // self.heads * self.heads
        h = Dense(inner, dtype=self.dtype, kernel_init=XAVIER, name="matrix_in")(h)
        h, _ = self.layers()(h, text, bias)
        h = Dense(c, dtype=self.dtype, kernel_init=ZEROS, name="matrix_out")(h)
        return x + h.reshape(x.shape)

    @nn.nowrap
    def layers(self) -> nn.Module:
        """All layers as one module: (x, text, bias) -> (x, None)."""
        scanned = stacked(TextBlock, self.depth, self.remat)
        return scanned(heads=self.heads, dtype=self.dtype, kernel=self.kernel, name="layers")
