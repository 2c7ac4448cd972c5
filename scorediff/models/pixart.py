"""PixArt-alpha (Chen et al., arXiv 2310.00426, section 2.3 and figure 4).

A DiT that reads text: between self-attention and MLP, the image's tokens look at the text's. What
steers the blocks is computed once (adaLN-single); a block only adds its own table to it.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from scorediff.errors import UserError
from scorediff.models.attention import CrossAttention, SelfAttention, mask_bias
from scorediff.models.blocks import check_positive, stacked
from scorediff.models.embeddings import Conditioning, given, sinusoid
from scorediff.models.patches import (
    check_patches,
    embed_patches,
    stretched_positions,
    unpatchify,
)
from scorediff.models.transformer import (
    NOISE_FEATURES,
    NORMAL,
    VectorEmbedding,
    check_transformer,
    layer_norm,
    mlp,
    modulate,
    read_out,
)
from scorediff.types import Array, Cond

MLP_RATIO = 4
PARTITION = (
    (r"(qkv|q|kv|mlp_in|text_in|modulation|noise_in|first)/kernel$", ("fsdp", "tensor")),
    (r"(attention/out|cross/out|mlp_out|text_out|noise_out|second)/kernel$", ("tensor", "fsdp")),
)


class PixArtBlock(nn.Module, kw_only=True):
    """(x [b, n, d], c [b, 6 d], text [b, m, d], bias) -> (x, None), the shape of a scan's body.

    The text is looked at without a normalisation and without a gate.
    """

    heads: int
    qkv_bias: bool = True
    epsilon: float = 1e-6
    dtype: str = "float32"
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x: Array, c: Array, text: Array, bias: Array | None) -> tuple[Array, None]:
        d = x.shape[-1]
        table = self.param("modulation", nn.initializers.normal(d**-0.5), (6, d))
        steer = (c.reshape(-1, 6, d) + table.astype(c.dtype)).astype(self.dtype)
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.moveaxis(steer, 1, 0)
        h = layer_norm(x, "norm_attention", self.dtype, self.epsilon)
        h = self.attention(SelfAttention, "attention")(modulate(h, shift1, scale1))
        x = x + gate1[:, None, :] * h
        x = x + self.attention(CrossAttention, "cross")(x, text, bias)
        h = modulate(layer_norm(x, "norm_mlp", self.dtype, self.epsilon), shift2, scale2)
        return x + gate2[:, None, :] * mlp(h, MLP_RATIO * d, self.dtype), None

    @nn.nowrap
    def attention(self, kind: type[nn.Module], name: str) -> nn.Module:
        """Self- or cross-attention with this block's options."""
        return kind(
            heads=self.heads,
            qkv_bias=self.qkv_bias,
            dtype=self.dtype,
            kernel=self.kernel,
            name=name,
        )


