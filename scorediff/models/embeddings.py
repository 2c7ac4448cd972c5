"""What the network is told beside the image: the noise level, the class, and where a token sits.

All of it is computed in float32 whatever the network computes in: a bfloat16 phase of a sinusoid
would confuse neighbouring noise levels (8 bits of mantissa tell 1000 from 1004, not from 1001).
"""

import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from scorediff.errors import UserError, check_choice
from scorediff.types import Array, Cond

MAX_PERIOD = 10_000.0
NULL_CLASSES = ("learned", "zero", "refused")
LABEL_KINDS = ("class", "noise", "vector")


def island(dtype) -> jnp.dtype:
    """The type of the numbers that must not be coarse: float32, or wider if the network is."""
    return jnp.promote_types(dtype, jnp.float32)


def frequencies(half: int, shift: float = 0.0) -> np.ndarray:
    """Angular frequencies 10000^(-i / (half - shift)), i = 0 .. half - 1, float64 [half].

    Shift 0 as in DiT and ADM (and Vaswani et al., arXiv 1706.03762, section 3.5). DDPM's code and
    some ports divide by half - 1, shift 1, which is another network.
    """
    return np.exp(-math.log(MAX_PERIOD) * np.arange(half) / (half - shift))


def sinusoid(
    position: Array, dim: int, *, shift: float = 0.0, sin_first: bool = False, dtype="float32"
) -> Array:
    """cos and sin of position times each frequency: [b] -> [b, dim], at least `dtype`.

    cos before sin unless sin_first; shift: see `frequencies`.
    """
    if dim % 2:
        raise UserError(f"a sinusoidal embedding needs an even width, got {dim}")
    position = position.astype(jnp.promote_types(island(position.dtype), island(dtype)))
    phase = position[:, None] * jnp.asarray(frequencies(dim // 2, shift), position.dtype)[None, :]
    waves = (jnp.sin, jnp.cos) if sin_first else (jnp.cos, jnp.sin)
    return jnp.concatenate([wave(phase) for wave in waves], axis=-1)


def grid_sincos(height: int, width: int, dim: int) -> np.ndarray:
    """Fixed 2-D positions of row-major tokens, float64 [height * width, dim].

    The first half of the channels tells the column, the second the row, each sin then cos
    (He et al., arXiv 2111.06377, as DiT uses it). No parameters.
    """
    if dim % 4:
        raise UserError(f"2-D sin-cos positions need a width divisible by 4, got {dim}")
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    halves = []
    for position in (column, row):
        phase = position.reshape(-1, 1) * frequencies(dim // 4)[None, :]
        halves += [np.sin(phase), np.cos(phase)]
    return np.concatenate(halves, axis=-1)


class FourierFeatures(nn.Module, kw_only=True):
    """sin and cos of 2 pi position times fixed random frequencies: [b] -> [b, 2 features].

    The frequencies are drawn once, normal with spread `scale`, kept with the parameters and never
    trained (Tancik et al., arXiv 2006.10739; scale 16 in NCSN++, arXiv 2011.13456, appendix H.1).
    """

    features: int
    scale: float = 16.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, position: Array) -> Array:
        drawn = self.param("frequencies", nn.initializers.normal(self.scale), (self.features,))
        kind = jnp.promote_types(island(position.dtype), island(self.dtype))
        fixed = lax.stop_gradient(drawn).astype(kind)
        phase = 2 * math.pi * position.astype(kind)[:, None] * fixed[None, :]
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


class Conditioning(nn.Module, kw_only=True):
    """Noise level [b] and class -> one vector a sample [b, width], at least float32.

    The noise level goes through a sinusoid and a two-layer perceptron (DDPM, appendix B); a class
    is a row of a table, added. A label above the last row comes out as NaN, never as another class.
    A network without classes ignores labels.

    shift, sin_first: of the sinusoid, see `sinusoid`.
    fourier:          random Fourier features of the noise level's logarithm instead.
    null_class:       the null class is label `num_classes`, and stands in where no label is given.
                      "learned": it has a row of its own; "zero": it adds nothing, as in EDM;
                      "refused": there is none, and a label must be given.
    label_kind:       what cond["label"] is: "class"; "noise", a second number [b] that goes the way
                      of the noise level, with a perceptron of its own; "vector", what is added
                      [b, width]. The last two must be given.
    """

    features: int
    width: int
    num_classes: int | None = None
    shift: float = 0.0
    sin_first: bool = False
    fourier: bool = False
    null_class: str = "learned"
    label_kind: str = "class"
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    label_init: nn.initializers.Initializer = nn.initializers.normal(1.0)

    @nn.compact
    def __call__(self, noise: Array, cond: Cond) -> Array:
        dense = partial(
            nn.Dense, self.width, dtype=island(self.dtype), kernel_init=self.kernel_init
        )
        waves = self.waves()
        c = dense(name="noise_in")(waves(noise))
        c = dense(name="noise_out")(nn.silu(c))
        if self.label_kind == "class":
            return c if self.num_classes is None else c + self.class_row(noise.shape, cond)
        label = given(self, cond, "label")
        if self.label_kind == "noise":
            label = dense(name="label_out")(nn.silu(dense(name="label_in")(waves(label))))
        return c + label.astype(c.dtype)

    @nn.nowrap
    def waves(self) -> Callable[[Array], Array]:
        """From numbers [b] to their sines and cosines."""
        if self.fourier:
            fourier = FourierFeatures(features=self.features, dtype=self.dtype, name="fourier")
            return lambda level: fourier(jnp.log(level.astype(island(self.dtype))))
        return partial(
            sinusoid,
            dim=self.features,
            shift=self.shift,
            sin_first=self.sin_first,
            dtype=self.dtype,
        )

    @nn.nowrap
    def class_row(self, shape: tuple[int, ...], cond: Cond) -> Array:
        """The table's row of each sample's class."""
        check_choice("null_class", self.null_class, NULL_CLASSES)
        given = cond is not None and "label" in cond
        if not given and self.null_class == "refused":
            raise UserError('this network has no null class: give each sample a cond["label"]')
        label = cond["label"] if given else jnp.full(shape, self.num_classes, jnp.int32)
        rows = self.num_classes + (self.null_class == "learned")
        row = nn.Embed(rows, self.width, embedding_init=self.label_init, name="label")(label)
        if self.null_class == "zero":
            row = jnp.where((label == self.num_classes)[:, None], 0, row)
        return row


def given(network: nn.Module, cond: Cond, key: str, features: int | None = None) -> Array:
    """cond[key]; UserError where it is not there, or its last axis is not `features`."""
    name = type(network).__name__
    if cond is None or key not in cond:
        raise UserError(f'{name} needs cond["{key}"], which is not given')
    if features is not None and cond[key].shape[-1] != features:
        raise UserError(
            f'{name} takes cond["{key}"] of {features} features, got shape {cond[key].shape}'
        )
    return cond[key]
