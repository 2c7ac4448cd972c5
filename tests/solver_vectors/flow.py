"""facebookresearch/flow_matching and willisma/SiT: ODE and SDE solvers on straight and GVP paths.

Their clock runs from noise at 0 to data at 1, ours the other way.
"""

from functools import partial

import numpy as np

from scorediff.diffusion import Process, Trigonometric
from scorediff.solvers.grid import DATA, Grid
from scorediff.solvers.reverse_sde import (
    constant,
    decreasing,
    flow_sde,
    increasing_decreasing,
    linear_in_t,
    matched,
    proportional_to_sigma,
)
from scorediff.solvers.runge_kutta import euler, heun, midpoint, rk3, rk4
from tests.solver_vectors.replay import FLOW, Recorded, Replayed, recorded_grid, run_table

METHODS = {
    "euler": euler,
    "midpoint": midpoint,
    "heun2": heun,
    "heun3": rk3,
    "rk4": partial(rk4, rule="three_eighths"),
}
FORMS = {
    "constant": constant,
    "SBDM": matched,
    "sigma": proportional_to_sigma,
    "linear": linear_in_t,
    "decreasing": decreasing,
    "increasing-decreasing": increasing_decreasing,
}
GVP = Trigonometric(t_min=0.0)


def replay(run: dict, file: Recorded) -> Replayed:
    if run["method"] == "dopri5":
        from tests.solver_vectors.adaptive import flow_adaptive

        return flow_adaptive(run, file)
    process = GVP if run.get("path") == "GVP" else FLOW
    grid = falling_grid(file.arrays[run["grid"]], process)
    if run["kind"] == "sde":
        return replay_sde(run, file, grid)
    table = METHODS[run["method"]](grid, last_step="full")
    return run_table(table, file.bed(run), file.bed(run).z)


def falling_grid(rows: np.ndarray, process: Process) -> Grid:
    """A recorded grid on our clock."""
    return recorded_grid(np.column_stack([1 - rows[:, 0], rows[:, 1:]]), process, derivatives=True)


def replay_sde(run: dict, file: Recorded, grid: Grid) -> Replayed:
    form = partial(FORMS[run["form"]], norm=run["norm"])
    heun_like = run["method"] == "Heun"
    last_step = run["last_step"].lower() if run["last_step"] else None
    if last_step:  # recorded grids end before that step, last_step_size away from data
        grid = Grid(process=grid.process, nodes=(*grid.nodes, DATA))
    table = flow_sde(
        grid,
        diffusion=form,
        method="heun_noise_first" if heun_like else "euler",
        last_step=last_step or "tweedie",
    )
    shift = 1 if heun_like else 0  # Heun's noise of a step is added by the row before it
    noise = {(1 + heun_like) * k - shift: draw for k, draw in enumerate(file.noise(run))}
    ours = run_table(table, file.bed(run), file.bed(run).z, noise)
    # Upstream evaluates the network once for the velocity and once more for the score, except where
    # its last step needs only one of the two.
    single = last_step in ("tweedie", "euler")
    return ours._replace(nfe=2 * ours.nfe - single)
