"""LuChengTHU/dpm-solver: DPM-Solver and DPM-Solver++, multistep, singlestep and adaptive."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from scorediff.diffusion import Process
from scorediff.solvers.ddim import ddim
from scorediff.solvers.dpm import dpm_multistep, dpmpp_multistep
from scorediff.solvers.grid import DATA, Grid
from scorediff.solvers.singlestep import dpm_singlestep
from scorediff.solvers.spacing import logsnr, quadratic, uniform
from scorediff.solvers.table import StepTable, join
from tests.solver_vectors.replay import (
    TOLERANCE,
    VP,
    Recorded,
    Replayed,
    evaluations_differ,
    recorded_grid,
    run_table,
)

SPACINGS = {"logSNR": logsnr, "time_uniform": uniform, "time_quadratic": quadratic}
FORMS = {"dpmsolver": "midpoint", "taylor": "taylor"}


def replay(run: dict, file: Recorded) -> Replayed:
    if run["method"] == "adaptive":
        from tests.solver_vectors.adaptive import dpm_solver_adaptive

        return dpm_solver_adaptive(run, file)
    grid = recorded_grid(file.arrays[run["grid"]], process_of(run, file))
    form = FORMS[run["solver_type"]]
    table = multistep(run, grid, form) if run["method"] == "multistep" else single(run, grid, form)
    if run["denoise_to_zero"]:
        table = join(table, to_data(grid))
    if not evaluations_differ(table, file.arrays[run["evals"]]) <= TOLERANCE:
        return Replayed(np.full_like(file.final(run), np.nan), table.nfe)
    bed = file.bed(run)
    return run_table(table, bed, bed.z)


def multistep(run: dict, grid: Grid, form: str) -> StepTable:
    solver = dpmpp_multistep if run["alg"] == "dpmsolver++" else dpm_multistep
    return solver(
        grid,
        order=run["order"],
        form=form,
        third_order="published",
        lower_order_final=run["lower_order_final"] and run["steps"] < 10,
    )


def single(run: dict, grid: Grid, form: str) -> StepTable:
    return dpm_singlestep(
        grid,
        order=run["order"],
        prediction="x0" if run["alg"] == "dpmsolver++" else "eps",
        form=form,
        inner=SPACINGS[run["skip"]],
        orders=tuple(run["orders"]) if "orders" in run else None,
    )


def to_data(grid: Grid) -> StepTable:
    """`denoise_to_zero`: one more evaluation at the last node."""
    return ddim(Grid(process=grid.process, nodes=(grid.nodes[-1], DATA)))


@dataclass(frozen=True, kw_only=True)
class PiecewiseLinear(Process):
    """log alpha [n] at t = 1/n ... 1, straight in between and beyond; variance preserving."""

    log_alpha: tuple[float, ...]
    t_min: float = 0.0

    def alpha(self, t):
        return jnp.exp(_interpolate(t, self._times, jnp.array(self.log_alpha)))

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(2 * _interpolate(t, self._times, jnp.array(self.log_alpha))))

    def when(self, alpha, sigma):
        log_alpha = -0.5 * jnp.log1p((sigma / alpha) ** 2)
        return _interpolate(log_alpha, jnp.array(self.log_alpha)[::-1], self._times[::-1])

    @property
    def _times(self):
        return jnp.arange(1, len(self.log_alpha) + 1) / len(self.log_alpha)


def _interpolate(x, xs, ys):
    """Linear in each interval; the first and the last one go on outside."""
    k = jnp.clip(jnp.searchsorted(xs, x), 1, len(xs) - 1)
    return ys[k - 1] + (x - xs[k - 1]) * (ys[k] - ys[k - 1]) / (xs[k] - xs[k - 1])


def process_of(run: dict, file: Recorded) -> Process:
    name = f"sched_{run['schedule']}_log_alpha"
    if name not in file.arrays:
        return VP
    return PiecewiseLinear(log_alpha=tuple(file.arrays[name].tolist()))
