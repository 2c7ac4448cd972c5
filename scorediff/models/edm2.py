"""The magnitude-preserving U-Net of EDM2 (Karras et al., arXiv 2312.02696, configuration G).

The encoder and decoder of ADM without biases, groups and learned normalisations: magnitudes are
kept by construction, by the operations in `edm2_parts`. Only gains start at zero: one at the
output, so that a fresh network answers zero, and one where the condition enters each block.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from scorediff.errors import UserError
from scorediff.models.blocks import check_common, check_positive, checkpointed
from scorediff.models.edm2_parts import (
    EDM2Block,
    MPConv,
    MPFourier,
    mp_cat,
    mp_silu,
    mp_sum,
    normalised,
)
from scorediff.models.embeddings import island
from scorediff.types import Array, Cond

__all__ = ["PARTITION", "EDM2UNet", "normalised"]

# Which axes of a mesh share a parameter's last axes: see `training.sharding`.
PARTITION: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(down|middle|up)\w*/(conv_in|condition|qkv)/kernel$", ("fsdp", "tensor")),
    (r"(down|middle|up)\w*/(conv_out|out)/kernel$", ("tensor", "fsdp")),
    (r"(shortcut|condition/noise|condition/label)/kernel$", ("fsdp", None)),
)


class MPCondition(nn.Module, kw_only=True):
    """Noise level [b] and class -> one vector a sample [b, width], float32, after its activation.

    A class is a one-hot vector times sqrt(num_classes); no class is the zero vector: label
    `num_classes`, or none given. A label beyond comes out as NaN.
    """

    features: int
    width: int
    num_classes: int | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, noise: Array, cond: Cond) -> Array:
        dtype = island(self.dtype)
        waves = MPFourier(features=self.features, dtype=self.dtype, name="fourier")(noise)
        c = MPConv(features=self.width, dtype=dtype, name="noise")(waves)
        if self.num_classes is not None:
            label = (cond or {}).get("label", jnp.full(noise.shape, self.num_classes, jnp.int32))
            known = (label >= 0) & (label <= self.num_classes)
            one_hot = jax.nn.one_hot(label, self.num_classes, dtype=dtype) * self.num_classes**0.5
            one_hot = jnp.where(known[:, None], one_hot, jnp.nan)
            c = mp_sum(c, MPConv(features=self.width, dtype=dtype, name="label")(one_hot), 0.5)
        return mp_silu(c)


class EDM2UNet(nn.Module, kw_only=True):
    """A network for images: (x [b, h, w, c], noise [b], cond) -> float32 [b, h, w, out_channels].

    x should have unit variance, and the noise level a spread of about 1: EDM's c_noise, log(sigma)
    / 4 (arXiv 2206.00364, table 1).

    channels:         width of the first level (XS 128, S 192, M 256, L 320, XL 384, XXL 448).
    multipliers:      width of each level over `channels`; every further level halves the image.
    blocks:           residual blocks a level going down (one more going up).
    attend:           whether each level's blocks attend, finest first. The middle does.
    head_width:       channels of an attention head; at least one head.
    dropout:          rate inside the residual blocks, active with `train` (stream "dropout").
    num_classes:      classes 0 .. n - 1 are cond["label"], n is the null class; None: no classes.
    logvar_features:  width of the head that tells how uncertain the loss is at a noise level, see
                      `logvar`; None: no head.
    out_channels:     None gives as many as x has.
    dtype:            what is computed in; parameters, statistics and the output are float32.
    remat:            what the backward pass recomputes, a block at a time: "none", "products"
                      (all but convolutions and matrix products), "full".
    attention_kernel: "auto", "plain", "xla" or "cudnn".

    A training step should pass its parameters through `normalised` after each update. Height and
    width must be divisible by 2^(levels - 1); anything else is a UserError.
    """

    channels: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attend: tuple[bool, ...] = (False, False, True, True)
    head_width: int = 64
    dropout: float = 0.0
    num_classes: int | None = None
    logvar_features: int | None = None
    out_channels: int | None = None
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_common(self)
        sizes = self.channels, self.blocks, self.head_width
        check_positive("EDM2UNet.channels, blocks and head_width", *sizes)
        check_positive("EDM2UNet.multipliers", len(self.multipliers), *self.multipliers)
        if self.logvar_features is not None:
            check_positive("EDM2UNet.logvar_features", self.logvar_features)
        if len(self.attend) != len(self.multipliers):
            raise UserError(
                f"EDM2UNet.attend needs {len(self.multipliers)} values, one a level, "
                f"got {self.attend}"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"EDM2UNet.dropout must be in [0, 1), got {self.dropout}")
        super().__post_init__()

    def setup(self):
        if self.logvar_features is not None:
            dtype = island(self.dtype)
            self.logvar_fourier = MPFourier(features=self.logvar_features, dtype=dtype)
            self.logvar_out = MPConv(features=1, dtype=dtype)

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond = None, *, train: bool = False) -> Array:
        self.check_size(x.shape)
        if self.is_initializing() and self.logvar_features is not None:
            self.logvar(noise)  # so that its parameters are there
        condition = MPCondition(
            features=self.channels,
            width=self.channels * max(self.multipliers),
            num_classes=self.num_classes,
            dtype=self.dtype,
            name="condition",
        )
        c = condition(noise, cond).astype(self.dtype)
        h, skips = self.down(x.astype(self.dtype), c, train)
        h = self.block("middle_0", h.shape[-1], train, decoder=True, attend=True)(h, c)
        h = self.block("middle_1", h.shape[-1], train, decoder=True)(h, c)
        h = self.up(h, skips, c, train)
        dtype, channels = island(self.dtype), self.out_channels or x.shape[-1]
        gain = self.param("out_gain", nn.initializers.zeros_init(), ())
        conv = MPConv(features=channels, window=(3, 3), dtype=dtype, name="conv_out")
        return conv(h) * gain.astype(dtype)

    def logvar(self, noise: Array) -> Array:
        """Logarithm of the loss at each noise level, as learned beside the network: [b] -> [b].

        Trained on loss / exp(logvar) + logvar, it makes every noise level count alike (after
        Kendall et al., arXiv 1705.07115). Needs `logvar_features`.
        """
        if self.logvar_features is None:
            raise UserError("EDM2UNet.logvar_features is None: the network has no such head")
        return self.logvar_out(self.logvar_fourier(noise))[:, 0]

    @nn.nowrap
    def check_size(self, shape: tuple[int, ...]) -> None:
        """Refuse an image that the levels cannot halve."""
        if len(shape) != 4:
            raise UserError(f"an EDM2UNet takes images [b, h, w, c], not an array of shape {shape}")
        factor = 2 ** (len(self.multipliers) - 1)
        if shape[1] % factor or shape[2] % factor:
            raise UserError(
                f"an image of {shape[1]} x {shape[2]} cannot be halved for the "
                f"{len(self.multipliers)} levels of EDM2UNet.multipliers: make both sides "
                f"divisible by {factor}, or use fewer levels"
            )

    @nn.nowrap
    def down(self, x: Array, c: Array, train: bool) -> tuple[Array, list[Array]]:
        """The encoder: its last activation, and all of them in order for the decoder.

        The image gets a channel of ones, which does what biases would.
        """
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        first = MPConv(features=self.channels, window=(3, 3), dtype=self.dtype, name="conv_in")
        h = first(x)
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level:
                h = self.block(f"down{level}_halve", h.shape[-1], train, resample="down")(h, c)
                skips.append(h)
            for i in range(self.blocks):
                name, width = f"down{level}_{i}", self.channels * multiplier
                h = self.block(name, width, train, attend=self.attend[level])(h, c)
                skips.append(h)
        return h, skips

    @nn.nowrap
    def up(self, h: Array, skips: list[Array], c: Array, train: bool) -> Array:
        """The decoder: every block takes the youngest activation that the encoder still has."""
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.blocks + 1):
                name, width = f"up{level}_{i}", self.channels * multiplier
                block = self.block(name, width, train, decoder=True, attend=self.attend[level])
                h = block(mp_cat(h, skips.pop()), c)
            if level:
                name, width = f"up{level}_double", h.shape[-1]
                h = self.block(name, width, train, decoder=True, resample="up")(h, c)
        return h

    @nn.nowrap
    def block(
        self,
        name: str,
        width: int,
        train: bool,
        *,
        decoder: bool = False,
        attend: bool = False,
        resample: str = "none",
    ) -> nn.Module:
        """A block of `width` channels, (h, c) -> h."""
        return checkpointed(EDM2Block, self.remat)(
            features=width,
            decoder=decoder,
            heads=max(1, width // self.head_width) if attend else 0,
            resample=resample,
            dropout=self.dropout,
            dtype=self.dtype,
            kernel=self.attention_kernel,
            train=train,
            name=name,
        )
