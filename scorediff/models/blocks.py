"""The parts that networks share: convolutions, group normalisation, residual and attention blocks.

Parameters are float32 always; `dtype` is what is computed in. Normalisation takes its statistics in
float32, in two passes: the mean of squares less the squared mean loses every digit where the mean
is large beside the spread.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from scorediff.errors import UserError, check_choice
from scorediff.models.attention import KERNELS, SelfAttention
from scorediff.types import Array

DTYPES = ("float32", "bfloat16", "float16", "float64")
REMAT = ("none", "products", "full")
XAVIER = nn.initializers.xavier_uniform()
ZEROS = nn.initializers.zeros_init()


def check_positive(where: str, *values: int) -> None:
    """A UserError unless every value is at least 1."""
    if any(value < 1 for value in values):
        raise UserError(f"{where} must be at least 1, got {', '.join(map(str, values))}")


def check_common(network: nn.Module) -> None:
    """The fields that every network here has."""
    name = type(network).__name__
    check_choice(f"{name}.dtype", network.dtype, DTYPES)
    check_choice(f"{name}.remat", network.remat, REMAT)
    check_choice(f"{name}.attention_kernel", network.attention_kernel, KERNELS)
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


def group_count(channels: int) -> int:
    """The most groups up to 32 that divide the channels and hold at least 4 of them each.

    DDPM's 32 groups where the network is wide (128 channels or more).
    """
    limit = max(1, min(32, channels // 4))
    return max(n for n in range(1, limit + 1) if channels % n == 0)


def group_norm(channels: int, dtype, name: str) -> nn.GroupNorm:
    """Group normalisation with DDPM's epsilon and as many groups as fit."""
    groups = group_count(channels)
    return nn.GroupNorm(groups, epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


def conv3(features: int, dtype, name: str, stride: int = 1, init=XAVIER) -> nn.Conv:
    """3 x 3 convolution; with stride 2, even sizes are padded at bottom and right, as in DDPM."""
    return nn.Conv(features, (3, 3), stride, dtype=dtype, kernel_init=init, name=name)


def upsample(x: Array) -> Array:
    """Each pixel twice along height and width, [b, h, w, c] -> [b, 2h, 2w, c]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class ResBlock(nn.Module, kw_only=True):
    """Residual block: [b, h, w, c] and c [b, d] -> [b, h, w, features].

    x + conv(dropout(silu(norm(conv(silu(norm x)) and the condition))))

    The condition c comes after its activation. It is added before the second normalisation
    (DDPM, appendix B), or scales and shifts after it with `scale_shift` (iDDPM, arXiv 2102.09672,
    section 2.1 and appendix A). The last convolution starts at zero.
    """

    features: int
    dropout: float = 0.0
    scale_shift: bool = False
    dtype: str = "float32"
    train: bool = False

    @nn.compact
    def __call__(self, x: Array, c: Array) -> Array:
        h = nn.silu(group_norm(x.shape[-1], self.dtype, "norm_in")(x))
        h = self.conditioned(conv3(self.features, self.dtype, "conv_in")(h), c)
        h = nn.Dropout(self.dropout, deterministic=not self.train)(nn.silu(h))
        h = conv3(self.features, self.dtype, "conv_out", init=ZEROS)(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, kernel_init=XAVIER, name="shortcut")(x)
        return x + h

    @nn.nowrap
    def conditioned(self, h: Array, c: Array) -> Array:
        """The second normalisation and the condition, in the order that `scale_shift` asks for."""
        norm = group_norm(self.features, self.dtype, "norm_out")
        width = 2 * self.features if self.scale_shift else self.features
        c = nn.Dense(width, dtype=self.dtype, kernel_init=XAVIER, name="condition")(c)
        c = c[:, None, None, :]
        if not self.scale_shift:
            return norm(h + c)
        scale, shift = jnp.split(c, 2, axis=-1)
        return norm(h) * (1 + scale) + shift


class AttentionBlock(nn.Module, kw_only=True):
    """x + attention(norm x) over the pixels of [b, h, w, c]; its last matrix starts at zero."""

    heads: int
    dtype: str = "float32"
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        tokens = group_norm(c, self.dtype, "norm")(x).reshape(b, h * w, c)
        attend = SelfAttention(
            heads=self.heads, dtype=self.dtype, kernel=self.kernel, out_init=ZEROS, name="attention"
        )
        return x + attend(tokens).reshape(x.shape)
