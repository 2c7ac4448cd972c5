"""The text-conditional U-Net of Stable Diffusion 1.x, 2.x, XL (arXiv 2307.01952) and LCM.

DDPM's U-Net with three changes (Rombach et al., arXiv 2112.10752, section 3.3): a transformer that
reads the text stands behind the residual blocks, every level has its own width, depth and heads,
and more than the noise level can be told.
`Trunk` is what the U-Net shares with its side network, the ControlNet: all but the way up.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scorediff.errors import UserError, check_choice
from scorediff.models.attention import mask_bias
from scorediff.models.blocks import (
    ACTIVATIONS,
    XAVIER,
    ZEROS,
    ResBlock,
    check_computation,
    check_positive,
    checkpointed,
    conv3,
    group_norm,
)
from scorediff.models.embeddings import given, island, sinusoid
from scorediff.models.resample import upsample
from scorediff.models.text_transformer import TextTransformer
from scorediff.types import Array, Cond

MIDDLES = ("text", "block", "none")
PARTITION: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"residual/(conv_in|condition)/kernel$", ("fsdp", "tensor")),
    (r"residual/conv_out/kernel$", ("tensor", "fsdp")),
    (r"(self/qkv|cross/q|cross/kv|mlp_in)/kernel$", ("fsdp", "tensor")),
    (r"(self/out|cross/out|mlp_out)/kernel$", ("tensor", "fsdp")),
    (r"(matrix_in|matrix_out|halve|double|shortcut|noise_in|noise_out)/kernel$", ("fsdp", None)),
)


def nearest(x: Array, height: int, width: int) -> Array:
    """x [b, h, w, c] at another size: every place takes the value at floor(i h / height)."""
    _, h, w, _ = x.shape
    if (height, width) == (2 * h, 2 * w):
        return upsample(x)
    rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
    return x[:, rows][:, :, columns]


class TextConditioning(nn.Module, kw_only=True):
    """Everything that is one vector a sample -> their sum [b, width], at least float32.

    The noise level goes through a sinusoid, to which a matrix of cond["guidance"] is added (the
    guidance embedding of LCM, arXiv 2310.04378, section 4.1), and a perceptron; a class is a row of
    a table; the pooled text and the sinusoids of the sizes go side by side through a perceptron
    (SDXL, arXiv 2307.01952, section 2.2).
    """

    features: int
    width: int
    num_classes: int | None
    guidance_width: int | None
    added_width: int | None
    size_features: int
    sin_first: bool
    frequency_shift: float
    act: str
    dtype: str

    @nn.compact
    def __call__(self, noise: Array, cond: Cond) -> Array:
        dense = partial(nn.Dense, dtype=island(self.dtype), kernel_init=XAVIER)
        h = self.waves(noise, self.features)
        if self.guidance_width is not None:
            guidance = given(self, cond, "guidance")
            h = h + dense(self.features, use_bias=False, name="guidance")(guidance)
        h = ACTIVATIONS[self.act](dense(self.width, name="noise_in")(h))
        c = dense(self.width, name="noise_out")(h)
        if self.num_classes is not None:
            label = given(self, cond, "label")
            c = c + nn.Embed(self.num_classes, self.width, name="label")(label)
        if self.added_width is None:
            return c
        h = nn.silu(dense(self.width, name="added_in")(self.added(cond)))
        return c + dense(self.width, name="added_out")(h)

    @nn.nowrap
    def waves(self, position: Array, features: int) -> Array:
        return sinusoid(
            position,
            features,
            shift=self.frequency_shift,
            sin_first=self.sin_first,
            dtype=self.dtype,
        )

    @nn.nowrap
    def added(self, cond: Cond) -> Array:
        """The pooled text and the sinusoids of the sizes, [b, added_width]."""
        pooled, sizes = given(self, cond, "pooled"), given(self, cond, "sizes")
        waves = self.waves(sizes.reshape(-1), self.size_features).reshape(len(sizes), -1)
        width = pooled.shape[-1] + waves.shape[-1]
        if width != self.added_width:
            raise UserError(
                f'cond["pooled"] of width {pooled.shape[-1]} and {sizes.shape[-1]} numbers in '
                f'cond["sizes"], {self.size_features} features each, make {width} features; '
                f"the network was made for {self.added_width}"
            )
        return jnp.concatenate([pooled.astype(waves.dtype), waves], axis=-1)


class Trunk(nn.Module, kw_only=True):
    """The condition, the way down and the middle of a text-conditional U-Net.

    channels:          width of each level; every further level halves the image.
    blocks:            residual blocks of each level going down.
    depth:             layers of the transformer behind each residual block, by level; 0: none.
    middle:            "text" (a transformer between two residual blocks), "block" (one residual
                       block) or "none".
    middle_depth:      layers of the middle's transformer.
    heads:             attention heads of each level; the middle has the last level's.
    text_width:        channels of cond["text"] [b, n, text_width], which must be given;
                       cond["text_mask"] [b, n] (1 keep, 0 drop) may be.
    in_channels:       channels of x.
    condition_width:   of the condition; None: 4 channels[0].
    num_classes:       rows of a table of classes; cond["label"] [b] must then be given.
    guidance_width:    channels of cond["guidance"], which must then be given.
    added_width:       width of cond["pooled"] [b, d] and of the sinusoids of cond["sizes"] [b, k]
                       (SDXL: height and width of the original, top and left of the crop, height
                       and width of the target) together; both must then be given.
    size_features:     width of the sinusoid of one of the sizes.
    dropout:           rate inside the residual blocks, active with `train` (stream "dropout").
    scale_shift:       the condition scales and shifts instead of being added.
    groups, epsilon:   of the normalisations (the transformers' epsilon is their own).
    act:               activation of the residual blocks.
    sin_first, frequency_shift: of the sinusoids, see `embeddings.sinusoid`.
    halve_padding:     1 pads both sides where an image is halved, 0 bottom and right only.
    middle_rescale:    divides the sums of the middle's residual blocks.
    linear_projection: files keep the outer matrices of the transformers as matrices (SD 2, XL),
                       not as convolutions with a window of 1 (SD 1); it computes the same.
    dtype:             what is computed in; parameters, statistics and the output are float32.
    remat:             what the backward pass recomputes, a block at a time: "none", "products",
                       "full".
    attention_kernel:  "auto", "plain", "xla" or "cudnn".
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    depth: tuple[int, ...] = (1, 1, 1, 0)
    middle: str = "text"
    middle_depth: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    text_width: int = 768
    in_channels: int = 4
    condition_width: int | None = None
    num_classes: int | None = None
    guidance_width: int | None = None
    added_width: int | None = None
    size_features: int = 256
    dropout: float = 0.0
    scale_shift: bool = False
    groups: int = 32
    epsilon: float = 1e-5
    act: str = "silu"
    sin_first: bool = False
    frequency_shift: float = 0.0
    halve_padding: int = 1
    middle_rescale: float = 1.0
    linear_projection: bool = False
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        name = type(self).__name__
        check_computation(self)
        check_choice(f"{name}.act", self.act, ACTIVATIONS)
        check_choice(f"{name}.halve_padding", self.halve_padding, (0, 1))
        check_choice(f"{name}.middle", self.middle, MIDDLES)
        check_positive(f"{name}.channels", len(self.channels), *self.channels)
        check_positive(f"{name}.blocks", *self.blocks)
        check_positive(f"{name}.heads", *self.heads)
        check_positive(f"{name}.middle_depth", self.middle_depth)
        for field in ("num_classes", "guidance_width", "added_width", "condition_width"):
            check_positive(f"{name}.{field}", getattr(self, field) or 1)
        for field in ("blocks", "depth", "heads"):
            self.check_levels(field, getattr(self, field))
        if not 0 <= self.dropout < 1:
            raise UserError(f"{name}.dropout must be in [0, 1), got {self.dropout}")
        super().__post_init__()

    def check_levels(self, field: str, values: tuple[int, ...]) -> None:
        """UserError unless a field has one value a level, none below zero."""
        if len(values) != len(self.channels) or min(values) < 0:
            raise UserError(
                f"{type(self).__name__}.{field} must have one value for each of the "
                f"{len(self.channels)} levels, got {values}"
            )

    @nn.nowrap
    def check_size(self, x: Array) -> None:
        if x.ndim != 4 or x.shape[-1] != self.in_channels:
            raise UserError(
                f"{type(self).__name__} takes images [b, h, w, {self.in_channels}], got an array "
                f"of shape {x.shape}"
            )

    @nn.nowrap
    def told(self, noise: Array, cond: Cond) -> Array:
        """The condition after its activation, [b, condition_width]."""
        condition = TextConditioning(
            features=self.channels[0],
            width=self.condition_width or 4 * self.channels[0],
            num_classes=self.num_classes,
            guidance_width=self.guidance_width,
            added_width=self.added_width,
            size_features=self.size_features,
            sin_first=self.sin_first,
            frequency_shift=self.frequency_shift,
            act=self.act,
            dtype=self.dtype,
            name="condition",
        )
        return ACTIVATIONS[self.act](condition(noise, cond))

    @nn.nowrap
    def text(self, cond: Cond) -> tuple[Array, Array | None]:
        """What the transformers read: the text, and what its mask adds to their logits."""
        text = given(self, cond, "text").astype(self.dtype)
        if text.ndim != 3 or text.shape[-1] != self.text_width:
            raise UserError(
                f'cond["text"] must be [b, n, {self.text_width}], got an array of shape '
                f"{text.shape}"
            )
        return text, mask_bias(cond.get("text_mask"), self.dtype)

    @nn.nowrap
    def enter(self, x: Array) -> Array:
        return conv3(self.channels[0], self.dtype, "conv_in")(x.astype(self.dtype))

    @nn.nowrap
    def down(self, h: Array, c: Array, text: tuple, train: bool) -> tuple[Array, list[Array]]:
        """The encoder: its last activation, and all of them in order."""
        skips = [h]
        for level, width in enumerate(self.channels):
            if level:
                h = self.halve(h, f"down{level}_halve")
                skips.append(h)
            for i in range(self.blocks[level]):
                h = self.residual(h, c, train, f"down{level}_{i}_residual", width)
                h = self.read(h, text, f"down{level}_{i}_attention", level, self.depth[level])
                skips.append(h)
        return h, skips

    @nn.nowrap
    def across(self, h: Array, c: Array, text: tuple, train: bool) -> Array:
        """The middle, at the coarsest level."""
        if self.middle == "none":
            return h
        level, width, rescale = len(self.channels) - 1, h.shape[-1], self.middle_rescale
        h = self.residual(h, c, train, "middle_0_residual", width, rescale)
        if self.middle == "block":
            return h
        h = self.read(h, text, "middle_0_attention", level, self.middle_depth)
        return self.residual(h, c, train, "middle_1_residual", width, rescale)

    @nn.nowrap
    def halve(self, h: Array, name: str) -> Array:
        padding = 1 if self.halve_padding else ((0, 1), (0, 1))
        return conv3(h.shape[-1], self.dtype, name, stride=2, padding=padding)(h)

    @nn.nowrap
    def residual(
        self, h: Array, c: Array, train: bool, name: str, width: int, rescale: float = 1.0
    ) -> Array:
        block = checkpointed(ResBlock, self.remat)(
            features=width,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            groups=self.groups,
            epsilon=self.epsilon,
            act=self.act,
            rescale=rescale,
            dtype=self.dtype,
            train=train,
            name=name,
        )
        return block(h, c)

    @nn.nowrap
    def read(self, h: Array, text: tuple, name: str, level: int, depth: int) -> Array:
        """A transformer of `depth` layers, or nothing."""
        if not depth:
            return h
        transformer = TextTransformer(
            depth=depth,
            heads=self.heads[level],
            groups=self.groups,
            dtype=self.dtype,
            remat=self.remat,
            kernel=self.attention_kernel,
            name=name,
        )
        return transformer(h, *text)


class TextUNet(Trunk, kw_only=True):
    """(x [b, h, w, in_channels], noise [b], cond) -> float32 [b, h, w, out_channels].

    The fields of `Trunk`, and

    up_depth:     layers of the transformers on the way up, by level (the first level first); None:
                  as on the way down.
    out_channels: None gives as many as x has.
    side_in, side_out: odd sides of the windows of the first and the last convolution.
    centre_input: x comes in [0, 1] and is made 2 x - 1.

    cond["control"] = {"skips": one array for each activation of the encoder, "middle": array} is
    added to those activations and to the middle's (ControlNet, arXiv 2302.05543, section 3.2).
    Any height and width will do: a size that cannot be halved is rounded up going down, and the way
    up returns to it.
    """

    up_depth: tuple[int, ...] | None = None
    out_channels: int | None = None
    side_in: int = 3
    side_out: int = 3
    centre_input: bool = False

    def __post_init__(self):
        if self.side_in % 2 != 1 or self.side_out % 2 != 1:
            raise UserError(
                f"TextUNet.side_in and side_out must be odd, got {self.side_in}, {self.side_out}"
            )
        if self.up_depth is not None:
            self.check_levels("up_depth", self.up_depth)
        check_positive("TextUNet.out_channels", self.out_channels or 1)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond = None, *, train: bool = False) -> Array:
        self.check_size(x)
        c, text = self.told(noise, cond), self.text(cond)
        h, skips = self.down(self.enter(x), c, text, train)
        h = self.across(h, c, text, train)
        if "control" in cond:
            h, skips = self.controlled(h, skips, cond["control"])
        h = self.up(h, skips, c, text, train).astype(island(self.dtype))
        norm = group_norm(
            h.shape[-1], h.dtype, "norm_out", groups=self.groups, epsilon=self.epsilon
        )
        h = ACTIVATIONS[self.act](norm(h))
        channels = self.out_channels or x.shape[-1]
        return conv3(channels, h.dtype, "conv_out", init=ZEROS, side=self.side_out)(h)

    @nn.nowrap
    def enter(self, x: Array) -> Array:
        x = (2 * x - 1 if self.centre_input else x).astype(self.dtype)
        return conv3(self.channels[0], self.dtype, "conv_in", side=self.side_in)(x)

    @nn.nowrap
    def controlled(self, h: Array, skips: list[Array], control) -> tuple[Array, list[Array]]:
        """The middle and the encoder's activations with a ControlNet's residuals added."""
        ours = [s.shape for s in (*skips, h)]
        theirs = [s.shape for s in (*control["skips"], control["middle"])]
        if ours != theirs:
            raise UserError(
                f'cond["control"] has arrays of shapes {theirs}; this U-Net has activations of '
                f"shapes {ours}"
            )
        skips = [s + r.astype(s.dtype) for s, r in zip(skips, control["skips"], strict=True)]
        return h + control["middle"].astype(h.dtype), skips

    @nn.nowrap
    def up(self, h: Array, skips: list[Array], c: Array, text: tuple, train: bool) -> Array:
        """The decoder: every block takes the youngest activation that the encoder still has."""
        depths = self.depth if self.up_depth is None else self.up_depth
        for level, width in reversed(list(enumerate(self.channels))):
            for i in range(self.blocks[level] + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self.residual(h, c, train, f"up{level}_{i}_residual", width)
                h = self.read(h, text, f"up{level}_{i}_attention", level, depths[level])
            if level:
                _, height, breadth, _ = skips[-1].shape
                h = nearest(h, height, breadth)
                h = conv3(width, self.dtype, f"up{level}_double")(h)
        return h
