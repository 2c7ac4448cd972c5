"""Forward processes: x_t = alpha(t) x0 + sigma(t) eps, with eps standard normal.

A process is the two functions alpha(t) and sigma(t) on a clock where t = 0 is data and noise grows
with t. Everything else follows from them (Kingma et al., arXiv 2107.00630; Karras et al., arXiv
2206.00364). Write f for `drift` and g^2 for `diffusion2`; the SDE with these marginals is

    dx = f(t) x dt + g(t) dw,    f = alpha'/alpha,    g^2 = 2 sigma sigma' - 2 f sigma^2,      (1)

and its probability-flow ODE, written with the two posterior means, is finite even where alpha = 0:

    dx/dt = alpha' E[x0|x] + sigma' E[eps|x].                                                   (2)

The inverse is `when(alpha, sigma)`, the time at which the process has that *ratio*. It takes the
pair because the ratio alone, or logSNR, has no float at either end, while the pair is exact at
both.

To add a process, subclass `Process` with alpha and sigma in jax.numpy, and with `when` where it has
a closed form; a monotone bisection stands in where it has none.
"""

import contextlib
import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.types import Array

_HOST_BLOCK = (
    64  # host evaluations are padded to multiples of this, so that they share compilations
)
_BISECTIONS = 60


class Marginal(NamedTuple):
    """The marginal at given times: coefficients and their time derivatives, each [...]."""

    alpha: Array
    sigma: Array
    dalpha: Array
    dsigma: Array

    @property
    def logsnr(self) -> Array:
        """2 log(alpha / sigma), in nats."""
        xp = self.alpha.__array_namespace__()
        return 2 * (xp.log(self.alpha) - xp.log(self.sigma))

    @property
    def dlogsnr(self) -> Array:
        """Time derivative of logSNR; negative."""
        return 2 * (self.dalpha / self.alpha - self.dsigma / self.sigma)

    @property
    def drift(self) -> Array:
        """f of equation (1)."""
        return self.dalpha / self.alpha

    @property
    def diffusion2(self) -> Array:
        """g^2 of equation (1)."""
        return 2 * self.sigma * (self.dsigma - self.drift * self.sigma)

    def expand(self, x: Array) -> "Marginal":
        """The same coefficients [b], shaped [b, 1, ...] to multiply x [b, *d]."""
        return Marginal(*(expand_to(leaf, x) for leaf in self))


def expand_to(leaf: Array, x: Array) -> Array:
    """A scalar or [b] array shaped to broadcast against x [b, *d]."""
    return leaf if leaf.ndim == 0 else leaf.reshape(leaf.shape + (1,) * (x.ndim - leaf.ndim))


@dataclass(frozen=True, kw_only=True)
class Process:
    """Base of all processes. Training and sampling stay within [t_min, t_max]."""

    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self):
        if not 0 <= self.t_min < self.t_max:
            raise ValueError(
                f"needs 0 <= t_min < t_max, got t_min={self.t_min}, t_max={self.t_max}"
            )

    def alpha(self, t: Array) -> Array:
        """Signal coefficient at t."""
        raise TypeError(f"{type(self).__name__} does not define alpha(t)")

    def sigma(self, t: Array) -> Array:
        """Noise coefficient at t."""
        raise TypeError(f"{type(self).__name__} does not define sigma(t)")

    def when(self, alpha: Array, sigma: Array) -> Array:
        """The time at which the process has this ratio of alpha to sigma.

        Bisection within `bracket`, which needs the ratio to be monotone, and a last Newton step,
        which also gives the result its derivative (implicit function theorem).
        """

        def excess(t):
            return self.sigma(t) * alpha - self.alpha(t) * sigma

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) / 2
            above = excess(middle) > 0
            return jnp.where(above, low, middle), jnp.where(above, middle, high)

        first, last = self.bracket
        low = jnp.full(jnp.shape(alpha), first, jnp.result_type(alpha, float))
        high = jnp.full_like(low, last)
        low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
        root = jax.lax.stop_gradient((low + high) / 2)
        _, slope = jax.jvp(excess, (root,), (jnp.ones_like(root),))
        return jnp.clip(root - excess(root) / jax.lax.stop_gradient(slope), first, last)

    @property
    def bracket(self) -> tuple[float, float]:
        """Where `when` looks for a time."""
        return self.t_min, self.t_max

    def time(self, logsnr: Array) -> Array:
        """The time at which logSNR has this value."""
        return self.when(jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr)))

    def __call__(self, t: Array) -> Marginal:
        """Coefficients and their derivatives at t [...]."""
        t = jnp.asarray(t, jnp.result_type(t, float))
        values, slopes = jax.jvp(
            lambda t: (self.alpha(t), self.sigma(t)), (t,), (jnp.ones_like(t),)
        )
        return Marginal(*values, *slopes)

    def host(self, t) -> Marginal:
        """The marginals at t [n] in float64 NumPy, also where JAX itself runs in float32."""
        return _on_host(_compiled(self, "__call__"), t)

    def host_when(self, alpha, sigma) -> np.ndarray:
        """`when` for ratios [n], in float64 NumPy."""
        return _on_host(_compiled(self, "when"), alpha, sigma)


@functools.lru_cache(maxsize=256)
def _compiled(process: Process, method: str):
    """One jitted function per process, so that making tables does not compile again and again."""
    return jax.jit(lambda *arrays: getattr(process, method)(*arrays))


def _on_host(function, *arrays):
    """Evaluate an elementwise JAX function on float64 arrays [n], outside of any trace."""
    size = np.size(arrays[0])
    padding = -size % _HOST_BLOCK
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.ensure_compile_time_eval())
        stack.enter_context(jax.enable_x64(True))
        stack.enter_context(jax.default_device(_host_device()))
        padded = [np.pad(np.asarray(a, np.float64), (0, padding), mode="edge") for a in arrays]
        out = function(*map(jnp.asarray, padded))
        return jax.tree.map(lambda leaf: np.array(leaf)[:size], out)


def _host_device() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names an accelerator only; GPUs compute in float64 as well
        return jax.local_devices()[0]
