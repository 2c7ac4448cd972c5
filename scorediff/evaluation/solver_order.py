"""Convergence order of any solver on any spacing and process, where the exact answer is known.

Points of the exact marginal at a large noise level are taken to a small one; it is so large that
the lower orders with which multistep solvers warm up there do not show. Solvers of the
probability-flow ODE are compared with the exact flow, and order p shows as error ~ NFE^-p. Solvers
that add noise are compared in distribution: for each axis of a Gaussian bed, the mean and standard
deviation of what they make are known without drawing a sample (`solvers.moments`); this weak error
is the root mean square over the axes.
"""

import csv
import functools
import inspect
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from scorediff.data.toy import Gaussian
from scorediff.diffusion.process import Process
from scorediff.errors import UserError
from scorediff.evaluation.solver_bench import BEDS, Bench, bed_model, is_noisy
from scorediff.evaluation.table_search import rms
from scorediff.solvers import Sampler, StepTable
from scorediff.solvers.grid import Spacing, nodes_at
from scorediff.solvers.moments import gaussian_moments
from scorediff.solvers.sample import Solver
from scorediff.training.files import write_atomic

_FLOOR = 1e-11  # below it rounding shows
_FIXED = {"ddim": 1, "euler": 1, "heun": 2, "midpoint": 2, "rk3": 3, "rk4": 4, "dpm2": 2}
_OF_OPTION = ("dpmpp_multistep", "dpm_multistep", "dpm_singlestep", "deis", "lms", "unipc")


class Curve(NamedTuple):
    """Errors of one solver, spacing and process: at each budget, as spent; falling in error."""

    process: str
    spacing: str
    solver: str
    kind: str  # of error: flow, or weak
    nfe: tuple[int, ...]
    error: tuple[float, ...]
    nominal: int | None

    @property
    def slope(self) -> float:
        """Measured order: of the straight line through the last three errors above rounding."""
        usable = [(n, e) for n, e in zip(self.nfe, self.error, strict=True) if e > _FLOOR]
        if len(usable) < 2:
            return np.nan
        n, e = np.log(np.array(usable[-3:])).T
        return float(-np.polyfit(n, e, 1)[0])

    @property
    def label(self) -> str:
        return f"{self.solver} on {self.spacing}"


def measure_orders(
    bed: str,
    solvers: Mapping[str, Solver],
    spacings: Mapping[str, Spacing],
    processes: Mapping[str, Process],
    budgets: Sequence[int],
    *,
    levels: tuple[float, float] = (100.0, 0.1),
    points: int = 64,
) -> Iterator[Curve]:
    """A curve for each process, spacing and solver, from noise level sigma/alpha to another.

    Raises UserError where a solver cannot run on a spacing or process, or adds noise on a bed that
    is no Gaussian. Call it under float64.
    """
    for process_name, process in processes.items():
        between = _times(process, levels)
        flow = functools.cache(functools.partial(_Flow, bed, process, between, budgets, points))
        for where, grid in spacings.items():
            for name, solver in solvers.items():
                tables = [
                    Sampler(
                        solver=solver,
                        grid=grid,
                        nfe=nfe,
                        to_data=False,
                        t_start=between[0],
                        t_end=between[1],
                    ).table(process)
                    for nfe in budgets
                ]
                tables = list({table.nfe: table for table in tables}.values())
                noisy = any(map(is_noisy, tables))
                error = functools.partial(weak_error, bed) if noisy else flow()
                yield Curve(
                    process_name,
                    where,
                    name,
                    "weak" if noisy else "flow",
                    tuple(table.nfe for table in tables),
                    tuple(error(table) for table in tables),
                    None if noisy else nominal_order(solver),
                )


