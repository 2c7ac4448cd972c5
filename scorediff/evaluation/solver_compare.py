"""Quality against evaluations for many solvers on one trained run.

The measure is the distance of the samples from those of many steps, from shared noise: it needs no
data, is the solver's own error, and orders solvers long before a quality measured on samples does.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scorediff.errors import UserError
from scorediff.evaluation.solver_bench import Bench, Model, is_noisy, reference_table
from scorediff.evaluation.solver_figures import error_plot
from scorediff.solvers import Sampler
from scorediff.solvers.grid import Spacing
from scorediff.solvers.sample import Solver
from scorediff.training.files import write_atomic


class Row(NamedTuple):
    """One solver at one budget: rows of its table, network evaluations as counted, error."""

    solver: str
    spacing: str
    rows: int
    nfe: float
    error: float

    @property
    def label(self) -> str:
        return f"{self.solver} on {self.spacing}"


def compare(
    model: Model,
    solvers: Mapping[str, Solver],
    spacings: Mapping[str, Spacing],
    budgets: Sequence[int],
    *,
    samples: int = 128,
    batch: int = 64,
    seed: int = 0,
    reference: int = 200,
) -> list[Row]:
    """Every solver on every spacing at every budget of table rows, with one compilation for all.

    Root mean square distance from `reference` evaluations of dpmpp_multistep of order 3, from the
    same noise and conditions. Raises UserError for a solver that adds noise: no sample of it has a
    counterpart.
    """
    tables = {}
    for name, solver in solvers.items():
        for where, grid in spacings.items():
            for budget in budgets:
                table = Sampler(solver=solver, grid=grid, nfe=budget).table(model.process)
                if is_noisy(table):
                    raise UserError(f"{name} adds noise, so it has no distance from the exact flow")
                tables[name, where, table.nfe] = table
    bench = Bench(model, rows=max(reference, *budgets), batch=min(batch, samples))
    problem = bench.problem(reference_table(model.process, reference), samples, seed=seed)
    return [
        Row(name, where, rows, bench.calls(table), bench.error(table, problem))
        for (name, where, rows), table in tables.items()
    ]


def text_table(rows: Sequence[Row]) -> str:
    """The rows as lines to read: a solver a line, a column for each number of table rows."""
    columns = sorted({row.rows for row in rows})
    labels = list(dict.fromkeys(row.label for row in rows))
    wide = max(map(len, labels))
    calls = {row.rows: row.nfe for row in rows}
    lines = [
        f"{'NFE, as counted':{wide}}" + "".join(f"{calls[c]:>10g}" for c in columns),
    ]
    found = {(row.label, row.rows): row.error for row in rows}
    for label in sorted(labels, key=lambda label: _last(found, label, columns)):
        cells = (found.get((label, column)) for column in columns)
        lines.append(
            f"{label:{wide}}" + "".join(f"{'':>10}" if c is None else f"{c:>10.4f}" for c in cells)
        )
    return "\n".join(lines)


def _last(found: Mapping, label: str, columns: Sequence[int]) -> float:
    return next(found[label, column] for column in reversed(columns) if (label, column) in found)


def save_rows(folder: Path, rows: Sequence[Row], *, title: str) -> Path:
    """compare.csv and compare.png in `folder`; returns the picture's path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    write_atomic(folder / "compare.csv", text.getvalue())
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        nfe, error = curves.setdefault(row.label, ([], []))
        nfe.append(row.nfe)
        error.append(row.error)
    ylabel = "distance from the exact flow (RMS)"
    return error_plot(folder / "compare.png", {title: curves}, ylabel=ylabel)
