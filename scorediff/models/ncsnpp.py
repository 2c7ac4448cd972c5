"""The U-Nets DDPM++ and NCSN++ (Song et al., arXiv 2011.13456, appendix H), in one module.

A U-Net whose residual blocks also halve and double the image, whose every sum is divided by
sqrt(2), and beside which two pyramids may run: one brings the image itself, halved, into every
level of the encoder, and one collects an image from every level of the decoder. DDPM++ is the plain
one, with averaging and a positional embedding of the noise level; NCSN++ has the filter (1, 3, 3,
1), Fourier features, and the pyramids.
"""

import math

import jax.numpy as jnp
from flax import linen as nn

from scorediff.errors import UserError, check_choice
from scorediff.models.blocks import (
    ACTIVATIONS,
    XAVIER,
    ZEROS,
    AttentionBlock,
    ResBlock,
    check_common,
    check_positive,
    checkpointed,
    conv3,
    group_norm,
)
from scorediff.models.dense import Dense
from scorediff.models.embeddings import island
from scorediff.models.ncsnpp_parts import FilteredHalving, NoiseCondition
from scorediff.models.resample import BOX, downsample, upsample
from scorediff.types import Array, Cond

EMBEDDINGS = ("positional", "fourier", "log_fourier")
PYRAMIDS = ("none", "skip", "residual")
SQRT2 = math.sqrt(2)

# (pattern of the parameter's path, axes of the device mesh for its last axes)
PARTITION: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attention/qkv/kernel$", ("fsdp", "tensor")),
    (r"attention/out/kernel$", ("tensor", "fsdp")),
    (r"(residual|halve|double)/(conv_in|shortcut|condition)/kernel$", ("fsdp", "tensor")),
    (r"(residual|halve|double)/conv_out/kernel$", ("tensor", "fsdp")),
    (r"condition/noise_in/kernel$", ("fsdp", "tensor")),
    (r"condition/noise_out/kernel$", ("tensor", "fsdp")),
)


