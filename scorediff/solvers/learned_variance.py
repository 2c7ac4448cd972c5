"""Ancestral sampling with a variance that the network chooses, element by element.

The two tables of `ancestral` differ in the noise only: its deviation is z_small where the data is
one point and z_large where it is standard normal. A network with learned variance says with v where
between them it is (Nichol & Dhariwal, arXiv 2102.09672, eq. 15, there for the squares):

    z_v = exp(v log z_large + (1 - v) log z_small) = z_small (z_large / z_small)^v.

Since v is known only once the network has been evaluated, this is not a table but a loop beside the
one of `sample`, with the same keys: v = 0 and v = 1 everywhere are the samples of the two tables.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scorediff.counting import measured, record
from scorediff.diffusion.denoiser import VarianceFn
from scorediff.solvers.ddim import ancestral
from scorediff.solvers.grid import Grid
from scorediff.solvers.noise import NoiseSource, independent
from scorediff.solvers.sample import ROWS, Outcome
from scorediff.solvers.table import COLUMNS, NOISE, StepTable
from scorediff.types import Array, Cond, Key

_E, _M0 = COLUMNS.index("e"), COLUMNS.index("m0")


class VarianceTables(NamedTuple):
    """The same steps with the smallest and the largest noise."""

    small: StepTable
    large: StepTable

    @property
    def nfe(self) -> int:
        """Network evaluations, one a row."""
        return self.small.nfe


def learned_variance(grid: Grid) -> VarianceTables:
    """Ancestral steps on a grid, for a network that learned the variance of each."""
    return VarianceTables(ancestral(grid, variance="small"), ancestral(grid, variance="large"))


def run_learned_variance(
    denoise: VarianceFn,
    tables: VarianceTables,
    x: Array,
    *,
    keys: Key,
    cond: Cond = None,
    noise: NoiseSource = independent,
) -> Outcome:
    """Samples [b, *d] from x [b, *d] at the tables' first node, and their NFE; see `sample.run`.

    `denoise` is (x, t, cond) -> (x0_hat, v), from `Denoiser.bind_variance`.
    """
    small, large = (
        jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), table) for table in tables
    )

    def row(carry: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
        x, nfe = carry
        (x0_hat, v), count = measured(lambda: denoise(x, small.t[k], cond), x.shape[0])
        mean = small.e[k, _E] * x + small.e[k, _M0] * x0_hat
        z = noise(keys, ROWS + k, small.over[k], x)
        least, most = small.e[k, NOISE], large.e[k, NOISE]
        ratio = jnp.where(least > 0, most / least, 1)  # the step to data has no noise
        return (mean + least * ratio**v * z, nfe + count), None

    start = (x, jnp.zeros((), jnp.float32))
    (x, nfe), _ = jax.lax.scan(row, start, jnp.arange(small.nfe))
    record(nfe * x.shape[0])
    return Outcome(x, nfe, None)
