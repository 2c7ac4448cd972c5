"""Editing: SDEdit, which starts from a noised guide, and DDIM inversion, which climbs to the noise.

SDEdit (Meng et al., arXiv 2108.01073, algorithm 1) draws x_t = alpha x_guide + sigma z at an
intermediate t and solves down from there: the smaller t, the nearer to the guide.

DDIM inversion (Song et al., arXiv 2010.02502, section 5.4; Dhariwal & Nichol, arXiv 2105.05233,
appendix F) runs the same first-order ODE solver up in t. The way back down returns to the start up
to the error of the solver, which falls with the number of steps.
"""

from scorediff.errors import UserError
from scorediff.solvers.ddim import ddim
from scorediff.solvers.grid import Grid, upward
from scorediff.solvers.likelihood import check_ode, no_noise
from scorediff.solvers.noise import normal, stream_of
from scorediff.solvers.sample import NoiseSource, Outcome, Solver, independent, run
from scorediff.solvers.table import StepTable, marginal_before
from scorediff.types import Array, Cond, DenoiseFn, Key

_GUIDE = (1 << 22) + 5  # stream of a sample's own key


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
    alpha, sigma = marginal_before(table)
    z = normal(stream_of(keys, _GUIDE), guide)
    x = (alpha * guide + sigma * z).astype(guide.dtype)
    return run(denoise, table, x, keys=keys, cond=cond, noise=noise)


def invert(
    denoise: DenoiseFn,
    grid: Grid,
    x: Array,
    *,
    keys: Key,
    solver: Solver = ddim,
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