class NCSNpp(nn.Module, kw_only=True):
    """A network for images: (x [b, h, w, c], noise [b], cond) -> float32 [b, h, w, out_channels].

    channels:         width of the first level.
    multipliers:      width of each level over `channels`; every further level halves the image.
    blocks:           residual blocks a level going down (one more going up).
    attend_down:      whether each level, finest first, attends after every block of the encoder.
    attend_up:        and after the last block of the decoder; None: as in the encoder.
    head_width:       channels of an attention head; None: one head.
    dropout:          rate inside the residual blocks, active with `train` (stream "dropout").
    embedding:        of the noise level: "positional", "fourier" or "log_fourier".
    noise_features:   width of the embedding; None: channels, twice that for Fourier features.
    freq_shift, sin_first: of the positional embedding, see `embeddings.sinusoid`.
    condition_width:  of the conditioning vector; None: 4 channels.
    num_classes, class_table, augment: see `NoiseCondition`; labels are cond["label"], n is the
                      null class; cond["augment"] describes how an image was augmented (EDM).
    taps:             filter of every change of size: (1, 1) or (1, 3, 3, 1).
    progressive_in:   the encoder's pyramid: "none"; "skip", the image through a matrix is added;
                      "residual", each step of the pyramid goes on from the last sum.
    progressive_out:  the decoder's: "none"; "skip", each level adds to the output image;
                      "residual", features of each level, doubled, are added to the next.
    rescale:          divides the sum of each block, and of the residual pyramids.
    scale_shift:      the condition scales and shifts instead of being added.
    epsilon:          of every normalisation.
    act:              activation of the residual blocks and of the condition that they get.
    centre_input:     x is in [0, 1] and is taken to [-1, 1] first.
    divide_by_noise:  the output is divided by the noise level, which then is sigma.
    in_channels:      channels of x; None: as x comes.
    image_size:       side of the images trained on, for published names; nothing is computed by it.
    out_channels:     None gives as many as x has.
    dtype:            what is computed in; parameters, statistics and the output are float32.
    remat:            what the backward pass recomputes, a block at a time: "none", "products"
                      (all but convolutions and matrix products), "full".
    attention_kernel: "auto", "plain", "xla" or "cudnn".

    Height and width must be divisible by 2^(levels - 1); anything else is a UserError. The defaults
    are DDPM++ for CIFAR-10 as EDM trains it (arXiv 2206.00364, appendix F.1).
    """

    channels: int = 128
    multipliers: tuple[float, ...] = (2, 2, 2)
    blocks: int = 4
    attend_down: tuple[bool, ...] = (False, True, False)
    attend_up: tuple[bool, ...] | None = None
    head_width: int | None = None
    dropout: float = 0.0
    embedding: str = "positional"
    noise_features: int | None = None
    freq_shift: float = 1.0
    sin_first: bool = True
    condition_width: int | None = None
    num_classes: int | None = None
    class_table: bool = False
    augment: int | None = None
    taps: tuple[int, ...] = BOX
    progressive_in: str = "none"
    progressive_out: str = "none"
    rescale: float = SQRT2
    scale_shift: bool = False
    epsilon: float = 1e-6
    act: str = "silu"
    centre_input: bool = False
    divide_by_noise: bool = False
    in_channels: int | None = None
    image_size: int | None = None
    out_channels: int | None = None
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_common(self)
        check_choice("NCSNpp.act", self.act, ACTIVATIONS)
        check_choice("NCSNpp.embedding", self.embedding, EMBEDDINGS)
        check_choice("NCSNpp.progressive_in", self.progressive_in, PYRAMIDS)
        check_choice("NCSNpp.progressive_out", self.progressive_out, PYRAMIDS)
        check_positive("NCSNpp.channels and blocks", self.channels, self.blocks)
        check_positive("NCSNpp.multipliers", len(self.multipliers), *self.widths)
        for field in ("head_width", "noise_features", "condition_width", "augment"):
            if getattr(self, field) is not None:
                check_positive(f"NCSNpp.{field}", getattr(self, field))
        for sides in (self.attend_down, self.attends_up):
            if len(sides) != len(self.multipliers):
                raise UserError(
                    f"NCSNpp.attend_down and attend_up need {len(self.multipliers)} values, one a "
                    f"level, got {sides}"
                )
        if not 0 <= self.dropout < 1:
            raise UserError(f"NCSNpp.dropout must be in [0, 1), got {self.dropout}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond = None, *, train: bool = False) -> Array:
        self.check_size(x.shape)
        c = ACTIVATIONS[self.act](self.condition()(noise, cond))
        x = (2 * x - 1 if self.centre_input else x).astype(self.dtype)
        h, skips = self.down(x, c, train)
        h = self.centred(h, c, train)
        h = self.up(h, skips, c, train, self.out_channels or x.shape[-1])
        return h / noise[:, None, None, None].astype(h.dtype) if self.divide_by_noise else h

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(round(self.channels * multiplier) for multiplier in self.multipliers)

    @property
    def attends_up(self) -> tuple[bool, ...]:
        """Whether each level of the decoder attends."""
        return self.attend_down if self.attend_up is None else self.attend_up

    @property
    def noise_width(self) -> int:
        """Width of the noise level's embedding."""
        waves = 1 if self.embedding == "positional" else 2
        return self.noise_features or waves * self.channels

    @nn.nowrap
    def check_size(self, shape: tuple[int, ...]) -> None:
        """Refuse an image that the levels cannot halve."""
        if len(shape) != 4:
            raise UserError(f"an NCSNpp takes images [b, h, w, c], got an array of shape {shape}")
        if self.in_channels not in (None, shape[-1]):
            raise UserError(f"NCSNpp.in_channels is {self.in_channels}, but x has {shape[-1]}")
        factor = 2 ** (len(self.multipliers) - 1)
        if shape[1] % factor or shape[2] % factor:
            raise UserError(
                f"an image of {shape[1]} x {shape[2]} cannot be halved for the "
                f"{len(self.multipliers)} levels of NCSNpp.multipliers: make both sides divisible "
                f"by {factor}, or use fewer levels"
            )

    @nn.nowrap
    def condition(self) -> NoiseCondition:
        """Noise level, class and augmentation as one vector a sample."""
        return NoiseCondition(
            embedding=self.embedding,
            features=self.noise_width,
            width=self.condition_width or 4 * self.channels,
            shift=self.freq_shift,
            sin_first=self.sin_first,
            num_classes=self.num_classes,
            class_table=self.class_table,
            augment=self.augment,
            dtype=self.dtype,
            name="condition",
        )

    @nn.nowrap
    def down(self, x: Array, c: Array, train: bool) -> tuple[Array, list[Array]]:
        """The encoder: its last activation, and all of them in order for the decoder."""
        h, pyramid = conv3(self.channels, self.dtype, "conv_in")(x), x
        skips = [h]
        for level, width in enumerate(self.widths):
            if level:
                h = self.residual(f"down{level}_halve", h.shape[-1], train, resample="down")(h, c)
                h, pyramid = self.fed(h, pyramid, level)
                skips.append(h)
            for i in range(self.blocks):
                name = f"down{level}_{i}"
                h = self.residual(f"{name}_residual", width, train)(h, c)
                if self.attend_down[level]:
                    h = self.attend(f"{name}_attention", h)
                skips.append(h)
        return h, skips

    @nn.nowrap
    def fed(self, h: Array, pyramid: Array, level: int) -> tuple[Array, Array]:
        """h with the encoder's pyramid added, and the pyramid's next step."""
        name, width = f"down{level}_pyramid", h.shape[-1]
        if self.progressive_in == "skip":
            pyramid = downsample(pyramid, self.taps)
            dense = Dense(width, dtype=self.dtype, kernel_init=XAVIER, name=name)
            return h + dense(pyramid), pyramid
        if self.progressive_in == "residual":
            halve = FilteredHalving(features=width, taps=self.taps, dtype=self.dtype, name=name)
            h = (h + halve(pyramid)) / self.rescale
            return h, h
        return h, pyramid

    @nn.nowrap
    def centred(self, h: Array, c: Array, train: bool) -> Array:
        """The middle: a block, attention, a block."""
        width = h.shape[-1]
        h = self.residual("middle_0_residual", width, train)(h, c)
        h = self.attend("middle_0_attention", h)
        return self.residual("middle_1_residual", width, train)(h, c)

    @nn.nowrap
    def up(self, h: Array, skips: list[Array], c: Array, train: bool, channels: int) -> Array:
        """The decoder, to the image of `channels` that it ends in."""
        pyramid = None
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self.residual(f"up{level}_{i}_residual", width, train)(h, c)
            if self.attends_up[level]:
                h = self.attend(f"up{level}_attention", h)
            h, pyramid = self.collected(h, pyramid, level, channels)
            if level:
                h = self.residual(f"up{level}_double", h.shape[-1], train, resample="up")(h, c)
        if self.progressive_out == "skip":
            return pyramid
        return self.image(h, "norm_out", "conv_out", channels)

    @nn.nowrap
    def collected(
        self, h: Array, pyramid: Array | None, level: int, channels: int
    ) -> tuple[Array, Array | None]:
        """What goes on from a level of the decoder, and the decoder's pyramid."""
        name = f"up{level}_pyramid"
        if self.progressive_out == "skip":
            names = (f"{name}_norm", name) if level else ("norm_out", "conv_out")
            image = self.image(h, *names, channels)
            return h, image if pyramid is None else upsample(pyramid, self.taps) + image
        if self.progressive_out == "residual":
            conv = conv3(h.shape[-1], self.dtype, name)
            if pyramid is None:
                return h, conv(nn.silu(group_norm(h.shape[-1], self.dtype, f"{name}_norm")(h)))
            h = (h + conv(upsample(pyramid, self.taps))) / self.rescale
            return h, h
        return h, None

    @nn.nowrap
    def image(self, h: Array, norm: str, conv: str, channels: int) -> Array:
        """An image of `channels` from features, in float32; it starts at zero."""
        h = h.astype(island(self.dtype))
        h = group_norm(h.shape[-1], h.dtype, norm, epsilon=self.epsilon)(h)
        return conv3(channels, h.dtype, conv, init=ZEROS)(nn.silu(h))

    @nn.nowrap
    def residual(self, name: str, width: int, train: bool, *, resample: str = "none") -> nn.Module:
        """A residual block, (h, c) -> h of `width` channels."""
        return checkpointed(ResBlock, self.remat)(
            features=width,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            epsilon=self.epsilon,
            act=self.act,
            resample=resample,
            taps=self.taps,
            rescale=self.rescale,
            project=resample != "none",
            dtype=self.dtype,
            train=train,
            name=name,
        )

    @nn.nowrap
    def attend(self, name: str, h: Array) -> Array:
        """Attention over the positions of h."""
        width = h.shape[-1]
        if width % (self.head_width or width):
            raise UserError(
                f"NCSNpp.head_width={self.head_width} does not divide a width of {width}"
            )
        block = checkpointed(AttentionBlock, self.remat)(
            heads=width // (self.head_width or width),
            epsilon=self.epsilon,
            rescale=self.rescale,
            dtype=self.dtype,
            kernel=self.attention_kernel,
            name=name,
        )
        return block(h)
