"""The parts that networks share: convolutions, group normalisation, residual and attention blocks.

Parameters are float32 always; `dtype` is what is computed in. Normalisation takes its statistics in
float32, in two passes: the mean of squares less the squared mean loses every digit where the mean
is large beside the spread.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from scorediff.errors import UserError, check_choice
from scorediff.models.attention import KERNELS, SelfAttention
from scorediff.models.convolution import convolve
from scorediff.models.dense import Dense
from scorediff.models.hardware import on_cpu
from scorediff.models.resample import BOX, resample
from scorediff.types import Array

DTYPES = ("float32", "bfloat16", "float16", "float64")
REMAT = ("none", "products", "full")
UNROLLED = 12  # layers that a CPU does not loop over: see `stacked`
XAVIER = nn.initializers.xavier_uniform()
ZEROS = nn.initializers.zeros_init()
ACTIVATIONS = {
    "silu": nn.silu,
    "gelu": partial(nn.gelu, approximate=False),
    "relu": nn.relu,
    "mish": jax.nn.mish,
}


def check_positive(where: str, *values: int) -> None:
    """A UserError unless every value is at least 1."""
    if any(value < 1 for value in values):
        raise UserError(f"{where} must be at least 1, got {', '.join(map(str, values))}")


def check_computation(network: nn.Module) -> None:
    """The fields that say how a network computes."""
    name = type(network).__name__
    check_choice(f"{name}.dtype", network.dtype, DTYPES)
    check_choice(f"{name}.remat", network.remat, REMAT)
    check_choice(f"{name}.attention_kernel", network.attention_kernel, KERNELS)


def check_common(network: nn.Module) -> None:
    """The fields that every image network has."""
    check_computation(network)
    name = type(network).__name__
    for field in ("num_classes", "out_channels"):
        value = getattr(network, field)
        if value is not None:
            check_positive(f"{name}.{field}", value)


def keep_products(primitive, *args, **params) -> bool:
    """Checkpoint policy: keep the results of matrix products and convolutions, recompute the rest.

    Products with batch dimensions, which are attention's n x n logits, are recomputed too.
    """
    if primitive is lax.conv_general_dilated_p:
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)


def checkpointed(block: type[nn.Module], remat: str, *, scanned: bool = False) -> type[nn.Module]:
    """`block` with its activations recomputed in the backward pass, as `remat` says.

    "none" keeps all, "products" only what is dear to recompute, "full" only the block's input.
    """
    if remat == "none":
        return block
    policy = keep_products if remat == "products" else None
    return nn.remat(block, policy=policy, prevent_cse=not scanned)


def apart(block: type[nn.Module]) -> type[nn.Module]:
    """`block` whose result is computed once, and not anew inside whatever reads it.

    Over several CPU devices, XLA merges the sums of all residual branches so far into each of their
    readers, whose work then grows with the square of the depth (measured on the training step of a
    DiT of 6 layers, jax 0.12: up to 116 arrays in one such loop, and 21 with this).
    """

    class Apart(block):
        def __call__(self, x: Array, *others: Any) -> tuple[Array, Any]:
            x, stacked = super().__call__(x, *others)
            return lax.optimization_barrier(x), stacked

    return Apart


def stacked(
    block: type[nn.Module], depth: int, remat: str, *, in_axes: Any = nn.broadcast
) -> Callable[..., nn.Module]:
    """`depth` equal blocks as one module, compiled once, their parameters stacked on axis 0.

    A block is called (x, *others) -> (x, what is stacked of each). in_axes: of the others,
    broadcast where every block gets the same, 0 where each has its own.

    On a CPU a few layers are written out instead: a loop copies every activation that the backward
    pass needs into a stack and out of it again, which is a third of a step there (measured: DiT of
    6 layers).
    """
    loop = depth > UNROLLED or not on_cpu()
    return nn.scan(
        checkpointed(block if loop else apart(block), remat, scanned=loop),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=depth,
        unroll=1 if loop else depth,
    )


def group_count(channels: int) -> int:
    """The most groups up to 32 that divide the channels and hold at least 4 of them each.

    DDPM's 32 groups where the network is wide (128 channels or more).
    """
    limit = max(1, min(32, channels // 4))
    return max(n for n in range(1, limit + 1) if channels % n == 0)


def group_norm(
    channels: int, dtype, name: str, *, groups: int | None = None, epsilon: float = 1e-6
) -> nn.GroupNorm:
    """Group normalisation with DDPM's epsilon and, without `groups`, as many groups as fit."""
    groups = group_count(channels) if groups is None else groups
    if channels % groups:
        raise UserError(f"{groups} groups of a normalisation do not divide {channels} channels")
    return nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


