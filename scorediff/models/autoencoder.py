"""The KL autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752, section 3.1).

An encoder halves the image level by level and gives a Gaussian over latents, a decoder goes back.
Diffusion models work on latents that are shifted and scaled to about unit variance.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from scorediff.errors import UserError, check_choice
from scorediff.models.blocks import (
    ACTIVATIONS,
    XAVIER,
    AttentionBlock,
    ResBlock,
    check_computation,
    check_positive,
    checkpointed,
    conv3,
    group_norm,
)
from scorediff.models.embeddings import island
from scorediff.models.resample import upsample
from scorediff.types import Array

PARTITION: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(residual/conv_in|qkv)/kernel$", ("fsdp", "tensor")),
    (r"(residual/conv_out|attention/out)/kernel$", ("tensor", "fsdp")),
    (r"(halve|double|shortcut)/kernel$", ("fsdp", None)),
)
LOGVAR = (-30.0, 20.0)  # bounds of the log variance of a latent


class Half(nn.Module, kw_only=True):
    """What encoder and decoder are made of. Fields: see `AutoencoderKL`."""

    channels: tuple[int, ...]
    blocks: int
    out_channels: int
    groups: int
    act: str
    middle_attention: bool
    dtype: str
    remat: str
    attention_kernel: str

    @nn.nowrap
    def residual(self, h: Array, name: str, width: int) -> Array:
        block = checkpointed(ResBlock, self.remat)(
            features=width, groups=self.groups, act=self.act, dtype=self.dtype, name=name
        )
        return block(h, None)

    @nn.nowrap
    def middle(self, h: Array) -> Array:
        h = self.residual(h, "middle_0_residual", h.shape[-1])
        if self.middle_attention:
            attention = checkpointed(AttentionBlock, self.remat)(
                heads=1,
                groups=self.groups,
                dtype=self.dtype,
                kernel=self.attention_kernel,
                name="middle_0_attention",
            )
            h = attention(h)
        return self.residual(h, "middle_1_residual", h.shape[-1])

    @nn.nowrap
    def leave(self, h: Array) -> Array:
        """Normalisation, SiLU whatever `act` is, and the last convolution, at least float32."""
        h = h.astype(island(self.dtype))
        h = group_norm(h.shape[-1], h.dtype, "norm_out", groups=self.groups)(h)
        return conv3(self.out_channels, h.dtype, "conv_out")(nn.silu(h))


class Encoder(Half, kw_only=True):
    """[b, h, w, c] -> [b, h / 2^(levels - 1), w / 2^(levels - 1), out_channels]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = conv3(self.channels[0], self.dtype, "conv_in")(x.astype(self.dtype))
        for level, width in enumerate(self.channels):
            if level:
                padding = (0, 1), (0, 1)
                halve = conv3(
                    h.shape[-1], self.dtype, f"down{level}_halve", stride=2, padding=padding
                )
                h = halve(h)
            for i in range(self.blocks):
                h = self.residual(h, f"down{level}_{i}_residual", width)
        return self.leave(self.middle(h))


class Decoder(Half, kw_only=True):
    """[b, h, w, c] -> [b, 2^(levels - 1) h, 2^(levels - 1) w, out_channels]."""

    @nn.compact
    def __call__(self, z: Array) -> Array:
        h = conv3(self.channels[-1], self.dtype, "conv_in")(z.astype(self.dtype))
        h = self.middle(h)
        for level, width in reversed(list(enumerate(self.channels))):
            for i in range(self.blocks + 1):
                h = self.residual(h, f"up{level}_{i}_residual", width)
            if level:
                h = conv3(width, self.dtype, f"up{level}_double")(upsample(h))
        return self.leave(h)