def weak_error(bed: str, table: StepTable) -> float:
    """Root mean square error of the mean and standard deviation along a Gaussian bed's axes."""
    gaussian = BEDS[bed]
    if not isinstance(gaussian, Gaussian):
        raise UserError(f"--bed={bed}: solvers that add noise are measured on a Gaussian, --bed=B")
    errors = []
    for mean, std in zip(gaussian.mean, gaussian.stds, strict=True):
        made = gaussian_moments(table, mean, std**2)
        exact = np.hypot(table.alpha[-1] * std, table.sigma[-1])
        errors += [made.mean[-1] - table.alpha[-1] * mean, np.sqrt(made.variance[-1]) - exact]
    return float(np.sqrt(np.mean(np.square(errors))))


def nominal_order(solver: Solver) -> int | None:
    """The order that a solver's paper gives it; None where this module does not know."""
    function, given = _unwrapped(solver)
    name = function.__name__
    defaults = {k: p.default for k, p in inspect.signature(function).parameters.items()}
    options = defaults | given
    if name in _FIXED:
        return _FIXED[name]
    if name not in _OF_OPTION:
        return None
    order = options["order"] + (name == "unipc" and options["corrector"])
    falls = options.get("lower_order_final", False)  # a last step of order 1 costs h^2 once
    return min(order, 2) if falls else order


def _unwrapped(solver: Solver) -> tuple[Callable, Mapping]:
    if isinstance(solver, functools.partial):
        return solver.func, solver.keywords
    return solver, {}


def _times(process: Process, levels: tuple[float, float]) -> tuple[float, float]:
    """The times of these noise levels, within the process."""
    t = process.host_when(np.ones(2), np.array(levels))
    start, end = min(t[0], process.t_max), max(t[1], process.t_min)
    if not start > end:
        raise UserError(f"{process!r} has no times from noise level {levels[0]:g} to {levels[1]:g}")
    return float(start), float(end)


class _Flow:
    """The error of tables against the exact flow, from shared points of the exact marginal."""

    def __init__(self, bed: str, process: Process, between, budgets: Sequence[int], points: int):
        start, end = ((n.alpha, n.sigma) for n in nodes_at(process, np.array(between)))
        rng = np.random.default_rng(0)
        x0, _ = BEDS[bed].sample_host(rng, points)
        x = start[0] * x0 + start[1] * rng.standard_normal(x0.shape)
        self.target = BEDS[bed].flow(x, start, end)
        self.x = jnp.asarray(x, jnp.result_type(float))
        self.bench = Bench(bed_model(bed, process), rows=max(budgets), batch=points)

    def __call__(self, table: StepTable) -> float:
        return rms(self.bench(table, self.x, None), self.target)


def text_table(curves: Sequence[Curve]) -> str:
    """The curves as lines to read."""
    lines = []
    for process in dict.fromkeys(curve.process for curve in curves):
        mine = [curve for curve in curves if curve.process == process]
        wide = max(len(curve.label) for curve in mine)
        lines += [f"{process}", f"{'':{wide}}  order  nominal  error (NFE)"]
        for curve in mine:
            errors = "  ".join(
                f"{e:.1e} ({n})" for n, e in zip(curve.nfe, curve.error, strict=True)
            )
            nominal = "-" if curve.nominal is None else str(curve.nominal)
            weak = " weak" if curve.kind == "weak" else ""
            lines.append(f"{curve.label:{wide}}  {curve.slope:5.2f}  {nominal:>7}  {errors}{weak}")
    return "\n".join(lines)


def save_curves(folder: Path, curves: Sequence[Curve]) -> None:
    """orders.csv, a row for each error, and orders.json, an object for each curve."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["process", "spacing", "solver", "kind", "nfe", "error", "slope", "nominal"])
    for curve in curves:
        for nfe, error in zip(curve.nfe, curve.error, strict=True):
            rows.writerow([*curve[:4], nfe, error, curve.slope, curve.nominal])
    write_atomic(folder / "orders.csv", text.getvalue())
    objects = [curve._asdict() | {"slope": curve.slope} for curve in curves]
    objects = [{k: None if v != v else v for k, v in one.items()} for one in objects]
    write_atomic(folder / "orders.json", json.dumps(objects, indent=1) + "\n")
