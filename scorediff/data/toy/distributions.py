"""How exact distributions are given: tuples of floats, so that a config can name them."""

import dataclasses
import functools

import numpy as np

from scorediff.data.toy.exact import Components, ExactDistribution, flow_points
from scorediff.errors import UserError
from scorediff.types import Cond

Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian(ExactDistribution):
    """N(mean, U diag(stds^2) U^T), U = `axes` with orthonormal columns (None: identity)."""

    mean: Vector
    stds: Vector
    axes: Matrix | None = None

    def __post_init__(self):
        _ = self.components

    @functools.cached_property
    def components(self) -> Components:
        axes = None if self.axes is None else (self.axes,)
        return _components((1.0,), (self.mean,), (self.stds,), axes, None)

    def entropy(self, alpha: float = 1.0, sigma: float = 0.0) -> float:
        """Differential entropy of x_t, in nats."""
        variance = alpha**2 * self.components.stds[0] ** 2 + sigma**2
        return float(np.sum(np.log(2 * np.pi * np.e * variance)) / 2)

    def flow(self, x, start: tuple, end: tuple, cond: Cond = None) -> np.ndarray:
        """Closed form: along each axis the distance from the mean scales with the marginal std."""
        points = flow_points(x, self.dim, start, end)
        _, (mean,), (axes,), (stds,), _ = self.components
        (alpha0, sigma0), (alpha1, sigma1) = start, end
        ratio = np.hypot(alpha1 * stds, sigma1) / np.hypot(alpha0 * stds, sigma0)
        y = (points - alpha0 * mean) @ axes
        return (alpha1 * mean + (y * ratio) @ axes.T).reshape(np.shape(x))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianMixture(ExactDistribution):
    """k Gaussians in d dimensions, each with a weight, mean, standard deviations along axes, class.

    weights: [k], positive, normalised here; means, stds: [k, d]; axes: [k, d, d], orthonormal
    columns (None: identity); labels: [k], each of 0..max at least once (None: all of class 0).
    """

    weights: Vector
    means: tuple[Vector, ...]
    stds: tuple[Vector, ...]
    axes: tuple[Matrix, ...] | None = None
    labels: tuple[int, ...] | None = None

    def __post_init__(self):
        _ = self.components

    @functools.cached_property
    def components(self) -> Components:
        return _components(self.weights, self.means, self.stds, self.axes, self.labels)

    def given(self, label: int) -> "GaussianMixture":
        """The distribution of x0 in one class (in all: `num_classes`), as a mixture of its own."""
        if not 0 <= label <= self.num_classes:
            raise UserError(f"label {label}: expected 0 to {self.num_classes}")
        own = [k for k, c in enumerate(self.components.labels) if label in (c, self.num_classes)]
        return GaussianMixture(
            weights=tuple(self.weights[k] for k in own),
            means=tuple(self.means[k] for k in own),
            stds=tuple(self.stds[k] for k in own),
            axes=None if self.axes is None else tuple(self.axes[k] for k in own),
        )


def pinwheel(
    *,
    num_classes: int = 4,
    per_class: int = 4,
    inner: float = 0.3,
    outer: float = 1.3,
    swirl: float = 1.0,
    thickness: float = 0.06,
) -> GaussianMixture:
    """A 2-D mixture of curved arms, one class an arm, of equal weights.

    Each arm is `per_class` Gaussians from radius `inner` to `outer`, stretched along the arm, which
    turns by `swirl` radians for each unit of radius; `thickness` is the std across the arm.
    """
    if num_classes < 1 or per_class < 2 or not 0 < inner < outer or thickness <= 0:
        raise UserError(
            f"pinwheel of {num_classes} arms, {per_class} Gaussians each, from radius {inner} to"
            f" {outer}, thickness {thickness}: needs >= 1, >= 2, 0 < inner < outer, > 0"
        )
    labels, steps = np.divmod(np.arange(num_classes * per_class), per_class)
    spacing = (outer - inner) / (per_class - 1)
    radius = inner + spacing * steps
    angle = 2 * np.pi * labels / num_classes + swirl * radius
    heading = angle + np.arctan(swirl * radius)
    length = spacing / 2 * np.hypot(1, swirl * radius)
    cos, sin = np.cos(heading), np.sin(heading)
    return GaussianMixture(
        weights=(1.0,) * len(labels),
        means=_tuples(np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)),
        stds=_tuples(np.stack([length, np.full_like(length, thickness)], -1)),
        axes=_tuples(np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)),
        labels=tuple(labels.tolist()),
    )


def _components(weights, means, stds, axes, labels) -> Components:
    """The arrays of a mixture, checked."""
    means = _floats("means", means, 2)
    k, d = means.shape
    weights, stds = _floats("weights", weights, 1), _floats("stds", stds, 2)
    axes = np.tile(np.eye(d), (k, 1, 1)) if axes is None else _floats("axes", axes, 3)
    labels = np.zeros(k, np.int32) if labels is None else np.asarray(labels, np.int32)
    wanted = {"weights": (k,), "stds": (k, d), "axes": (k, d, d), "labels": (k,)}
    given = {"weights": weights, "stds": stds, "axes": axes, "labels": labels}
    for name, shape in wanted.items():
        if given[name].shape != shape:
            raise UserError(f"{name} {given[name].shape} does not fit means {(k, d)}: need {shape}")
    for name in ("weights", "stds"):
        if not (given[name] > 0).all():
            raise UserError(f"{name} must all be > 0; the smallest is {given[name].min()}")
    defect = np.abs(np.swapaxes(axes, 1, 2) @ axes - np.eye(d)).max()
    if defect > 1e-6:
        raise UserError(f"the columns of axes must be orthonormal; they miss it by {defect:.1g}")
    if set(labels.tolist()) != set(range(labels.max() + 1)):
        raise UserError(f"labels must use every class from 0 on; got {labels.tolist()}")
    return Components(weights / weights.sum(), means, axes, stds, labels)


def _floats(name: str, value, ndim: int) -> np.ndarray:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be numbers in rows of equal length; got {value}") from None
    if array.ndim != ndim or not array.size or not np.isfinite(array).all():
        raise UserError(f"{name} must be finite numbers nested {ndim} deep; got {value}")
    return array


def _tuples(array: np.ndarray) -> tuple:
    """Nested tuples of Python floats, which hash and which a config can hold."""
    return tuple(map(_tuples, array)) if array.ndim > 1 else tuple(array.tolist())
