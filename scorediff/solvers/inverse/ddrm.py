"""DDRM: denoising diffusion restoration in the coordinates of the operator's decomposition.

Kawar et al., arXiv 2201.11793. In units of x / alpha, with noise levels q = sigma/alpha, write x
for a coordinate V^T x_t / alpha, m for the same of x0_hat, c = S^-1 U^T y for the measurement of
that coordinate and s = noise_std/S for its noise. The step from level q to q' draws (their eq. 7
and 8)

    unseen:     N(m + sqrt(1 - eta^2) q' (x - m)/q,     eta^2 q'^2)
    q' < s:     N(m + sqrt(1 - eta^2) q' (c - m)/s,     eta^2 q'^2)                              (1)
    q' >= s:    N((1 - eta_b) m + eta_b c,              q'^2 - eta_b^2 s^2)

and the start is N(c, q^2 - s^2) where seen and q >= s, else N(0, q^2). To data, q' = 0, (1) gives
m, or for noise_std = 0 and eta_b = 1 the measurement itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.counting import counted
from scorediff.errors import UserError
from scorediff.solvers.grid import Grid
from scorediff.solvers.inverse.operators import LinearOperator
from scorediff.solvers.noise import normal, stream_of
from scorediff.solvers.sample import Outcome
from scorediff.types import Array, Cond, DenoiseFn, Key


def ddrm(
    denoise: DenoiseFn,
    grid: Grid,
    operator: LinearOperator,
    y: Array,
    *,
    keys: Key,
    noise_std: float = 0.0,
    eta: float = 0.85,
    eta_b: float = 1.0,
    cond: Cond = None,
) -> Outcome:
    """Samples x0 [b, *shape] for y [b, *data_shape], one evaluation a step of the grid; keys [b].

    eta and eta_b as in (1); the defaults are the paper's. Raises UserError for a grid that starts
    at alpha = 0.
    """
    if not (0 <= eta <= 1 and 0 <= eta_b <= 1 and noise_std >= 0):
        raise UserError(
            "ddrm: needs eta and eta_b in [0, 1] and noise_std >= 0, got"
            f" {eta}, {eta_b} and {noise_std}"
        )
    if not grid.nodes[0].alpha > 0:
        raise UserError(
            f"ddrm: steps in sigma/alpha, which is infinite at t={grid.nodes[0].t:g}; start at a"
            " smaller t_start"
        )
    c = operator.measured(y)
    update = _Update(operator, c, jnp.asarray(noise_std / operator.singular, c.dtype), eta, eta_b)
    columns = np.array([[node.t, node.alpha, node.sigma / node.alpha] for node in grid.nodes])
    t, alpha, level = jnp.asarray(columns.T, c.dtype)

    def row(carry: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
        x, nfe = carry
        x0_hat, count = counted(lambda: denoise(alpha[k] * x, t[k], cond), batch=len(x))
        z = normal(stream_of(keys, k + 1), x)
        return (update.step(x, x0_hat, z, level[k], level[k + 1]), nfe + count), None

    z = normal(stream_of(keys, 0), jnp.zeros((len(y), *operator.shape), c.dtype))
    start = update.start(z, level[0]), jnp.zeros((), jnp.float32)
    (x, nfe), _ = jax.lax.scan(row, start, jnp.arange(len(grid)))
    return Outcome(alpha[-1] * x, nfe, None)


class _Update(NamedTuple):
    """Equation (1)."""

    operator: LinearOperator
    c: Array  # [b, r]
    noise: Array  # [r], s
    eta: float
    eta_b: float

    def start(self, z: Array, level: Array) -> Array:
        drawn = self.operator.coordinates(z)
        less = jnp.sqrt(jnp.maximum(level**2 - self.noise**2, 0))
        seen = jnp.where(level >= self.noise, self.c + less * drawn, level * drawn)
        return level * (z - self.operator.project(z)) + self.operator.image(seen)

    def step(self, x: Array, x0_hat: Array, z: Array, now: Array, new: Array) -> Array:
        keep = (1 - self.eta**2) ** 0.5
        unseen = x0_hat + keep * new / now * (x - x0_hat) + self.eta * new * z
        mean, drawn = self.operator.coordinates(x0_hat), self.operator.coordinates(z)
        safe = jnp.where(self.noise > 0, self.noise, 1.0)
        below = mean + keep * new * (self.c - mean) / safe + self.eta * new * drawn
        less = jnp.sqrt(jnp.maximum(new**2 - (self.eta_b * self.noise) ** 2, 0))
        above = mean + self.eta_b * (self.c - mean) + less * drawn
        seen = jnp.where(new < self.noise, below, above)
        return unseen + self.operator.image(seen - self.operator.coordinates(unseen))
