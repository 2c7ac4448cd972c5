"""Operations that keep magnitudes (Karras et al., arXiv 2312.02696, section 2 and appendix B).

Values of unit variance go in, values of about unit variance come out, whatever the weights have
grown to: every weight is used at unit norm, and sums, concatenations and activations are divided by
what they would add. So nothing needs a bias, a group, or a learned normalisation.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from scorediff.models.attention import attend, here, split_heads
from scorediff.models.embeddings import island
from scorediff.models.resample import resample
from scorediff.types import Array, Params

EPSILON = 1e-4
SILU_MAGNITUDE = 0.596  # root mean square of silu(z), z standard normal (appendix B, equation 81)
CLIP = 256.0  # of a block's output, far beyond what occurs but for a spike


def normalise(x: Array, axes: int | tuple[int, ...]) -> Array:
    """x over its root mean square along the axes, in float32 at least."""
    x = x.astype(island(x.dtype))
    return x / (EPSILON + jnp.sqrt((x**2).mean(axes, keepdims=True)))


def pixel_norm(x: Array) -> Array:
    """Every pixel's vector of channels at unit magnitude, in x's type."""
    return normalise(x, -1).astype(x.dtype)


def normalised(params: Params) -> Params:
    """Parameters with every kernel's columns, one an output, at unit magnitude.

    Forced weight normalisation: a training step applies it to the parameters after each update, so
    that their growth does not slow down their learning (equation 66 and algorithm 1). The
    network's answer stays as it was, since it normalises whatever it is given.
    """

    def forced(path: tuple, leaf: Array) -> Array:
        if getattr(path[-1], "key", None) != "kernel":
            return leaf
        square = (leaf**2).mean(tuple(range(leaf.ndim - 1)), keepdims=True)
        return leaf / jnp.sqrt(jnp.maximum(square, EPSILON**2))

    return jax.tree_util.tree_map_with_path(forced, params)


def mp_silu(x: Array) -> Array:
    """silu(x) at unit magnitude (equation 81)."""
    return nn.silu(x) / SILU_MAGNITUDE


def mp_sum(a: Array, b: Array, t: float) -> Array:
    """(1 - t) a + t b at unit magnitude, for independent a and b (equation 88)."""
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def mp_cat(a: Array, b: Array, t: float = 0.5) -> Array:
    """Channels of a and b side by side, b's share of the magnitude being t (equation 103)."""
    n_a, n_b = a.shape[-1], b.shape[-1]
    scale = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    parts = [scale * (1 - t) / math.sqrt(n_a) * a, scale * t / math.sqrt(n_b) * b]
    return jnp.concatenate(parts, axis=-1)


class MPFourier(nn.Module, kw_only=True):
    """sqrt(2) cos(2 pi (f position + phase)), f ~ N(0, 1): [b] -> [b, features] (equation 75).

    Frequencies and phases are drawn once, kept with the parameters and never trained.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, position: Array) -> Array:
        shape = (self.features,)
        frequencies = self.param("frequencies", nn.initializers.normal(1.0), shape)
        phases = self.param("phases", nn.initializers.uniform(1.0), shape)
        position = position.astype(jnp.promote_types(position.dtype, island(self.dtype)))
        turns = position[:, None] * lax.stop_gradient(frequencies) + lax.stop_gradient(phases)
        return math.sqrt(2) * jnp.cos(2 * math.pi * turns)


class MPConv(nn.Module, kw_only=True):
    """A convolution, or with window () a matrix, whose weights are used at unit norm, without bias.

    The norm is taken over everything that one output sums up (equation 47 and algorithm 1). The
    gradient by the stored kernel is therefore orthogonal to it.
    """

    features: int
    window: tuple[int, ...] = ()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        kernel = normalise(kernel.astype(island(self.dtype)), tuple(range(kernel.ndim - 1)))
        kernel = (kernel / math.sqrt(math.prod(shape[:-1]))).astype(self.dtype)
        x = x.astype(self.dtype)
        if not self.window:
            return x @ kernel
        space = "xyz"[: len(self.window)]
        numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
        strides = (1,) * len(self.window)
        return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=numbers)


class EDM2Block(nn.Module, kw_only=True):
    """Residual block, with attention where it has heads: [b, h, w, c], c [b, d] -> [.., features].

    An encoder's block normalises its main path by `pixel_norm`; a decoder's, whose input is partly
    from the encoder, does not. The condition c multiplies inside the residual branch, and by a gain
    that starts at zero.
    """

    features: int
    decoder: bool
    heads: int = 0
    resample: str = "none"
    balance: float = 0.3
    dropout: float = 0.0
    dtype: str = "float32"
    kernel: str = "auto"
    train: bool = False

    @nn.compact
    def __call__(self, x: Array, c: Array) -> Array:
        x = resample(x, self.resample)
        if x.shape[-1] != self.features and not self.decoder:
            x = self.conv("shortcut", ())(x)
        x = x if self.decoder else pixel_norm(x)
        h = self.conv("conv_in", (3, 3))(mp_silu(x))
        h = mp_silu(h * self.gains(c)[:, None, None, :])
        h = nn.Dropout(self.dropout, deterministic=not self.train)(h)
        h = self.conv("conv_out", (3, 3))(h)
        if x.shape[-1] != self.features and self.decoder:
            x = self.conv("shortcut", ())(x)
        x = mp_sum(x, h, self.balance)
        x = mp_sum(x, self.attention(x), self.balance) if self.heads else x
        return jnp.clip(x, -CLIP, CLIP)

    @nn.nowrap
    def conv(self, name: str, window: tuple[int, ...], features: int | None = None) -> MPConv:
        width = self.features if features is None else features
        return MPConv(features=width, window=window, dtype=self.dtype, name=name)

    @nn.nowrap
    def gains(self, c: Array) -> Array:
        """What the condition multiplies each channel by, [b, features]."""
        gain = self.param("condition_gain", nn.initializers.zeros_init(), ())
        return self.conv("condition", ())(c) * gain.astype(self.dtype) + 1

    @nn.nowrap
    def attention(self, x: Array) -> Array:
        """Attention by the cosine of queries and keys, each head's vectors being normalised."""
        tokens = x.reshape(x.shape[0], -1, self.features)
        qkv = self.conv("qkv", (), 3 * self.features)(tokens)
        q, k, v = map(pixel_norm, split_heads(qkv, 3, self.heads))
        h = attend(q, k, v, here(self.kernel, self.features // self.heads, self.dtype))
        return self.conv("out", ())(h.reshape(tokens.shape)).reshape(x.shape)
