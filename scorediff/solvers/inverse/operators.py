"""Linear measurements y = A x0 + n, n ~ N(0, noise_std^2 I), through their singular values.

With the decomposition A = U S V^T, keeping the r singular values that are not 0, every method needs
four maps only: V^T, V, U^T and U, between images [b, *shape], data [b, *data_shape] and coordinates
[b, r]. None is stored for the structured operators. For example

    A = U S V^T,    A^T = V S U^T,    A^+ = V S^-1 U^T,    V V^T projects on what y can see.

To add an operator, subclass `LinearOperator` with the four maps and `singular`.
"""

import functools
import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from scorediff.errors import UserError
from scorediff.types import Array


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearOperator:
    """Base of all operators, for one x0 of `shape`."""

    shape: tuple[int, ...]

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one y."""
        raise TypeError(f"{type(self).__name__} does not define data_shape")

    @property
    def singular(self) -> np.ndarray:
        """The singular values that are not 0, [r] float64."""
        raise TypeError(f"{type(self).__name__} does not define singular")

    def coordinates(self, x: Array) -> Array:
        """V^T x: [b, *shape] -> [b, r]."""
        raise TypeError(f"{type(self).__name__} does not define coordinates")

    def image(self, c: Array) -> Array:
        """V c: [b, r] -> [b, *shape]."""
        raise TypeError(f"{type(self).__name__} does not define image")

    def data_coordinates(self, y: Array) -> Array:
        """U^T y: [b, *data_shape] -> [b, r]."""
        return y.reshape(len(y), -1)

    def data(self, c: Array) -> Array:
        """U c: [b, r] -> [b, *data_shape]."""
        return c.reshape(len(c), *self.data_shape)

    def forward(self, x: Array) -> Array:
        """A x."""
        return self.data(self.coordinates(x) * self._singular(x))

    def adjoint(self, y: Array) -> Array:
        """A^T y."""
        return self.image(self.data_coordinates(y) * self._singular(y))

    def pseudo_inverse(self, y: Array) -> Array:
        """A^+ y, the smallest x with A x nearest to y."""
        return self.image(self.data_coordinates(y) / self._singular(y))

    def project(self, x: Array) -> Array:
        """The part of x that y can see, A^+ A x."""
        return self.image(self.coordinates(x))

    def impose(self, x: Array, y: Array) -> Array:
        """x with the part that y can see replaced, so that A x = y."""
        return x + self.pseudo_inverse(y - self.forward(x))

    def measured(self, y: Array) -> Array:
        """S^-1 U^T y [b, r]: x0 in the coordinates that y can see, with noise noise_std / S."""
        self.check(y)
        return self.data_coordinates(y) / self._singular(y)

    def check(self, y: Array) -> None:
        """Raise UserError where y is no batch of measurements."""
        if y.shape[1:] != self.data_shape:
            raise UserError(
                f"{type(self).__name__} of images {self.shape} gives y of shape"
                f" [b, {', '.join(map(str, self.data_shape))}]; got y of shape {list(y.shape)}"
            )

    def _singular(self, like: Array) -> Array:
        return jnp.asarray(self.singular, like.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Inpainting(LinearOperator):
    """Some numbers of x0 are known: y is x0 with 0 elsewhere, in the shape of x0.

    mask: 1 or True where known; broadcastable to `shape`, such as [h, w, 1] for images.
    """

    mask: np.ndarray

    def __post_init__(self):
        mask = np.asarray(self.mask)
        wrong = mask[(mask != 0) & (mask != 1)]
        if wrong.size:
            raise UserError(
                f"inpainting: the mask must be 1 (known) or 0 everywhere, but it holds {wrong[0]}"
            )
        try:
            known = np.broadcast_to(mask, self.shape)
        except ValueError:
            raise UserError(
                f"inpainting: a mask of shape {mask.shape} does not fit images {self.shape}"
            ) from None
        if not known.any():
            raise UserError("inpainting: the mask is 0 everywhere, so that nothing is known")

    @property
    def data_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def singular(self) -> np.ndarray:
        return np.ones(len(self._known))

    def coordinates(self, x: Array) -> Array:
        return x.reshape(len(x), -1)[:, self._known]

    def image(self, c: Array) -> Array:
        flat = jnp.zeros((len(c), math.prod(self.shape)), c.dtype)
        return flat.at[:, self._known].set(c).reshape(len(c), *self.shape)

    def data_coordinates(self, y: Array) -> Array:
        return self.coordinates(y)

    def data(self, c: Array) -> Array:
        return self.image(c)

    @functools.cached_property
    def _known(self) -> np.ndarray:
        return np.flatnonzero(np.broadcast_to(np.asarray(self.mask), self.shape))


@dataclass(frozen=True, kw_only=True, eq=False)
class Grey(LinearOperator):
    """The mean over the last axis, [h, w, c] -> [h, w, 1]: what colourisation starts from."""

    @property
    def data_shape(self) -> tuple[int, ...]:
        return (*self.shape[:-1], 1)

    @property
    def singular(self) -> np.ndarray:
        return np.full(math.prod(self.data_shape), self.shape[-1] ** -0.5)

    def coordinates(self, x: Array) -> Array:
        return x.mean(axis=-1).reshape(len(x), -1) * self.shape[-1] ** 0.5

    def image(self, c: Array) -> Array:
        grey = c.reshape(len(c), *self.data_shape) * self.shape[-1] ** -0.5
        return jnp.broadcast_to(grey, (len(c), *self.shape))


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockAverage(LinearOperator):
    """Means of blocks of factor x factor pixels, [h, w, c] -> [h / factor, w / factor, c]."""

    factor: int

    def __post_init__(self):
        if len(self.shape) != 3 or self.factor < 1 or any(n % self.factor for n in self.shape[:2]):
            raise UserError(
                f"block average: images {self.shape} are not [h, w, c] with h and w multiples of"
                f" factor={self.factor}"
            )

    @property
    def data_shape(self) -> tuple[int, ...]:
        h, w, c = self.shape
        return h // self.factor, w // self.factor, c

    @property
    def singular(self) -> np.ndarray:
        return np.full(math.prod(self.data_shape), 1 / self.factor)

    def coordinates(self, x: Array) -> Array:
        h, w, c = self.data_shape
        blocks = x.reshape(len(x), h, self.factor, w, self.factor, c)
        return blocks.mean(axis=(2, 4)).reshape(len(x), -1) * self.factor

    def image(self, c: Array) -> Array:
        small = c.reshape(len(c), *self.data_shape) / self.factor
        return small.repeat(self.factor, axis=1).repeat(self.factor, axis=2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(LinearOperator):
    """Any matrix [m, d], d the size of `shape`; singular values under 1e-10 of the first are 0."""

    matrix: np.ndarray

    def __post_init__(self):
        found = np.shape(self.matrix)
        if len(found) != 2 or found[1] != math.prod(self.shape):
            raise UserError(
                f"dense operator on images {self.shape}: the matrix must be [m,"
                f" {math.prod(self.shape)}], got {list(found)}"
            )

    @property
    def data_shape(self) -> tuple[int, ...]:
        return np.shape(self.matrix)[:1]

    @property
    def singular(self) -> np.ndarray:
        return self._decomposition[1]

    def coordinates(self, x: Array) -> Array:
        rows = jnp.asarray(self._decomposition[2], x.dtype)
        return jnp.matmul(x.reshape(len(x), -1), rows.T, precision="highest")

    def image(self, c: Array) -> Array:
        rows = jnp.asarray(self._decomposition[2], c.dtype)
        return jnp.matmul(c, rows, precision="highest").reshape(len(c), *self.shape)

    def data_coordinates(self, y: Array) -> Array:
        return jnp.matmul(y, jnp.asarray(self._decomposition[0], y.dtype), precision="highest")

    def data(self, c: Array) -> Array:
        return jnp.matmul(c, jnp.asarray(self._decomposition[0], c.dtype).T, precision="highest")

    @functools.cached_property
    def _decomposition(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        left, singular, rows = np.linalg.svd(np.asarray(self.matrix, np.float64), False)
        kept = singular > 1e-10 * singular.max()
        return left[:, kept], singular[kept], rows[kept]
