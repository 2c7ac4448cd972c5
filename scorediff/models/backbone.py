"""A modern transformer for research on data of any rank: signals, images, video, voxels, points.

A DiT (arXiv 2212.09748) with what later language and image models agree on: RMSNorm (Zhang &
Sennrich, arXiv 1910.07467), SwiGLU (Shazeer, arXiv 2002.05202), rotary positions along every axis,
normalised queries and keys (Dehghani et al., arXiv 2302.05442), no biases within the layers. Data
are cut into patches that stay in their grid, [b, *grid, width], and each attention mixes the axes
that it is told to: all of them, or space and then time (factorised; Bertasius et al., arXiv
2102.05095, section 3). Without positions and with patches of one point it maps sets: permuting the
points permutes the answer.
"""

import math
from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from scorediff.errors import UserError, check_choice
from scorediff.models.attention import (
    CrossAttention,
    attend,
    head_norm,
    here,
    mask_bias,
    split_heads,
)
from scorediff.models.blocks import XAVIER, ZEROS, check_common, check_positive, stacked
from scorediff.models.dense import Dense
from scorediff.models.embeddings import MAX_PERIOD, Conditioning, island
from scorediff.models.patching import patch_sides, patchify, unpatchify
from scorediff.models.rope import axial_angles, rotate
from scorediff.types import Array, Cond

NOISE_FEATURES = 256
POSITIONS = ("rope", "none")
MODULATIONS = ("layer", "shared")
PARTITION = (
    (r"/(qkv|q|kv|mlp_in|noise_in)/kernel$", ("fsdp", "tensor")),
    (r"/(out|mlp_out|noise_out)/kernel$", ("tensor", "fsdp")),
    (r"modulation(_out)?/kernel$", ("fsdp", "tensor")),
    (r"^patch_in/kernel$", (None, "fsdp")),
    (r"^patch_out/kernel$", ("fsdp", None)),
    (r"label/embedding$", (None, "fsdp")),
)


def rms_norm(x: Array, name: str, dtype) -> Array:
    """RMS normalisation over channels without parameters; the condition supplies the scale."""
    norm = nn.RMSNorm(
        epsilon=1e-6, use_scale=False, use_fast_variance=False, dtype=dtype, name=name
    )
    return norm(x)


