"""Editing: SDEdit, which starts from a noised guide, and DDIM inversion, which climbs to the noise.

SDEdit (Meng et al., arXiv 2108.01073, algorithm 1) draws x_t = alpha x_guide + sigma z at an
intermediate t and solves down from there: the smaller t, the nearer to the guide.

DDIM inversion (Song et al., arXiv 2010.02502, section 5.4; Dhariwal & Nichol, arXiv 2105.05233,
appendix F) runs the same first-order ODE solver up in t. The way back down returns to the start up
to the error of the solver, which falls with the number of steps.
"""

from functools import partial

import jax.numpy as jnp

from scorediff.errors import UserError
from scorediff.solvers.grid import Grid, upward
from scorediff.solvers.likelihood import check_ode, no_noise
from scorediff.solvers.noise import normal, stream_of
from scorediff.solvers.runge_kutta import euler
from scorediff.solvers.sample import NoiseSource, Outcome, Solver, independent, run
from scorediff.solvers.table import StepTable
from scorediff.types import Array, Cond, DenoiseFn, Key

_GUIDE = (1 << 22) + 5  # stream of a sample's own key

# DDIM with eta = 0, as Euler's method in sigma/alpha, which runs in either direction
DDIM_ODE: Solver = partial(euler, frame="straight")


def sdedit(
    denoise: DenoiseFn,
    table: StepTable,
    guide: Array,
    *,
    keys: Key,
    cond: Cond = None,
    noise: NoiseSource = independent,
) -> Outcome:
    """Samples near guides [b, *d]; the table starts at an intermediate time, its t_start."""
    scale, churn = table.start
    sigma = jnp.sqrt(table.sigma[0] ** 2 - churn**2)  # before the table's own churn
    z = normal(stream_of(keys, _GUIDE), guide)
    x = ((table.alpha[0] * guide + sigma * z) / scale).astype(guide.dtype)
    return run(denoise, table, x, keys=keys, cond=cond, noise=noise)


def invert(
    denoise: DenoiseFn,
    grid: Grid,
    x: Array,
    *,
    keys: Key,
    solver: Solver = DDIM_ODE,
    cond: Cond = None,
) -> Outcome:
    """Carry x [b, *d] from the grid's lowest node, data aside, up to its first: its latent code.

    `solver(grid)` takes it back. Raises UserError for a solver that adds noise.
    """
    if len(upward(grid)) < 1:
        raise UserError("inversion: the grid has no step between two nodes with noise")
    table = solver(upward(grid))
    check_ode(table)
    return run(denoise, table, x, keys=keys, cond=cond, noise=no_noise)
