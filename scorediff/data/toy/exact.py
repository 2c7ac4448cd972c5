"""Exact marginals of a Gaussian mixture under any process: score, posterior means, density, flow.

Let p(x0) = sum_k w_k N(mu_k, U_k diag(s_k^2) U_k^T) and x_t = alpha x0 + sigma eps. Then x_t is
again a mixture, with means alpha mu_k, the same axes U_k, and variances along them

    v_k = alpha^2 s_k^2 + sigma^2.

With y_k = U_k^T (x - alpha mu_k) and r_k(x) the posterior probability of component k,

    score  = -sum_k r_k U_k (y_k / v_k)
    eps    = E[eps | x_t] = sigma sum_k r_k U_k (y_k / v_k)
    x0_hat = E[x0 | x_t]  = sum_k r_k [mu_k + U_k (alpha s_k^2 y_k / v_k)].

No formula divides by alpha or sigma, so all hold at alpha = 0 (pure noise) and at sigma = 0 (data).
They are written once, for NumPy and JAX alike.

A class label selects the components that carry it, which makes every quantity above
class-conditional; the null label, `num_classes`, selects all of them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.data.toy.flow import integrate_flow
from scorediff.errors import UserError
from scorediff.types import Array, Cond, DenoiseFn, Key

# A distribution is hashable, so that it can be a constant of the compiled method.
_compiled = functools.partial(jax.jit, static_argnums=0)


class Components(NamedTuple):
    """The mixture as float64 NumPy arrays: k components in d dimensions."""

    weights: np.ndarray  # [k], sums to 1
    means: np.ndarray  # [k, d]
    axes: np.ndarray  # [k, d, d], orthonormal columns
    stds: np.ndarray  # [k, d], along the columns of `axes`
    labels: np.ndarray  # [k], int32


class Posterior(NamedTuple):
    """What x_t says about the components."""

    logits: Any  # [b, k], log of w_k N(x; alpha mu_k, C_k)
    shares: Any  # [b, k], r_k
    pull: Any  # [b, k, d], y_k / v_k, along the component's axes


class ExactDistribution:
    """Everything that follows from `components`; the subclasses say how those are given.

    Points `x` are [b, *shape] with d numbers each, `alpha` and `sigma` scalars or [b]. Results have
    the precision of `x`, float32 at least. `cond` is None or {"label": int [b]}; a label outside
    0..num_classes gives NaN.
    """

    @functools.cached_property
    def components(self) -> Components:
        raise TypeError(f"{type(self).__name__} does not define components")

    @property
    def dim(self) -> int:
        return self.components.means.shape[1]

    @property
    def classes(self) -> tuple[int, ...]:
        return tuple(range(self.num_classes))

    @property
    def num_classes(self) -> int:
        """Number of classes, and the label that stands for "no condition"."""
        return int(self.components.labels.max()) + 1

    @functools.cached_property
    def _log_weights(self) -> np.ndarray:
        """log p(component | label) [num_classes + 1, k], -inf where they do not belong together."""
        weights, labels = self.components.weights, self.components.labels
        own = np.arange(self.num_classes)[:, None] == labels
        table = np.where(np.vstack([own, np.ones_like(labels, bool)]), weights, 0.0)
        with np.errstate(divide="ignore"):
            return np.log(table / table.sum(1, keepdims=True))

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Exact mean [d] and covariance [d, d] of x0, float64."""
        weights, means, axes, stds, _ = self.components
        mean = weights @ means
        inner = np.einsum("k,kij,kj,klj->il", weights, axes, stds**2, axes)
        outer = np.einsum("k,ki,kj->ij", weights, means - mean, means - mean)
        return mean, inner + outer

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def sample(self, key: Key, n: int) -> Array:
        """n independent draws of x0, [n, d], in JAX's default float type."""
        weights, means, axes, stds, _ = self.components
        pick_key, noise_key = jax.random.split(key)
        pick = jax.random.categorical(pick_key, jnp.log(weights), shape=(n,))
        y = jnp.asarray(stds)[pick] * jax.random.normal(noise_key, (n, self.dim))
        return jnp.asarray(means)[pick] + _along(y, jnp.asarray(axes)[pick])

    def sample_host(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """n draws made by NumPy, for data pipelines: x0 float32 [n, d] and its class int32 [n]."""
        weights, means, axes, stds, labels = self.components
        pick = rng.choice(len(weights), size=n, p=weights)
        y = stds[pick] * rng.standard_normal((n, self.dim))
        x0 = means[pick] + np.einsum("bij,bj->bi", axes[pick], y)
        return x0.astype(np.float32), labels[pick]

    @_compiled
    def logpdf(self, x: Array, alpha=1.0, sigma=0.0, cond: Cond = None) -> Array:
        """Log-density of x_t in nats, [b]."""
        logits = self._posterior(_points(x, self.dim), alpha, sigma, cond).logits
        return jax.nn.logsumexp(logits, axis=-1)

    @_compiled
    def class_probabilities(self, x: Array, alpha=1.0, sigma=0.0) -> Array:
        """p(class | x_t) [b, num_classes]: the best classifier there can be, at any noise level."""
        shares = self._posterior(_points(x, self.dim), alpha, sigma, None).shares
        return shares @ jax.nn.one_hot(self.components.labels, self.num_classes, dtype=shares.dtype)

    @_compiled
    def score(self, x: Array, alpha=1.0, sigma=0.0, cond: Cond = None) -> Array:
        """Gradient of `logpdf` in x, in the shape of x."""
        post = self._posterior(_points(x, self.dim), alpha, sigma, cond)
        return -self._back(post.shares, post.pull).reshape(x.shape)

    @_compiled
    def eps(self, x: Array, alpha, sigma, cond: Cond = None) -> Array:
        """E[eps | x_t = x], in the shape of x."""
        return self._means(_points(x, self.dim), alpha, sigma, cond)[1].reshape(x.shape)

    @_compiled
    def x0_hat(self, x: Array, alpha, sigma, cond: Cond = None) -> Array:
        """E[x0 | x_t = x], in the shape of x."""
        return self._means(_points(x, self.dim), alpha, sigma, cond)[0].reshape(x.shape)

    def denoiser(self, process: Callable[[Array], Any]) -> DenoiseFn:
        """The perfect model under `process`, which maps t to something with `alpha` and `sigma`."""

        def denoise(x: Array, t: Array, cond: Cond = None) -> Array:
            marginal = process(jnp.asarray(t))
            return self.x0_hat(x, marginal.alpha, marginal.sigma, cond)

        return denoise

    def flow(self, x, start: tuple, end: tuple, cond: Cond = None) -> np.ndarray:
        """Carry x along the probability-flow ODE from start to end, each (alpha, sigma); float64.

        The result depends on the two end points only, not on the schedule between them. Integrated
        on the host to a relative error of about 1e-12 (where the flow itself is well conditioned).
        Raises UserError for alpha = sigma = 0, x that is not finite, labels that do not exist.
        """
        points = flow_points(x, self.dim, start, end)
        label = None if cond is None else np.asarray(cond["label"])
        if label is not None and not ((label >= 0) & (label <= self.num_classes)).all():
            raise UserError(f"labels must be 0 to {self.num_classes}; got {label.tolist()}")

        def means(x, alpha, sigma, index):
            chosen = None if label is None else {"label": label[index]}
            return self._means(x, alpha, sigma, chosen)

        return integrate_flow(means, points, start, end).reshape(np.shape(x))

    def _means(self, x, alpha, sigma, cond: Cond):
        """(x0_hat, eps), both [b, d], for x [b, d]."""
        post = self._posterior(x, alpha, sigma, cond)
        alpha, sigma = _per_point(x, alpha), _per_point(x, sigma)
        xp = x.__array_namespace__()
        means, stds = (xp.asarray(a, dtype=x.dtype) for a in self.components[1:4:2])
        nearest = xp.sum(post.shares[:, :, None] * means, axis=1)
        x0_hat = nearest + self._back(post.shares, alpha * stds**2 * post.pull)
        return x0_hat, self._back(post.shares, sigma * post.pull)

    def _posterior(self, x, alpha, sigma, cond: Cond) -> Posterior:
        xp = x.__array_namespace__()
        means, axes, stds = (xp.asarray(a, dtype=x.dtype) for a in self.components[1:4])
        alpha, sigma = _per_point(x, alpha), _per_point(x, sigma)
        y = _along(x[:, None] - alpha * means, xp.swapaxes(axes, 1, 2))
        variance = alpha**2 * stds**2 + sigma**2
        exponent = xp.sum(y**2 / variance + xp.log(2 * np.pi * variance), axis=-1)
        logits = self._prior(x, cond) - exponent / 2
        shares = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
        return Posterior(logits, shares / xp.sum(shares, axis=-1, keepdims=True), y / variance)

    def _prior(self, x, cond: Cond):
        """log p(component | label), [k] or [b, k]; NaN (not a clamped row) for a wrong label."""
        xp = x.__array_namespace__()
        table = xp.asarray(self._log_weights, dtype=x.dtype)
        if cond is None:
            return table[-1]
        label = xp.asarray(cond["label"])
        known = (label >= 0) & (label <= self.num_classes)
        return xp.where(known[:, None], table[xp.where(known, label, 0)], np.nan)

    def _back(self, shares, y):
        """sum_k r_k U_k y_k: from the components' axes [b, k, d] to the space of x [b, d]."""
        xp = y.__array_namespace__()
        axes = xp.asarray(self.components.axes, dtype=y.dtype)
        return xp.sum(_along(shares[:, :, None] * y, axes), axis=1)


def flow_points(x, dim: int, start: tuple, end: tuple) -> np.ndarray:
    """The checked arguments of a flow: x as float64 [b, dim]."""
    x = np.asarray(x, np.float64)
    _check_shape(x.shape, dim)
    if not np.isfinite(x).all():
        raise UserError("the flow starts from points x that are not all finite")
    for alpha, sigma in (start, end):
        if not (alpha >= 0 and sigma >= 0 and alpha + sigma > 0):
            raise UserError(f"no marginal has (alpha, sigma) = ({alpha}, {sigma}): one must be > 0")
    return x.reshape(len(x), dim)


def _check_shape(shape: tuple[int, ...], dim: int) -> None:
    if len(shape) < 2 or int(np.prod(shape[1:])) != dim:
        raise UserError(f"x has shape {shape}; this distribution needs [b, {dim}]")


def _along(y, axes):
    """sum_j axes[..., i, j] y[..., j]."""
    with jax.default_matmul_precision("highest"):  # accelerators would round the inputs to bf16
        return (axes @ y[..., None])[..., 0]


def _points(x: Array, dim: int) -> Array:
    """x [b, *shape] as a JAX array [b, d] of float32 or better."""
    x = jnp.asarray(x)
    _check_shape(x.shape, dim)
    return x.reshape(x.shape[0], dim).astype(jnp.promote_types(x.dtype, jnp.float32))


def _per_point(x, value):
    """A scalar or [b] number, shaped to act on [b, k, d]."""
    return x.__array_namespace__().asarray(value, dtype=x.dtype).reshape(-1, 1, 1)