class AutoencoderKL(nn.Module, kw_only=True):
    """Images [b, h, w, c] in [-1, 1] and latents [b, h / f, w / f, latent_channels], both ways.

    f = 2^(levels - 1). `apply(variables, x, method="encode")` and method="decode" go one way, the
    plain call goes there and back.

    channels:         width of each level; every further level halves the image.
    blocks:           residual blocks a level in the encoder (one more in the decoder).
    in_channels, out_channels: of the images.
    latent_channels:  of the latents.
    groups:           of the normalisations, whose epsilon is 1e-6.
    act:              activation of the residual blocks.
    middle_attention: whether the middles attend, with one head.
    quantised, dequantised: a matrix behind the encoder and one in front of the decoder (SD 1, 2,
                      XL; SD 3 has neither).
    scale, shift:     diffusion models see (z - shift) scale: 0.18215 and 0 (SD 1, 2), 0.13025 and
                      0 (XL), 1.5305 and 0.0609 (SD 3).
    dtype:            what is computed in; parameters, statistics and the outputs are float32.
    remat:            what the backward pass recomputes, a block at a time: "none", "products",
                      "full".
    attention_kernel: "auto", "plain", "xla" or "cudnn".
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    groups: int = 32
    act: str = "silu"
    middle_attention: bool = True
    quantised: bool = True
    dequantised: bool = True
    scale: float = 0.18215
    shift: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_computation(self)
        check_choice("AutoencoderKL.act", self.act, ACTIVATIONS)
        check_positive("AutoencoderKL.channels", len(self.channels), *self.channels)
        check_positive("AutoencoderKL.blocks", self.blocks)
        images = self.in_channels, self.out_channels, self.latent_channels
        check_positive("AutoencoderKL.in_channels, out_channels and latent_channels", *images)
        if self.scale <= 0:
            raise UserError(f"AutoencoderKL.scale must be positive, got {self.scale}")
        super().__post_init__()

    def setup(self):
        half = {
            "channels": self.channels,
            "blocks": self.blocks,
            "groups": self.groups,
            "act": self.act,
            "middle_attention": self.middle_attention,
            "dtype": self.dtype,
            "remat": self.remat,
            "attention_kernel": self.attention_kernel,
        }
        moments = 2 * self.latent_channels
        self.encoder = Encoder(**half, out_channels=moments)
        self.decoder = Decoder(**half, out_channels=self.out_channels)
        matrix = partial(nn.Dense, dtype=island(self.dtype), kernel_init=XAVIER)
        self.quantise = matrix(moments) if self.quantised else None
        self.dequantise = matrix(self.latent_channels) if self.dequantised else None

    def __call__(self, x: Array) -> tuple[Array, Array, Array]:
        """Images -> (images decoded from the mean latents, mean, logvar)."""
        mean, logvar = self.encode(x)
        return self.decode(mean), mean, logvar

    def moments(self, x: Array) -> Array:
        """Images -> mean and unbounded log variance of the latents, side by side."""
        self.check(x, self.in_channels, "encodes images")
        factor = 2 ** (len(self.channels) - 1)
        if x.shape[1] % factor or x.shape[2] % factor:
            raise UserError(
                f"images of {x.shape[1]} x {x.shape[2]} cannot be encoded: both sides must be "
                f"divisible by {factor}"
            )
        h = self.encoder(x)
        return self.quantise(h) if self.quantised else h

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Images -> mean and log variance (in [-30, 20]) of the latents z, each [b, h, w, c]."""
        mean, logvar = jnp.split(self.moments(x), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR)

    def decode(self, z: Array) -> Array:
        """Latents z -> images."""
        self.check(z, self.latent_channels, "decodes latents")
        return self.decoder(self.dequantise(z) if self.dequantised else z)

    @nn.nowrap
    def to_latents(self, z: Array) -> Array:
        """Latents of the autoencoder -> those that a diffusion model sees."""
        return (z - self.shift) * self.scale

    @nn.nowrap
    def from_latents(self, latents: Array) -> Array:
        """The inverse of `to_latents`."""
        return latents / self.scale + self.shift

    @nn.nowrap
    def check(self, x: Array, channels: int, what: str) -> None:
        if x.ndim != 4 or x.shape[-1] != channels:
            raise UserError(
                f"AutoencoderKL {what} [b, h, w, {channels}], got an array of shape {x.shape}"
            )
