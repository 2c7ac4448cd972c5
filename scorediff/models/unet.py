"""The U-Net of DDPM (Ho et al., arXiv 2006.11239, appendix B), of iDDPM and of ADM.

An encoder of residual blocks halves the image level by level, a middle attends, and a decoder goes
back up; every activation that the encoder makes is concatenated to the decoder's input at the same
place. The output layer starts at zero, so a fresh network answers zero everywhere.

iDDPM (arXiv 2102.09672) lets the condition scale and shift, ADM (arXiv 2105.05233, section 3) gives
every level attention heads of one width and halves and doubles the image inside residual blocks.
All of it works along any number of axes: signals, images, and video or volumes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from scorediff.errors import UserError, check_choice
from scorediff.models.blocks import (
    ACTIVATIONS,
    ZEROS,
    AttentionBlock,
    ResBlock,
    check_common,
    check_positive,
    checkpointed,
    conv3,
    group_norm,
)
from scorediff.models.embeddings import LABEL_KINDS, NULL_CLASSES, Conditioning, island
from scorediff.models.resample import downsample, upsample
from scorediff.types import Array, Cond

STEPS = ("conv", "block", "pool")
MIDDLES = ("attention", "blocks", "none")
PADDINGS = {"end": "SAME", "both": 1}  # of an even size: what a stride of 2 pads

# Which axes of a mesh share a parameter's last axes: see `training.sharding`.
PARTITION: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(residual|halve|double)/(conv_in|condition)/kernel$", ("fsdp", "tensor")),
    (r"(residual|halve|double)/conv_out/kernel$", ("tensor", "fsdp")),
    (r"qkv/kernel$", ("fsdp", "tensor")),
    (r"attention/out/kernel$", ("tensor", "fsdp")),
    (r"(halve|double|shortcut|noise_in|noise_out)/kernel$", ("fsdp", None)),
)


class Level(NamedTuple):
    """One level of the U-Net, worked out from its fields."""

    width: int  # channels of its blocks
    attend_down: bool  # whether attention follows its blocks in the encoder
    attend_up: bool  # and in the decoder
    halve: str  # how the encoder comes here from the level above
    double: str  # how the decoder goes from here to the level above


class UNet(nn.Module, kw_only=True):
    """A network for images: (x [b, h, w, c], noise [b], cond) -> float32 [b, h, w, out_channels].

    Signals [b, n, c] and video or volumes [b, t, h, w, c] go through the same code; "height" is
    then the first axis of space.

    Levels
    channels:         width of the first level.
    multipliers:      width of each level over `channels`; every further level halves the image.
    blocks:           residual blocks a level going down (one more going up).
    attention:        heights of the feature maps that get attention, e.g. (16,); the middle does
                      by itself. A height that no level has is refused.
    attend_down, attend_up: instead of heights, whether each level attends, in the encoder and in
                      the decoder; both or neither.
    heads:            attention heads.
    head_width:       instead, as many heads as fit of at least this width (ADM: 64).
    exact_heads:      they are of exactly this width: where it does not divide a level's channels,
                      queries, keys and values are narrower than the level.
    halve, double:    what leads from level to level, one for all or one a step, finest first:
                      "conv" (a strided convolution; doubling and a convolution), "block" (a
                      residual block that changes size, as in ADM) or "pool" (no parameters).
    halve_padding:    of a strided convolution: "end" pads bottom and right (DDPM), "both" all
                      sides (Stable Diffusion, ADM).
    middle:           "attention" (two residual blocks around it), "blocks" (without it) or "none".
    middle_groups:    groups of the middle attention's normalisation; None as elsewhere, 0 leaves
                      the normalisation out.
    middle_rescale:   divides the sums of the middle's residual branches.
    stem:             width of the first convolution; None: `channels`.

    Blocks
    dropout:          rate inside the residual blocks, active with `train` (stream "dropout").
    scale_shift:      the condition scales and shifts (iDDPM) instead of being added (DDPM).
    groups, epsilon:  of every normalisation; groups None: as `group_count` says.
    act:              activation inside the residual blocks and of the condition.

    Condition
    condition_width:  width of the condition; None: 4 `channels`.
    freq_shift, sin_first: of the noise level's sinusoid, see `embeddings.sinusoid`.
    fourier:          the noise level is sigma itself: random Fourier features of its logarithm, and
                      the output is divided by it (NCSN++, arXiv 2011.13456, appendix H.1).
    num_classes:      classes 0 .. n - 1 are cond["label"], n is the null class; None: no classes.
    null_class, label_kind: see `embeddings.Conditioning`.

    Image
    in_channels:      channels of x; None: as x comes.
    out_channels:     None gives as many as x has; twice as many where variances are learned too.
    centre_input:     x comes in [0, 1] and is made 2 x - 1.
    image_size:       sides that the network is meant for. It changes nothing; files name it.

    dtype:            what is computed in; parameters, statistics and the output are float32.
    remat:            what the backward pass recomputes, a block at a time: "none", "products"
                      (all but convolutions and matrix products), "full".
    attention_kernel: "auto", "plain", "xla" or "cudnn".

    Every side must be divisible by 2^(levels - 1); anything else is a UserError.
    """

    channels: int = 64
    multipliers: tuple[float, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    attend_down: tuple[bool, ...] | None = None
    attend_up: tuple[bool, ...] | None = None
    heads: int = 1
    head_width: int | None = None
    exact_heads: bool = False
    halve: str | tuple[str, ...] = "conv"
    double: str | tuple[str, ...] = "conv"
    halve_padding: str = "end"
    middle: str = "attention"
    middle_groups: int | None = None
    middle_rescale: float = 1.0
    stem: int | None = None
    dropout: float = 0.0
    scale_shift: bool = False
    groups: int | None = None
    epsilon: float = 1e-6
    act: str = "silu"
    condition_width: int | None = None
    freq_shift: float = 0.0
    sin_first: bool = False
    fourier: bool = False
    num_classes: int | None = None
    null_class: str = "learned"
    label_kind: str = "class"
    in_channels: int | None = None
    out_channels: int | None = None
    centre_input: bool = False
    image_size: int | tuple[int, ...] | None = None
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_common(self)
        check_positive("UNet.channels, blocks and heads", self.channels, self.blocks, self.heads)
        check_positive("UNet.multipliers", len(self.multipliers), *self.widths)
        for field in ("head_width", "stem", "groups", "condition_width", "in_channels"):
            check_positive(
                f"UNet.{field}", *filter(lambda n: n is not None, [getattr(self, field)])
            )
        if self.channels % 2:
            raise UserError(f"UNet.channels must be even, got {self.channels}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"UNet.dropout must be in [0, 1), got {self.dropout}")
        check_choice("UNet.halve_padding", self.halve_padding, PADDINGS)
        check_choice("UNet.middle", self.middle, MIDDLES)
        check_choice("UNet.act", self.act, ACTIVATIONS)
        check_choice("UNet.null_class", self.null_class, NULL_CLASSES)
        check_choice("UNet.label_kind", self.label_kind, LABEL_KINDS)
        for field in ("halve", "double"):
            for step in one_a_step(getattr(self, field), len(self.multipliers) - 1, field):
                check_choice(f"UNet.{field}", step, STEPS)
        self.check_attending()
        super().__post_init__()

    @nn.nowrap
    def check_attending(self) -> None:
        """Refuse an attention by level that is not one for each level on both sides."""
        sides = self.attend_down, self.attend_up
        counts = [None if side is None else len(side) for side in sides]
        if counts not in ([None, None], [len(self.multipliers)] * 2):
            raise UserError(
                f"UNet.attend_down and attend_up must both have {len(self.multipliers)} values, "
                f"one a level, or both be None; got {sides[0]} and {sides[1]}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        widths = tuple(round(self.channels * multiplier) for multiplier in self.multipliers)
        exact = [self.channels * multiplier for multiplier in self.multipliers]
        if any(abs(w - e) > 1e-6 * e for w, e in zip(widths, exact, strict=True)):
            raise UserError(f"UNet.multipliers give the levels {exact} channels, not whole numbers")
        return widths

    @nn.nowrap
    def levels(self, height: int) -> tuple[Level, ...]:
        """What each level is made of, for an image of this height."""
        count = len(self.multipliers)
        by_height = [height >> level in self.attention for level in range(count)]
        down, up = self.attend_down or by_height, self.attend_up or by_height
        halve = ("", *one_a_step(self.halve, count - 1, "halve"))
        double = ("", *one_a_step(self.double, count - 1, "double"))
        return tuple(map(Level, self.widths, down, up, halve, double))

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond = None, *, train: bool = False) -> Array:
        self.check_size(x.shape)
        levels = self.levels(x.shape[1])
        c = ACTIVATIONS[self.act](self.condition()(noise, cond))
        x = x.astype(self.dtype)
        h, skips = self.down(2 * x - 1 if self.centre_input else x, c, levels, train)
        h = self.across(h, c, train)
        y = self.decoded(h, skips, c, levels, train, self.out_channels or x.shape[-1])
        if self.fourier:
            y = y / noise.astype(y.dtype).reshape(-1, *(1,) * (y.ndim - 1))
        return y

    @nn.nowrap
    def check_size(self, shape: tuple[int, ...]) -> None:
        """Refuse an image that the levels cannot halve, and attention at a size it never has."""
        if not 3 <= len(shape) <= 5:
            raise UserError(
                f"a U-Net takes [b, n, c], [b, h, w, c] or [b, t, h, w, c], got an array of shape "
                f"{shape}"
            )
        if self.in_channels not in (None, shape[-1]):
            raise UserError(f"UNet.in_channels is {self.in_channels}, but x has {shape[-1]}")
        sides, factor = " x ".join(map(str, shape[1:-1])), 2 ** (len(self.multipliers) - 1)
        if any(side % factor for side in shape[1:-1]):
            raise UserError(
                f"an image of {sides} cannot be halved for the {len(self.multipliers)} levels of "
                f"UNet.multipliers: make every side divisible by {factor}, or use fewer levels"
            )
        heights = [shape[1] >> level for level in range(len(self.multipliers))]
        unmet = [height for height in self.attention if height not in heights]
        if unmet and self.attend_down is None:
            raise UserError(
                f"UNet.attention asks for heights {unmet}, but an image of {sides} has the levels "
                f"{heights}"
            )

    @nn.nowrap
    def condition(self) -> nn.Module:
        """(noise, cond) -> one vector a sample."""
        return Conditioning(
            features=self.channels,
            width=self.condition_width or 4 * self.channels,
            num_classes=self.num_classes,
            shift=self.freq_shift,
            sin_first=self.sin_first,
            fourier=self.fourier,
            null_class=self.null_class,
            label_kind=self.label_kind,
            dtype=self.dtype,
            name="condition",
        )

    @nn.nowrap
    def down(
        self, x: Array, c: Array, levels: Sequence[Level], train: bool
    ) -> tuple[Array, list[Array]]:
        """The encoder: its last activation, and all of them in order for the decoder."""
        h = conv3(self.stem or self.channels, self.dtype, "conv_in", rank=x.ndim - 2)(x)
        skips = [h]
        for i, level in enumerate(levels):
            if i:
                h = self.halved(h, c, level.halve, f"down{i}_halve", train)
                skips.append(h)
            for j in range(self.blocks):
                h = self.stage(h, c, train, f"down{i}_{j}", level.width, level.attend_down)
                skips.append(h)
        return h, skips

    @nn.nowrap
    def across(self, h: Array, c: Array, train: bool) -> Array:
        """The middle, at the coarsest level."""
        if self.middle == "none":
            return h
        width, rescale = h.shape[-1], self.middle_rescale
        h = self.residual("middle_0_residual", width, train, rescale=rescale)(h, c)
        if self.middle == "attention":
            groups = self.groups if self.middle_groups is None else self.middle_groups
            h = self.attend("middle_0_attention", width, groups=groups, rescale=rescale)(h)
        return self.residual("middle_1_residual", width, train, rescale=rescale)(h, c)

    @nn.nowrap
    def up(
        self, h: Array, skips: list[Array], c: Array, levels: Sequence[Level], train: bool
    ) -> Array:
        """The decoder: every block takes the youngest activation that the encoder still has."""
        for i, level in reversed(list(enumerate(levels))):
            for j in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self.stage(h, c, train, f"up{i}_{j}", level.width, level.attend_up)
            if i:
                h = self.doubled(h, c, level.double, f"up{i}_double", train)
        return h

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
        """The decoder, to an image of `channels`."""
        return self.image(self.up(h, skips, c, levels, train), "norm_out", "conv_out", channels)

    @nn.nowrap
    def image(
        self, h: Array, norm: str, conv: str, channels: int, *, groups: int | None = None
    ) -> Array:
        """An image of `channels` from features, in float32; it starts at zero."""
        h = h.astype(island(self.dtype))
        groups = groups or self.groups
        normal = group_norm(h.shape[-1], h.dtype, norm, groups=groups, epsilon=self.epsilon)(h)
        return conv3(channels, h.dtype, conv, init=ZEROS, rank=h.ndim - 2)(nn.silu(normal))

    @nn.nowrap
    def halved(self, h: Array, c: Array, step: str, name: str, train: bool) -> Array:
        """h at half its size."""
        if step == "pool":
            return downsample(h)
        if step == "block":
            return self.residual(name, h.shape[-1], train, resample="down")(h, c)
        padding = PADDINGS[self.halve_padding]
        return conv3(h.shape[-1], self.dtype, name, 2, rank=h.ndim - 2, padding=padding)(h)

    @nn.nowrap
    def doubled(self, h: Array, c: Array, step: str, name: str, train: bool) -> Array:
        """h at twice its size."""
        if step == "pool":
            return upsample(h)
        if step == "block":
            return self.residual(name, h.shape[-1], train, resample="up")(h, c)
        return conv3(h.shape[-1], self.dtype, name, rank=h.ndim - 2)(upsample(h))

    @nn.nowrap
    def stage(self, h: Array, c: Array, train: bool, name: str, width: int, attend: bool) -> Array:
        """A residual block of `width` channels, and attention where the level has it."""
        h = self.residual(f"{name}_residual", width, train)(h, c)
        return self.attend(f"{name}_attention", width, groups=self.groups)(h) if attend else h

    @nn.nowrap
    def residual(
        self, name: str, width: int, train: bool, *, resample: str = "none", rescale: float = 1.0
    ) -> nn.Module:
        """A residual block with the network's settings: (h, c) -> h."""
        return checkpointed(ResBlock, self.remat)(
            features=width,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            groups=self.groups,
            epsilon=self.epsilon,
            act=self.act,
            resample=resample,
            rescale=rescale,
            dtype=self.dtype,
            train=train,
            name=name,
        )

    @nn.nowrap
    def attend(
        self, name: str, width: int, *, groups: int | None, rescale: float = 1.0
    ) -> nn.Module:
        """Attention with the network's settings, without normalisation at 0 groups: h -> h."""
        return checkpointed(AttentionBlock, self.remat)(
            heads=self.heads_of(width),
            head_width=self.head_width if self.exact_heads else None,
            groups=groups,
            epsilon=self.epsilon,
            normalise=groups != 0,
            rescale=rescale,
            dtype=self.dtype,
            kernel=self.attention_kernel,
            name=name,
        )

    @nn.nowrap
    def heads_of(self, width: int) -> int:
        """Attention heads where a level has `width` channels."""
        return max(1, width // self.head_width) if self.head_width else self.heads


def one_a_step(value: str | Sequence[str], steps: int, field: str) -> tuple[str, ...]:
    """What leads from each level to the next, from one for all or one a step."""
    values = (value,) * steps if isinstance(value, str) else tuple(value)
    if len(values) != steps:
        raise UserError(
            f"UNet.{field} needs {steps} values, one a step between levels, got {values}"
        )
    return values
