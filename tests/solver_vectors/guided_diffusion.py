"""openai/guided-diffusion: DDPM with fixed variances, and DDIM, on respaced discrete schedules."""

from functools import partial

from scorediff.solvers.ddim import ancestral, ddim
from tests.solver_vectors.replay import (
    VP,
    Recorded,
    Replayed,
    clipped,
    recorded_grid,
    run_table,
    unchanged,
)


def replay(run: dict, file: Recorded) -> Replayed:
    if run["sampler"] == "ddim":
        solver = partial(ddim, eta=run["eta"])
    else:
        solver = partial(ancestral, variance=run["var"].removeprefix("fixed_"))
    table = solver(recorded_grid(file.arrays[run["grid"]], VP))
    bed = file.bed(run)
    noise = dict(enumerate(file.noise(run)))
    change = clipped if run["clip"] else unchanged
    return run_table(table, bed, bed.z, noise, change=change)
