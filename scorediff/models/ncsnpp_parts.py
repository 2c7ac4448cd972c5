"""What NCSN++ and DDPM++ have beside residual blocks: their condition, and a filtered convolution.

Song et al., arXiv 2011.13456, appendix H; the condition also as Karras et al., arXiv 2206.00364,
appendix F.1, extend it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from scorediff.models.blocks import XAVIER
from scorediff.models.embeddings import FourierFeatures, island, sinusoid
from scorediff.types import Array, Cond


class NoiseCondition(nn.Module, kw_only=True):
    """Noise level [b], class and augmentation -> one vector a sample [b, width], at least float32.

    Waves of the noise level, plus a linear map of the augmentation cond["augment"] [b, augment] and
    of the class, go through a perceptron of two layers.

    embedding:   "positional", "fourier" or "log_fourier" (Fourier features of the logarithm).
    features:    width of the waves, even.
    shift, sin_first: of the positional embedding, see `sinusoid`.
    num_classes: the class is a one-hot vector times sqrt(num_classes), and no class, which is
                 label `num_classes` or none given, the zero vector. Any other comes out as NaN.
    class_table: the class is instead a row of a table [num_classes, width], added at the end.
    augment:     width of the augmentation's description, None without; not given, it is zero.
    """

    embedding: str
    features: int
    width: int
    shift: float = 1.0
    sin_first: bool = True
    num_classes: int | None = None
    class_table: bool = False
    augment: int | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, noise: Array, cond: Cond) -> Array:
        cond = cond or {}
        dense = partial(nn.Dense, dtype=island(self.dtype), kernel_init=XAVIER)
        waves = self.waves(noise)
        if self.augment is not None:
            given = cond.get("augment", jnp.zeros((noise.shape[0], self.augment), waves.dtype))
            waves += dense(self.features, use_bias=False, name="augment")(given)
        if self.num_classes is not None and not self.class_table:
            vector = self.one_hot(noise, cond) * self.num_classes**0.5
            waves += dense(self.features, name="label")(vector)
        c = dense(self.width, name="noise_in")(waves)
        c = dense(self.width, name="noise_out")(nn.silu(c))
        if self.num_classes is None or not self.class_table:
            return c
        rows = dense(self.width, use_bias=False, kernel_init=nn.initializers.normal(), name="label")
        return c + rows(self.one_hot(noise, cond))

    @nn.nowrap
    def waves(self, noise: Array) -> Array:
        """The noise level as sines and cosines, [b, features]."""
        dtype = island(self.dtype)
        if self.embedding == "positional":
            options = {"shift": self.shift, "sin_first": self.sin_first, "dtype": dtype}
            return sinusoid(noise, self.features, **options)
        noise = noise.astype(jnp.promote_types(dtype, noise.dtype))
        level = jnp.log(noise) if self.embedding == "log_fourier" else noise
        fourier = FourierFeatures(features=self.features // 2, dtype=self.dtype, name="fourier")
        return fourier(level)

    @nn.nowrap
    def one_hot(self, noise: Array, cond: Cond) -> Array:
        """The class of each sample, [b, num_classes]."""
        null = jnp.full(noise.shape, self.num_classes, jnp.int32)
        label = cond.get("label", null)
        valid = (label >= 0) & (label <= self.num_classes)
        vector = jax.nn.one_hot(label, self.num_classes, dtype=island(self.dtype))
        return jnp.where(valid[:, None], vector, jnp.nan)


class FilteredHalving(nn.Module, kw_only=True):
    """A filter and a convolution of window 3 and stride 2: [b, *space, c] -> half, [.., features].

    The border is padded once, for both, so the filter's values beyond the image take part (the
    convolution that resamples of StyleGAN2, arXiv 1912.04958, which the paper takes over in H.1).
    """

    features: int
    taps: tuple[int, ...]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rank = x.ndim - 2
        for axis in range(1, rank + 1):
            x = smoothed(x, self.taps, axis, spare=1)
        conv = nn.Conv(
            self.features,
            (3,) * rank,
            2,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=XAVIER,
            name="conv",
        )
        return conv(x)


def smoothed(x: Array, taps: tuple[int, ...], axis: int, spare: int) -> Array:
    """x filtered along one axis, with zeros beyond the border and `spare` more values a side."""
    pad = spare + (len(taps) - 1) // 2
    widths = [(pad, pad) if i == axis else (0, 0) for i in range(x.ndim)]
    size = x.shape[axis] + 2 * pad - len(taps) + 1
    x = jnp.pad(x, widths)
    parts = [lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(len(taps))]
    return sum(tap / sum(taps) * part for tap, part in zip(taps, parts, strict=True))