class PixArt(nn.Module, kw_only=True):
    """(x [b, h, w, c], noise [b], cond) -> float32 [b, h, w, out_channels].

    cond["text"] [b, m, text_features] are token embeddings (T5's), needed; cond["text_mask"] [b, m]
    is 1 where they count. With `sized`, cond["resolution"] [b, 2] (height and width in pixels) and
    cond["aspect"] [b, 1] (their ratio) are needed too.

    patch_size:       side of a square patch; height and width must be divisible by it.
    width:            channels of a token, divisible by 4 (positions) and by `heads`, with `sized`
                      by 3.
    depth:            layers; their parameters are stacked on axis 0 and the layers are scanned.
    heads:            attention heads.
    text_features:    width of the text's tokens.
    sized:            resolution and aspect ratio are told (the model for 1024 pixels).
    qkv_bias:         whether queries, keys and values have a bias.
    epsilon:          of the normalisations inside the layers.
    trained_size:     side in patches of the images that the network is trained on; positions of
                      another size are stretched over it.
    position_scale:   divides the positions, see `patches.stretched_positions`.
    in_channels:      of x, which is checked; None takes what comes.
    out_channels:     None gives as many as x has; twice as many where variances are learned too.
    dtype:            what is computed in; parameters, statistics and the output are float32.
    remat:            what the backward pass recomputes, a layer at a time: "none", "products"
                      (all but matrix products), "full".
    attention_kernel: "auto", "plain", "xla" or "cudnn".

    `train` changes nothing: there is no dropout.
    """

    patch_size: int = 2
    width: int = 384
    depth: int = 6
    heads: int = 6
    text_features: int = 4096
    sized: bool = False
    qkv_bias: bool = True
    epsilon: float = 1e-6
    trained_size: int = 16
    position_scale: float = 1.0
    in_channels: int | None = None
    out_channels: int | None = None
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_transformer(self)
        check_positive("PixArt.text_features", self.text_features)
        check_positive("PixArt.trained_size", self.trained_size)
        if self.position_scale <= 0:
            raise UserError(f"PixArt.position_scale must be positive, got {self.position_scale}")
        if self.sized and self.width % 3:
            raise UserError(
                f"PixArt.sized needs a width divisible by 3, for two sides and their ratio, "
                f"got {self.width}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond = None, *, train: bool = False) -> Array:
        check_patches(self, x.shape)
        text = given(self, cond, "text", self.text_features).astype(self.dtype)
        text = self.embed_text(text)
        bias = mask_bias(cond.get("text_mask"), self.dtype)
        c = self.condition(noise, cond)
        steer = nn.Dense(6 * self.width, dtype=c.dtype, kernel_init=NORMAL, name="modulation")
        tokens, _ = self.layers()(self.embed(x), steer(nn.silu(c)), text, bias)
        table = self.param("modulation_out", nn.initializers.normal(0.02), (2, self.width))
        shift, scale = jnp.moveaxis(c[:, None, :] + table.astype(c.dtype), 1, 0)
        features = self.patch_size**2 * (self.out_channels or x.shape[-1])
        patches = read_out(tokens, shift, scale, features)
        return unpatchify(patches, self.patch_size, x.shape[1], x.shape[2])

    @nn.nowrap
    def condition(self, noise: Array, cond: Cond) -> Array:
        """Noise level, and size where it is told, as one vector a sample [b, width]."""
        embed = Conditioning(
            features=NOISE_FEATURES,
            width=self.width,
            dtype=self.dtype,
            kernel_init=NORMAL,
            name="condition",
        )
        c = embed(noise, None)
        if not self.sized:
            return c
        parts = [self.embed_size(cond, "resolution", 2), self.embed_size(cond, "aspect", 1)]
        return c + jnp.concatenate(parts, axis=-1)

    @nn.nowrap
    def embed_size(self, cond: Cond, key: str, numbers: int) -> Array:
        """Each of the numbers [b, numbers] as width / 3 channels: [b, numbers width / 3]."""
        value = given(self, cond, key, numbers)
        waves = sinusoid(value.reshape(-1), NOISE_FEATURES, dtype=self.dtype)
        embed = VectorEmbedding(width=self.width // 3, dtype=self.dtype, name=key)
        return embed(waves).reshape(value.shape[0], -1)

    @nn.nowrap
    def embed_text(self, text: Array) -> Array:
        """The text's tokens at the network's width, through two layers."""
        dense = partial(nn.Dense, self.width, dtype=self.dtype, kernel_init=NORMAL)
        return dense(name="text_out")(nn.gelu(dense(name="text_in")(text), approximate=True))

    @nn.nowrap
    def embed(self, x: Array) -> Array:
        """Patches as tokens, plus where they sit: [b, h, w, c] -> [b, n, width]."""
        rows, columns = x.shape[1] // self.patch_size, x.shape[2] // self.patch_size
        where = stretched_positions(
            rows, columns, self.width, self.trained_size, self.position_scale
        )
        tokens = embed_patches(x, self.patch_size, self.width, self.dtype)
        return tokens + jnp.asarray(where, tokens.dtype)

    @nn.nowrap
    def layers(self) -> nn.Module:
        """All blocks as one module whose parameters are stacked on axis 0."""
        scanned = stacked(PixArtBlock, self.depth, self.remat)
        return scanned(
            heads=self.heads,
            qkv_bias=self.qkv_bias,
            epsilon=self.epsilon,
            dtype=self.dtype,
            kernel=self.attention_kernel,
            name="layers",
        )
