"""A U-Net whose levels are each of one of two kinds: DDPM's and ADM's, or NCSN++'s.

NCSN++ (Song et al., arXiv 2011.13456, appendix H) changes size with a filter inside residual
blocks, divides sums by sqrt(2), attends only behind the last block of a level of the decoder, and
has two pyramids: the image itself, halved, enters every level of the encoder, and every level of
the decoder adds to the output image. diffusers calls such levels skip blocks and lets a U-Net have
them beside others. Two habits of its attending skip blocks are kept, on which checkpoints depend.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from scorediff.errors import UserError
from scorediff.models import unet
from scorediff.models.blocks import (
    XAVIER,
    AttentionBlock,
    ResBlock,
    checkpointed,
    conv3,
    group_count,
    group_norm,
)
from scorediff.models.dense import Dense
from scorediff.models.resample import downsample, upsample
from scorediff.models.unet import Level, UNet
from scorediff.types import Array

PARTITION = unet.PARTITION
SQRT2 = math.sqrt(2)
TAPS = (1, 3, 3, 1)  # of every change of size in a skip level
ATTENTION_GROUPS = 32  # of the normalisation before attention in a skip level


class SkipBlock(ResBlock, kw_only=True):
    """A residual block of a skip level, whose two normalisations need not have the same groups.

    groups_in: of the first; None: as many as fit.
    """

    groups_in: int | None = None
    rescale: float = SQRT2
    taps: tuple[int, ...] = TAPS

    @nn.nowrap
    def norm(self, channels: int, name: str) -> nn.GroupNorm:
        groups = self.groups_in if name == "norm_in" else None
        return group_norm(channels, self.dtype, name, groups=groups, epsilon=self.epsilon)


class MixedUNet(UNet, kw_only=True):
    """(x [b, h, w, c], noise [b], cond) -> float32 [b, h, w, out_channels], as `UNet`.

    The fields of `UNet`, and which levels, finest first, are skip levels:

    skip_down: in the encoder. A skip level needs those above it to be skip levels too, which bring
               the image to its size; only the last, which halves nothing, may stand alone.
    skip_up:   in the decoder. All levels finer than a skip level must be skip levels too, which
               take the output image on to its full size.

    attend_down and attend_up are needed. `groups` is of the other levels, of the middle and of the
    output; `halve` and `double` are not looked at where a skip level makes the step.
    """

    attention: tuple[int, ...] = ()
    skip_down: tuple[bool, ...] = (True, True, True)
    skip_up: tuple[bool, ...] = (True, True, True)
    attend_down: tuple[bool, ...] | None = (False, True, False)
    attend_up: tuple[bool, ...] | None = (False, True, False)

    def __post_init__(self):
        count = len(self.multipliers)
        for field in ("attend_down", "attend_up", "skip_down", "skip_up"):
            if len(getattr(self, field) or ()) != count:
                raise UserError(
                    f"MixedUNet.{field} needs {count} values, one a level, got "
                    f"{getattr(self, field)}"
                )
        for field, side in (("skip_down", self.skip_down[:-1]), ("skip_up", self.skip_up)):
            if list(side) != sorted(side, reverse=True):
                raise UserError(
                    f"MixedUNet.{field}: a skip level below another kind of level lacks the image "
                    f"that it adds to, got {getattr(self, field)}"
                )
        super().__post_init__()

    @nn.nowrap
    def down(
        self, x: Array, c: Array, levels: Sequence[Level], train: bool
    ) -> tuple[Array, list[Array]]:
        """The encoder: its last activation, and all of them in order for the decoder."""
        h = conv3(self.stem or self.channels, self.dtype, "conv_in", rank=x.ndim - 2)(x)
        skips, pyramid = [h], x
        for i, level in enumerate(levels):
            if i and self.skip_down[i - 1]:
                pyramid = downsample(pyramid, TAPS)
                h = self.fed(self.skip_block(f"down{i}_halve", h, train, "down")(h, c), pyramid, i)
            elif i:
                h = self.halved(h, c, level.halve, f"down{i}_halve", train)
            skips += [h] * (i > 0)
            for j in range(self.blocks):
                h = self.down_stage(h, c, train, f"down{i}_{j}", i, level)
                skips.append(h)
        return h, skips

    @nn.nowrap
    def down_stage(self, h: Array, c: Array, train: bool, name: str, i: int, level: Level) -> Array:
        """One residual block of level i, and its attention."""
        if not self.skip_down[i]:
            return self.stage(h, c, train, name, level.width, level.attend_down)
        h = self.skip_block(f"{name}_residual", h, train, width=level.width)(h, c)
        return self.skip_attend(f"{name}_attention", h) if level.attend_down else h

    @nn.nowrap
    def fed(self, h: Array, pyramid: Array, i: int) -> Array:
        """h with the halved image added, through a matrix."""
        name = f"down{i}_pyramid"
        return h + Dense(h.shape[-1], dtype=self.dtype, kernel_init=XAVIER, name=name)(pyramid)

    @nn.nowrap
    def decoded(
        self,
        h: Array,
        skips: list[Array],
        c: Array,
        levels: Sequence[Level],
        train: bool,
        channels: int,
    ) -> Array:
        """The decoder, to an image of `channels` that every skip level has added to."""
        pyramid = None
        for i, level in reversed(list(enumerate(levels))):
            for j in range(self.blocks + 1):
                h = self.up_stage(h, skips.pop(), c, train, f"up{i}_{j}", i, level)
            if self.skip_up[i] and level.attend_up:
                h = self.skip_attend(f"up{i}_attention", h)
            if i and self.skip_up[i]:
                pyramid = self.collected(h, pyramid, i, channels)
                h = self.skip_block(f"up{i}_double", h, train, "up")(h, c)
            elif i:
                h = self.doubled(h, c, level.double, f"up{i}_double", train)
        image = self.image(h, "norm_out", "conv_out", channels)
        return image if pyramid is None else image + upsample(pyramid, TAPS)

    @nn.nowrap
    def up_stage(
        self, h: Array, skip: Array, c: Array, train: bool, name: str, i: int, level: Level
    ) -> Array:
        """One residual block of level i on the encoder's activation, and, in a level that is no
        skip level, its attention."""
        both = jnp.concatenate([h, skip], axis=-1)
        if not self.skip_up[i]:
            return self.stage(both, c, train, name, level.width, level.attend_up)
        # the second habit: not the sum of both is divided by 4
        wide = min(ATTENTION_GROUPS, h.shape[-1] + skip.shape[-1] // 4)
        groups = wide if level.attend_up else None
        block = self.skip_block(
            f"{name}_residual", both, train, width=level.width, groups_in=groups
        )
        return block(both, c)

    @nn.nowrap
    def collected(self, h: Array, pyramid: Array | None, i: int, channels: int) -> Array:
        """The output image so far, at the size of level i, with this level's part added."""
        names = f"up{i}_pyramid_norm", f"up{i}_pyramid"
        part = self.image(h, *names, channels, groups=group_count(h.shape[-1]))
        return part if pyramid is None else upsample(pyramid, TAPS) + part

    @nn.nowrap
    def skip_block(
        self,
        name: str,
        h: Array,
        train: bool,
        resample: str = "none",
        *,
        width: int | None = None,
        groups_in: int | None = None,
    ) -> nn.Module:
        """A residual block of a skip level for h: (h, c) -> h; it keeps the channels by default."""
        return checkpointed(SkipBlock, self.remat)(
            features=width or h.shape[-1],
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            groups_in=groups_in,
            epsilon=self.epsilon,
            act=self.act,
            resample=resample,
            project=resample != "none",
            dtype=self.dtype,
            train=train,
            name=name,
        )

    @nn.nowrap
    def skip_attend(self, name: str, h: Array) -> Array:
        """Attention of a skip level; the first habit is its number of groups."""
        block = checkpointed(AttentionBlock, self.remat)(
            heads=self.heads_of(h.shape[-1]),
            head_width=self.head_width if self.exact_heads else None,
            groups=ATTENTION_GROUPS,
            epsilon=self.epsilon,
            rescale=SQRT2,
            dtype=self.dtype,
            kernel=self.attention_kernel,
            name=name,
        )
        return block(h)