def conv3(
    features: int,
    dtype,
    name: str,
    stride: int = 1,
    init=XAVIER,
    *,
    rank: int = 2,
    padding: str | int = "SAME",
    side: int = 3,
) -> nn.Conv:
    """Convolution with a window of 3 (or another `side`) in each of `rank` axes.

    With stride 2 and "SAME", even sizes are padded at bottom and right, as in DDPM; padding=1 pads
    both sides, as Stable Diffusion does.
    """
    window = (side,) * rank
    return nn.Conv(
        features,
        window,
        stride,
        padding=padding,
        dtype=dtype,
        kernel_init=init,
        conv_general_dilated=convolve,
        name=name,
    )


class ResBlock(nn.Module, kw_only=True):
    """Residual block: [b, *space, c] and c [b, d] -> [b, *space, features].

    (x + conv(dropout(act(norm(conv(act(norm x)) and the condition))))) / rescale

    The condition c comes after its activation. It is added before the second normalisation
    (DDPM, appendix B), or scales and shifts after it with `scale_shift` (iDDPM, arXiv 2102.09672,
    section 2.1 and appendix A); c = None is a block without condition. The last convolution starts
    at zero.

    groups, epsilon: of the normalisations; groups None as `group_count` says.
    resample:        "none", "up" or "down": both branches change size after the first activation.
    taps:            filter of the resampling.
    rescale:         divides the sum; sqrt(2) keeps its variance (NCSN++, arXiv 2011.13456, H.1).
    project:         a matrix on the branch of x even where the width stays.
    """

    features: int
    dropout: float = 0.0
    scale_shift: bool = False
    groups: int | None = None
    epsilon: float = 1e-6
    act: str = "silu"
    resample: str = "none"
    taps: tuple[int, ...] = BOX
    rescale: float = 1.0
    project: bool = False
    dtype: str = "float32"
    train: bool = False

    @nn.compact
    def __call__(self, x: Array, c: Array | None) -> Array:
        act = ACTIVATIONS[self.act]
        h = act(self.norm(x.shape[-1], "norm_in")(x))
        h, x = resample(h, self.resample, self.taps), resample(x, self.resample, self.taps)
        rank = x.ndim - 2
        h = self.conditioned(conv3(self.features, self.dtype, "conv_in", rank=rank)(h), c)
        h = nn.Dropout(self.dropout, deterministic=not self.train)(act(h))
        h = conv3(self.features, self.dtype, "conv_out", init=ZEROS, rank=rank)(h)
        if self.project or x.shape[-1] != self.features:
            x = Dense(self.features, dtype=self.dtype, kernel_init=XAVIER, name="shortcut")(x)
        return x + h if self.rescale == 1 else (x + h) / self.rescale

    @nn.nowrap
    def norm(self, channels: int, name: str) -> nn.GroupNorm:
        return group_norm(channels, self.dtype, name, groups=self.groups, epsilon=self.epsilon)

    @nn.nowrap
    def conditioned(self, h: Array, c: Array | None) -> Array:
        """The second normalisation and the condition, in the order that `scale_shift` asks for."""
        norm = self.norm(self.features, "norm_out")
        if c is None:
            return norm(h)
        width = 2 * self.features if self.scale_shift else self.features
        c = Dense(width, dtype=self.dtype, kernel_init=XAVIER, name="condition")(c)
        c = c.reshape(c.shape[0], *(1,) * (h.ndim - 2), width)
        if not self.scale_shift:
            return norm(h + c)
        scale, shift = jnp.split(c, 2, axis=-1)
        return norm(h) * (1 + scale) + shift


class AttentionBlock(nn.Module, kw_only=True):
    """(x + attention(norm x)) / rescale over the positions of [b, *space, c].

    Its last matrix starts at zero. head_width: of a head, None: the heads share out the channels.
    groups, epsilon: of the normalisation, which `normalise=False` leaves out.
    """

    heads: int
    head_width: int | None = None
    groups: int | None = None
    epsilon: float = 1e-6
    normalise: bool = True
    rescale: float = 1.0
    dtype: str = "float32"
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, c = x, x.shape[-1]
        if self.normalise:
            norm = group_norm(c, self.dtype, "norm", groups=self.groups, epsilon=self.epsilon)
            h = norm(x)
        attend = SelfAttention(
            heads=self.heads,
            head_width=self.head_width,
            dtype=self.dtype,
            kernel=self.kernel,
            out_init=ZEROS,
            name="attention",
        )
        h = attend(h.reshape(x.shape[0], -1, c)).reshape(x.shape)
        return x + h if self.rescale == 1 else (x + h) / self.rescale
