"""Inpainting by replacement, and RePaint's resampling, for any linear operator.

Before each evaluation the part of x_t that the measurement can see, in the coordinates V^T x of
`operators`, becomes a noisy version of the measurement itself,

    V^T x_t <- alpha c + sqrt(sigma^2 - (alpha s)^2) z,    c = S^-1 U^T y,  s = noise_std/S,    (1)

whose noise, the measurement's included, is the process's own; below that level, sigma < alpha s,
nothing is replaced. For masks and for orthogonal rows this is Song et al., arXiv 2011.13456,
appendix I.2 (inpainting and colourisation). It does not sample the posterior: the rest of the image
sees the measurement at the noise of x_t only. RePaint (Lugmayr et al., arXiv 2201.09865) mixes the
two parts by going back up and down again.

The hook is the `adjust` of `sample`. It belongs to solvers with one evaluation a step (`ancestral`,
`ddim`, `euler`).
"""

import itertools

import jax.numpy as jnp

from scorediff.errors import UserError
from scorediff.solvers.ddim import ancestral
from scorediff.solvers.grid import Grid
from scorediff.solvers.inverse.operators import LinearOperator
from scorediff.solvers.noise import normal
from scorediff.solvers.sample import Adjust, Point, Solver
from scorediff.solvers.table import StepTable, join, noised_up
from scorediff.types import Array, Key


def replacement(operator: LinearOperator, y: Array, *, noise_std: float = 0.0) -> Adjust:
    """Equation (1) before every evaluation, with fresh noise, for y [b, *data_shape].

    The last step still estimates all of x0; for a noiseless y end with `operator.impose(x, y)`.
    """
    if noise_std < 0:
        raise UserError(f"replacement: noise_std must be at least 0, got {noise_std}")
    c = operator.measured(y)
    known = jnp.asarray(noise_std / operator.singular, c.dtype)

    def adjust(point: Point, keys: Key) -> Array:
        missing = point.sigma**2 - (point.alpha * known) ** 2
        draw = operator.coordinates(normal(keys, point.x))
        noisy = point.alpha * c + jnp.sqrt(jnp.maximum(missing, 0)) * draw
        change = noisy - operator.coordinates(point.x)
        return point.x + operator.image(jnp.where(missing >= 0, change, 0))

    return adjust


def repaint(
    grid: Grid, *, jump: int = 10, resamplings: int = 10, solver: Solver = ancestral
) -> StepTable:
    """`solver` with RePaint's schedule (arXiv 2201.09865, algorithm 1 and appendix B).

    The grid is cut, from its end, into segments of `jump` steps. Each but the first is run
    `resamplings` times in all: forward noise takes the state from its end back to its start. To be
    run with `replacement`. jump = 10 and resamplings = 10 on 250 steps are the paper's.
    """
    if jump < 1 or resamplings < 1:
        raise UserError(f"repaint: jump={jump} and resamplings={resamplings} must be at least 1")
    bounds = [0, *reversed(range(len(grid), 0, -jump))]
    table = None
    for low, high in itertools.pairwise(bounds):
        segment = Grid(process=grid.process, nodes=grid.nodes[low : high + 1])
        once = solver(segment)
        for _ in range(resamplings - 1 if low > 0 else 0):
            table = join(table, noised_up(once, segment.nodes[0]))
        table = once if table is None else join(table, once)
    return table
