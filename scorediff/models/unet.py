"""The U-Net of DDPM (Ho et al., arXiv 2006.11239, appendix B), with the options of iDDPM.

An encoder of residual blocks halves the image level by level, a middle attends, and a decoder goes
back up; every activation that the encoder makes is concatenated to the decoder's input at the same
place. The output layer starts at zero, so a fresh network answers zero everywhere.
"""

import jax.numpy as jnp
from flax import linen as nn

from scorediff.errors import UserError
from scorediff.models.blocks import (
    ZEROS,
    AttentionBlock,
    ResBlock,
    check_common,
    check_positive,
    checkpointed,
    conv3,
    group_norm,
)
from scorediff.models.embeddings import Conditioning, island
from scorediff.models.resample import upsample
from scorediff.types import Array, Cond


class UNet(nn.Module, kw_only=True):
    """A network for images: (x [b, h, w, c], noise [b], cond) -> float32 [b, h, w, out_channels].

    channels:         width of the first level.
    multipliers:      width of each level over `channels`; every further level halves the image.
    blocks:           residual blocks a level going down (one more going up).
    attention:        heights of the feature maps that get attention, e.g. (16,); the middle always
                      does. A height that no level has is refused.
    heads:            attention heads.
    dropout:          rate inside the residual blocks, active with `train` (stream "dropout").
    num_classes:      classes 0 .. n - 1 are cond["label"], n is the null class; None: no classes.
    scale_shift:      the condition scales and shifts (iDDPM) instead of being added (DDPM).
    out_channels:     None gives as many as x has.
    dtype:            what is computed in; parameters, statistics and the output are float32.
    remat:            what the backward pass recomputes, a block at a time: "none", "products"
                      (all but convolutions and matrix products), "full".
    attention_kernel: "auto", "xla" or "cudnn".

    Height and width must be divisible by 2^(levels - 1); anything else is a UserError.
    """

    channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    heads: int = 1
    dropout: float = 0.0
    num_classes: int | None = None
    scale_shift: bool = False
    out_channels: int | None = None
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_common(self)
        check_positive("UNet.channels, blocks and heads", self.channels, self.blocks, self.heads)
        check_positive("UNet.multipliers", len(self.multipliers), *self.multipliers)
        if self.channels % 2:
            raise UserError(f"UNet.channels must be even, got {self.channels}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"UNet.dropout must be in [0, 1), got {self.dropout}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond = None, *, train: bool = False) -> Array:
        self.check_size(x.shape)
        condition = Conditioning(
            features=self.channels,
            width=4 * self.channels,
            num_classes=self.num_classes,
            dtype=self.dtype,
            name="condition",
        )
        c = nn.silu(condition(noise, cond))
        h, skips = self.down(x.astype(self.dtype), c, train)
        h = self.stage(h, c, train, "middle_0", h.shape[-1], attend=True)
        h = self.stage(h, c, train, "middle_1", h.shape[-1], attend=False)
        h = self.up(h, skips, c, train).astype(island(self.dtype))
        h = nn.silu(group_norm(h.shape[-1], h.dtype, "norm_out")(h))
        return conv3(self.out_channels or x.shape[-1], h.dtype, "conv_out", init=ZEROS)(h)

    @nn.nowrap
    def check_size(self, shape: tuple[int, ...]) -> None:
        """Refuse an image that the levels cannot halve, and attention at a size it never has."""
        if len(shape) != 4:
            raise UserError(f"a U-Net takes images [b, h, w, c], got an array of shape {shape}")
        factor = 2 ** (len(self.multipliers) - 1)
        if shape[1] % factor or shape[2] % factor:
            raise UserError(
                f"an image of {shape[1]} x {shape[2]} cannot be halved for the "
                f"{len(self.multipliers)} levels of UNet.multipliers: make both sides divisible by "
                f"{factor}, or use fewer levels"
            )
        heights = [shape[1] >> level for level in range(len(self.multipliers))]
        unmet = [height for height in self.attention if height not in heights]
        if unmet:
            raise UserError(
                f"UNet.attention asks for heights {unmet}, but an image of {shape[1]} x {shape[2]} "
                f"has the levels {heights}"
            )

    @nn.nowrap
    def down(self, x: Array, c: Array, train: bool) -> tuple[Array, list[Array]]:
        """The encoder: its last activation, and all of them in order for the decoder."""
        h = conv3(self.channels, self.dtype, "conv_in")(x)
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level:
                h = conv3(h.shape[-1], self.dtype, f"down{level}_halve", stride=2)(h)
                skips.append(h)
            for i in range(self.blocks):
                h = self.stage(h, c, train, f"down{level}_{i}", self.channels * multiplier)
                skips.append(h)
        return h, skips

    @nn.nowrap
    def up(self, h: Array, skips: list[Array], c: Array, train: bool) -> Array:
        """The decoder: every block takes the youngest activation that the encoder still has."""
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self.stage(h, c, train, f"up{level}_{i}", self.channels * multiplier)
            if level:
                h = conv3(h.shape[-1], self.dtype, f"up{level}_double")(upsample(h))
        return h

    @nn.nowrap
    def stage(
        self, h: Array, c: Array, train: bool, name: str, width: int, attend: bool | None = None
    ) -> Array:
        """A residual block of `width` channels, and attention where the map's height has it."""
        block = checkpointed(ResBlock, self.remat)(
            features=width,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            dtype=self.dtype,
            train=train,
            name=f"{name}_residual",
        )
        h = block(h, c)
        if not (h.shape[1] in self.attention if attend is None else attend):
            return h
        attention = checkpointed(AttentionBlock, self.remat)(
            heads=self.heads,
            dtype=self.dtype,
            kernel=self.attention_kernel,
            name=f"{name}_attention",
        )
        return attention(h)
