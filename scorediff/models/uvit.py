"""U-ViT (Bao et al., arXiv 2209.12152, section 3 and figure 1).

Everything is a token: the noise level, the class or the words of a text, and the image's patches.
A plain transformer reads them all, and every layer of its first half is joined to its mirror image
in the second by a long skip connection.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from scorediff.errors import UserError
from scorediff.models.attention import SelfAttention
from scorediff.models.blocks import XAVIER, ZEROS, check_positive, checkpointed, conv3, stacked
from scorediff.models.dense import Dense
from scorediff.models.embeddings import given, island, sinusoid
from scorediff.models.patches import check_patches, embed_patches, unpatchify
from scorediff.models.transformer import NORMAL, check_transformer, mlp
from scorediff.types import Array, Cond

EPSILON = 1e-5  # of every normalisation
PARTITION = (
    (r"(qkv|mlp_in|text_in|noise_in)/kernel$", ("fsdp", "tensor")),
    (r"(attention/out|mlp_out|noise_out)/kernel$", ("tensor", "fsdp")),
    (r"skip/kernel$", ("fsdp", "tensor")),
    (r"label/embedding$", (None, "fsdp")),
)


def layer_norm(x: Array, name: str, dtype) -> Array:
    """Normalisation over channels with a learned scale and shift."""
    return nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False, dtype=dtype, name=name)(x)


class UViTBlock(nn.Module, kw_only=True):
    """(x [b, n, d], skip [b, n, d] or None) -> (x, x), the shape of a scan's body.

    A skip is joined by concatenation and one matrix (table 1 and figure 2a of the paper).
    """

    heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    dtype: str = "float32"
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x: Array, skip: Array | None = None) -> tuple[Array, Array]:
        d = x.shape[-1]
        if skip is not None:
            joined = jnp.concatenate([x, skip], axis=-1)
            x = Dense(d, dtype=self.dtype, kernel_init=XAVIER, name="skip")(joined)
        attention = SelfAttention(
            heads=self.heads,
            qkv_bias=self.qkv_bias,
            dtype=self.dtype,
            kernel=self.kernel,
            name="attention",
        )
        x = x + attention(layer_norm(x, "norm_attention", self.dtype))
        h = layer_norm(x, "norm_mlp", self.dtype)
        x = x + mlp(h, round(self.mlp_ratio * d), self.dtype, approximate=False)
        return x, x


class UViT(nn.Module, kw_only=True):
    """(x [b, h, w, c], noise [b], cond) -> float32 [b, h, w, out_channels].

    image_size:       height and width of the images: positions are a table of parameters.
    patch_size:       side of a square patch, a divisor of `image_size`.
    width:            channels of a token, divisible by 4 and by `heads`.
    depth:            layers: half of them (rounded down) before the one in the middle, and as many
                      after it. Each half is scanned, its parameters stacked on axis 0.
    heads:            attention heads.
    mlp_ratio:        hidden width of the MLP over `width`.
    qkv_bias:         whether queries, keys and values have a bias.
    noise_mlp:        the noise level's sinusoid goes through two layers; otherwise it is a token
                      as it is.
    num_classes:      classes 0 .. n - 1 are cond["label"], n is the null class, which also stands
                      in where no label is given; None: no classes.
    text_tokens:      number of tokens in cond["text"] [b, text_tokens, text_features], which is
                      then needed; None: no text.
    text_features:    their width.
    skips:            the long skip connections.
    smooth:           a last convolution of 3 x 3 on the image.
    in_channels:      of x, which is checked; None takes what comes.
    out_channels:     None gives as many as x has.
    dtype:            what is computed in; parameters, statistics and the output are float32.
    remat:            what the backward pass recomputes, a layer at a time: "none", "products"
                      (all but matrix products), "full".
    attention_kernel: "auto", "plain", "xla" or "cudnn".

    `train` changes nothing: the paper's network has no dropout.
    """

    image_size: int = 32
    patch_size: int = 2
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    noise_mlp: bool = False
    num_classes: int | None = None
    text_tokens: int | None = None
    text_features: int = 768
    skips: bool = True
    smooth: bool = True
    in_channels: int | None = None
    out_channels: int | None = None
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_transformer(self)
        for field in ("image_size", "text_features", "num_classes", "text_tokens"):
            if getattr(self, field) is not None:
                check_positive(f"UViT.{field}", getattr(self, field))
        if self.depth < 2 or self.image_size % self.patch_size:
            raise UserError(
                f"UViT needs a depth of 2 or more and an image_size divisible by patch_size, got "
                f"depth={self.depth}, image_size={self.image_size}, patch_size={self.patch_size}"
            )
        if round(self.mlp_ratio * self.width) < 1:
            raise UserError(f"UViT.mlp_ratio must be positive, got {self.mlp_ratio}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond = None, *, train: bool = False) -> Array:
        self.check_size(x.shape)
        extra = self.extra_tokens(noise, cond)
        patches = embed_patches(x, self.patch_size, self.width, self.dtype)
        tokens = jnp.concatenate([*extra, patches], axis=1)
        where = self.param("positions", NORMAL, tokens.shape[1:])
        tokens = self.layers(tokens + where.astype(tokens.dtype))
        tokens = layer_norm(tokens, "norm_out", island(self.dtype))
        return self.read_out(tokens[:, -patches.shape[1] :], x.shape)

    @nn.nowrap
    def check_size(self, shape: tuple[int, ...]) -> None:
        """Refuse an image of another size than the positions are for."""
        check_patches(self, shape)
        if shape[1:3] != (self.image_size, self.image_size):
            raise UserError(
                f"this UViT takes images of {self.image_size} x {self.image_size} "
                f"(UViT.image_size), got {shape[1]} x {shape[2]}"
            )

    @nn.nowrap
    def extra_tokens(self, noise: Array, cond: Cond) -> list[Array]:
        """What stands before the patches: class, noise level, text, each [b, m, width]."""
        dense = partial(nn.Dense, dtype=island(self.dtype), kernel_init=NORMAL)
        token = sinusoid(noise, self.width, dtype=self.dtype)
        if self.noise_mlp:
            token = nn.silu(dense(4 * self.width, name="noise_in")(token))
            token = dense(self.width, name="noise_out")(token)
        extra = [token[:, None, :]]
        if self.num_classes is not None:
            null = jnp.full(noise.shape, self.num_classes, jnp.int32)
            label = null if cond is None or "label" not in cond else cond["label"]
            table = nn.Embed(self.num_classes + 1, self.width, embedding_init=NORMAL, name="label")
            extra.insert(0, table(label)[:, None, :])
        if self.text_tokens is not None:
            extra.append(dense(self.width, name="text_in")(self.text(cond)))
        return [tokens.astype(self.dtype) for tokens in extra]

    @nn.nowrap
    def text(self, cond: Cond) -> Array:
        """cond["text"], as many tokens of it as there are positions for."""
        text = given(self, cond, "text", self.text_features)
        if text.ndim != 3 or text.shape[1] != self.text_tokens:
            raise UserError(
                f'this UViT takes cond["text"] of {self.text_tokens} tokens, got {text.shape}'
            )
        return text

    @nn.nowrap
    def layers(self, tokens: Array) -> Array:
        """Down, middle, up: the youngest skip that is left goes to the next layer."""
        tokens, skips = self.half("down")(tokens, None)
        tokens, _ = self.block(checkpointed(UViTBlock, self.remat), "middle")(tokens, None)
        tokens, _ = self.half("up")(tokens, skips[::-1] if self.skips else None)
        return tokens

    @nn.nowrap
    def half(self, name: str) -> nn.Module:
        """Half of the layers as one module whose parameters are stacked on axis 0."""
        scanned = stacked(UViTBlock, self.depth // 2, self.remat, in_axes=0)
        return self.block(scanned, name)

    @nn.nowrap
    def block(self, block: Callable[..., nn.Module], name: str) -> nn.Module:
        """A layer with this network's options."""
        return block(
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            qkv_bias=self.qkv_bias,
            dtype=self.dtype,
            kernel=self.attention_kernel,
            name=name,
        )

    @nn.nowrap
    def read_out(self, tokens: Array, shape: tuple[int, ...]) -> Array:
        """The patches' tokens back to an image, in float32; the last layer starts at zero."""
        dtype, channels = island(self.dtype), self.out_channels or shape[-1]
        init = XAVIER if self.smooth else ZEROS
        features = self.patch_size**2 * channels
        patches = Dense(features, dtype=dtype, kernel_init=init, name="patch_out")(tokens)
        image = unpatchify(patches, self.patch_size, shape[1], shape[2])
        return conv3(channels, dtype, "conv_out", init=ZEROS)(image) if self.smooth else image