class AxialAttention(nn.Module, kw_only=True):
    """Self-attention among the tokens that differ only along `axes` of the grid.

    [b, *grid, d] -> the same shape. axes: of the grid, 0 the first. rope: whether queries and keys
    are turned by their positions along these axes; period: of the slowest turn, over 2 pi.
    """

    heads: int
    axes: tuple[int, ...]
    rope: bool = True
    period: float = MAX_PERIOD
    normalise: bool = True
    dtype: str = "float32"
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        d = x.shape[-1]
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype, kernel_init=XAVIER)
        order = self.order(x.ndim)
        ordered = x.transpose(order)
        grid = ordered.shape[-1 - len(self.axes) : -1]
        tokens = ordered.reshape(-1, math.prod(grid), d)
        q, k, v = split_heads(dense(3 * d, name="qkv")(tokens), 3, self.heads)
        if self.normalise:
            q, k = head_norm("norm_q", self.dtype)(q), head_norm("norm_k", self.dtype)(k)
        if self.rope:
            angles = axial_angles(grid, d // self.heads, period=self.period)
            q, k = rotate(q, angles), rotate(k, angles)
        h = attend(q, k, v, here(self.kernel, d // self.heads, self.dtype))
        h = dense(d, name="out")(h.reshape(tokens.shape)).reshape(ordered.shape)
        return h.transpose([order.index(axis) for axis in range(x.ndim)])

    @nn.nowrap
    def order(self, ndim: int) -> tuple[int, ...]:
        """The axes of [b, *grid, d] with those that are mixed last but the channels."""
        mixed = [axis + 1 for axis in self.axes]
        rest = [axis for axis in range(1, ndim - 1) if axis not in mixed]
        return (0, *rest, *mixed, ndim - 1)


class BackboneBlock(nn.Module, kw_only=True):
    """Attention along each group of axes, attention to the text, SwiGLU; each x + gate branch(x).

    (x [b, *grid, d], c, text [b, m, e] or None, its mask [b, m] or None) -> (x, None), the shape of
    a scan's body. c is the condition [b, d] after its activation, or with `shared` the modulation
    that all layers have in common, [b, 3 branches d], to which each adds vectors of its own
    (adaLN-single; PixArt-alpha, arXiv 2310.00426, section 2.3).
    """

    heads: int
    axes: tuple[tuple[int, ...], ...]
    hidden: int
    shared: bool = False
    rope: bool = True
    period: float = MAX_PERIOD
    qk_norm: bool = True
    dtype: str = "float32"
    kernel: str = "auto"

    @nn.compact
    def __call__(
        self, x: Array, c: Array, text: Array | None, mask: Array | None
    ) -> tuple[Array, None]:
        branches = [*map(self.attention, range(len(self.axes)))]
        if text is not None:
            branches.append(partial(self.cross(), context=text, bias=mask_bias(mask, self.dtype)))
        branches.append(self.swiglu)
        modulation = jnp.split(
            self.modulation(c, 3 * len(branches) * x.shape[-1]), len(branches), -1
        )
        for i, (branch, triple) in enumerate(zip(branches, modulation, strict=True)):
            shift, scale, gate = jnp.split(triple, 3, axis=-1)
            h = rms_norm(x, f"norm_{i}", self.dtype) * (1 + over(scale, x)) + over(shift, x)
            x = x + over(gate, x) * branch(h)
        return x, None

    @nn.nowrap
    def modulation(self, c: Array, width: int) -> Array:
        """Shift, scale and gate of every branch, side by side [b, width]."""
        if self.shared:
            return (c + self.param("own_modulation", ZEROS, (width,))).astype(self.dtype)
        return Dense(width, dtype=self.dtype, kernel_init=ZEROS, name="modulation")(c)

    @nn.nowrap
    def attention(self, i: int) -> nn.Module:
        return AxialAttention(
            heads=self.heads,
            axes=self.axes[i],
            rope=self.rope,
            period=self.period,
            normalise=self.qk_norm,
            dtype=self.dtype,
            kernel=self.kernel,
            name=f"attention_{i}",
        )

    @nn.nowrap
    def cross(self):
        """Attention to the text for tokens in a grid."""
        attention = CrossAttention(
            heads=self.heads, qkv_bias=False, dtype=self.dtype, kernel=self.kernel, name="text"
        )

        def branch(h: Array, *, context: Array, bias: Array | None) -> Array:
            tokens = h.reshape(h.shape[0], -1, h.shape[-1])
            return attention(tokens, context, bias).reshape(h.shape)

        return branch

    @nn.nowrap
    def swiglu(self, h: Array) -> Array:
        """W3 (silu(W1 h) W2 h), with W1 and W2 in one matrix."""
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype, kernel_init=XAVIER)
        gate, value = jnp.split(dense(2 * self.hidden, name="mlp_in")(h), 2, axis=-1)
        return dense(h.shape[-1], name="mlp_out")(nn.silu(gate) * value)


def over(vector: Array, x: Array) -> Array:
    """One vector a sample [b, d], shaped to act on x [b, *grid, d]."""
    return vector.reshape(vector.shape[0], *(1,) * (x.ndim - 2), vector.shape[-1])


class Backbone(nn.Module, kw_only=True):
    """(x [b, *space, c], noise [b], cond) -> float32 [b, *space, out_channels], space of any rank.

    patch_size:       sides of a patch: one number for all axes, or one for each. 1 for points.
    width, depth:     channels of a token; layers, with parameters stacked on axis 0 and scanned.
    heads:            attention heads.
    mlp_ratio:        hidden width of SwiGLU over `width`; 8/3 costs as much as a plain MLP's 4.
    axes:             the axes of space that each attention of a layer mixes, one attention a group:
                      None is one over all; ((1, 2), (0,)) is space, then time, for video
                      [b, t, h, w, c]; ((0,), (1,), (2,)) is each axis by itself.
    positions:        "rope", or "none" for sets: the answer then moves with a permutation of x.
    period:           of the slowest rotation (over 2 pi), in tokens.
    qk_norm:          RMS normalisation of queries and keys in self-attention.
    modulation:       "layer": a matrix in every layer from the condition to shifts, scales and
                      gates; "shared": one for all, and vectors of each layer's own (adaLN-single).
    num_classes:      classes 0 .. n - 1 are cond["label"], n is the null class; None: no classes.
    text:             layers look at cond["text"] [b, m, e], where cond["text_mask"] [b, m] (which
                      may be absent) is 1.
    out_channels:     None gives as many as x has.
    dtype:            what is computed in; parameters, statistics and the output are float32.
    remat:            what the backward pass recomputes, a layer at a time: "none", "products"
                      (all but matrix products), "full".
    attention_kernel: "auto", "plain", "xla" or "cudnn".

    `train` changes nothing: there is no dropout.
    """

    patch_size: int | tuple[int, ...] = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 8 / 3
    axes: tuple[tuple[int, ...], ...] | None = None
    positions: str = "rope"
    period: float = MAX_PERIOD
    qk_norm: bool = True
    modulation: str = "layer"
    num_classes: int | None = None
    text: bool = False
    out_channels: int | None = None
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_common(self)
        sides = (self.patch_size,) if isinstance(self.patch_size, int) else self.patch_size
        check_positive("Backbone.patch_size, depth and heads", *sides, self.depth, self.heads)
        check_choice("Backbone.positions", self.positions, POSITIONS)
        check_choice("Backbone.modulation", self.modulation, MODULATIONS)
        if self.width < 1 or self.width % self.heads:
            raise UserError(f"Backbone.heads={self.heads} must divide width={self.width}")
        if round(self.mlp_ratio * self.width) < 1 or self.period <= 1:
            raise UserError(
                f"Backbone.mlp_ratio must be positive and period above 1, got {self.mlp_ratio} and "
                f"{self.period}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond = None, *, train: bool = False) -> Array:
        if x.ndim < 3:
            raise UserError(f"a Backbone takes [b, *space, c], got an array of shape {x.shape}")
        sides = patch_sides(self.patch_size, x.shape[1:-1])
        condition = Conditioning(
            features=NOISE_FEATURES,
            width=self.width,
            num_classes=self.num_classes,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.02),
            label_init=nn.initializers.normal(0.02),
            name="condition",
        )
        c = nn.silu(condition(noise, cond))
        patches = patchify(x.astype(self.dtype), sides)
        dense = Dense(self.width, dtype=self.dtype, kernel_init=XAVIER, name="patch_in")
        tokens = self.layers(dense(patches), c, *self.context(cond))
        features = math.prod(sides) * (self.out_channels or x.shape[-1])
        return unpatchify(self.read_out(tokens, c, features), sides)

    @nn.nowrap
    def context(self, cond: Cond) -> tuple[Array | None, Array | None]:
        """The text [b, m, e], normalised, and its mask [b, m]; None where there is none."""
        if not self.text:
            return None, None
        if cond is None or "text" not in cond:
            raise UserError('Backbone with text=True needs cond["text"], embeddings [b, m, e]')
        norm = nn.RMSNorm(use_fast_variance=False, dtype=self.dtype, name="norm_text")
        return norm(cond["text"]), cond.get("text_mask")

    @nn.nowrap
    def groups(self, rank: int) -> tuple[tuple[int, ...], ...]:
        """The axes that each attention of a layer mixes, checked against the data's rank."""
        if self.axes is None:
            return (tuple(range(rank)),)
        named = sorted(axis for group in self.axes for axis in group)
        if not all(self.axes) or named != list(range(rank)):
            raise UserError(
                f"Backbone.axes={self.axes} must name each of the {rank} axes of space once, 0 to "
                f"{rank - 1}, in groups"
            )
        return self.axes

    @nn.nowrap
    def layers(self, tokens: Array, c: Array, text: Array | None, mask: Array | None) -> Array:
        """All layers, their parameters stacked on axis 0: [b, *grid, width] -> the same shape."""
        axes = self.groups(tokens.ndim - 2)
        if self.modulation == "shared":
            branches = len(axes) + (text is not None) + 1
            c = self.steer(3 * branches, "modulation", c)
        scanned = stacked(BackboneBlock, self.depth, self.remat)
        block = scanned(
            heads=self.heads,
            axes=axes,
            hidden=round(self.mlp_ratio * self.width),
            shared=self.modulation == "shared",
            rope=self.positions == "rope",
            period=self.period,
            qk_norm=self.qk_norm,
            dtype=self.dtype,
            kernel=self.attention_kernel,
            name="layers",
        )
        return block(tokens, c, text, mask)[0]

    @nn.nowrap
    def steer(self, vectors: int, name: str, c: Array) -> Array:
        """`vectors` vectors of the tokens' width, linear in the condition and zero at the start."""
        dense = Dense(vectors * self.width, dtype=island(self.dtype), kernel_init=ZEROS, name=name)
        return dense(c)

    @nn.nowrap
    def read_out(self, tokens: Array, c: Array, features: int) -> Array:
        """Modulated tokens through one matrix to patches of so many values, in float32."""
        dtype = island(self.dtype)
        shift, scale = jnp.split(self.steer(2, "modulation_out", c), 2, axis=-1)
        h = rms_norm(tokens, "norm_out", dtype) * (1 + over(scale, tokens)) + over(shift, tokens)
        return Dense(features, dtype=dtype, kernel_init=ZEROS, name="patch_out")(h)
