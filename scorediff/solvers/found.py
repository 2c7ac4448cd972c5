"""Tables kept in files: what a search has found, as a solver that any later run can name.

    --config.solver=scorediff.solvers.found.found --config.solver.path=best.json

A file is JSON and nothing but data: the arrays of a `StepTable`, the process that they were made
for, and in words and numbers how they were found and what they measured. A network is told t only,
so the marginals in the file must be those of the run's process at the file's times; they are
checked, and so is the noise level from which sampling starts.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scorediff.diffusion.process import Process
from scorediff.errors import UserError
from scorediff.solvers.grid import Grid
from scorediff.solvers.table import NOISE, StepTable, marginal_before

FORMAT = "scorediff solver table 1"
_LARGEST = 10_000_000  # bytes
_AGREE = 1e-6  # relative difference at which two marginals are called the same
_FIELDS = {"format", "process", "nfe", "how", "errors", *StepTable._fields}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A table, the process it is for, how it was found, and root mean square errors by name."""

    table: StepTable
    process: str
    how: Mapping[str, str] = dataclasses.field(default_factory=dict)
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """The file's content. Raises ValueError for a table whose coefficients are not finite."""
        leaves = {name: np.asarray(leaf).tolist() for name, leaf in self.table._asdict().items()}
        leaves["over"] = [[v if math.isfinite(v) else None for v in row] for row in leaves["over"]]
        content = {
            "format": FORMAT,
            "process": self.process,
            "nfe": self.table.nfe,
            "how": dict(self.how),
            "errors": dict(self.errors),
            **leaves,
        }
        return json.dumps(content, allow_nan=False, indent=1) + "\n"


def found(grid: Grid, *, path: str) -> StepTable:
    """The table in the file at `path`, if it is one for this process and this many evaluations.

    Its times are its own: the grid's spacing does not matter, only its ends and its length do.
    """
    file = read(path)
    table = file.table
    if len(grid) != table.nfe:
        raise UserError(
            f"{path}: holds a table of {table.nfe} network evaluations, but {len(grid)} are asked "
            f"for; set nfe={table.nfe}"
        )
    _check_process(path, file, grid.process)
    first, last = grid.nodes[0], grid.nodes[-1]
    _check_same(path, "starts from noise", marginal_before(table)[1], first.sigma, "t_start")
    _check_same(path, "ends at sigma", table.sigma[-1], last.sigma, "to_data and t_end")
    return table


def read(path: str | Path) -> Found:
    """The file at `path`. Raises UserError for one that is missing, damaged or not such a file."""
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    if len(content) > _LARGEST:
        raise UserError(f"{path}: larger than {_LARGEST} bytes, so not a solver's table")
    try:
        data = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, or not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{path}: not a solver's table (its format is not {FORMAT!r})")
    wrong = _FIELDS ^ set(data)
    if wrong:
        raise UserError(f"{path}: fields missing or unknown: {', '.join(sorted(wrong))}")
    return Found(
        table=_table(path, data),
        process=_text(path, "process", data["process"]),
        how=_mapping(path, "how", data["how"], str),
        errors=_mapping(path, "errors", data["errors"], int | float),
    )


def _table(path: str | Path, data: Mapping[str, Any]) -> StepTable:
    n = data["nfe"]
    if type(n) is not int or n < 1:
        raise UserError(f"{path}: nfe must be a whole number from 1, got {n!r}")
    columns = _columns(path, data["e"])
    shapes = {"t": (n + 1,), "alpha": (n + 1,), "sigma": (n + 1,), "keep": (n, 2)}
    shapes |= {"e": (n, columns), "b": (n, columns), "over": (n, 2), "start": (2,)}
    table = StepTable(**{name: _array(path, name, data[name], shapes[name]) for name in shapes})
    if not (table.start[0] > 0 and abs(table.start[1]) < table.sigma[0]):
        raise UserError(f"{path}: start={table.start.tolist()} does not lead from any noise")
    return table


def _columns(path: str | Path, e: Any) -> int:
    """How many columns the table has: its first row says how far it looks back."""
    columns = len(e[0]) if isinstance(e, list) and e and isinstance(e[0], list) else 0
    if columns <= NOISE + 1:
        raise UserError(f"{path}: e must be rows of {NOISE + 2} or more numbers")
    return columns


def _array(path: str | Path, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    if name == "over" and isinstance(value, list):  # null where noise belongs to no path
        rows = [row if isinstance(row, list) else [row] for row in value]
        value = [[math.nan if v is None else v for v in row] for row in rows]
    try:
        array = np.array(value)
    except ValueError:  # rows of unequal length
        array = np.array(None)
    if array.dtype.kind not in "if" or array.shape != shape:
        raise UserError(f"{path}: {name} must be numbers of shape {shape}")
    if name != "over" and not np.isfinite(array).all():
        raise UserError(f"{path}: {name} has a number that is not finite")
    return array.astype(np.float64)


def _text(path: str | Path, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{path}: {name} must be text, got {value!r}")
    return value


def _mapping(path: str | Path, name: str, value: Any, kind: type) -> dict:
    if not isinstance(value, dict) or not all(isinstance(v, kind) for v in value.values()):
        raise UserError(f"{path}: {name} must map names to values of one kind")
    return value


def _refuse(constant: str):
    raise ValueError(f"{constant} is not a number that a table can hold")


def _check_process(path: str, file: Found, process: Process) -> None:
    """The network is told t: the file's marginals must be the process's there."""
    table = file.table
    times = table.t[:-1]
    inside = (times >= 0) & (times <= process.t_max * (1 + _AGREE))
    here = process.host(np.where(inside, times, process.t_max))
    for ours, theirs in ((here.alpha, table.alpha[:-1]), (here.sigma, table.sigma[:-1])):
        if not inside.all() or not np.allclose(ours, theirs, rtol=_AGREE, atol=1e-9):
            raise UserError(
                f"{path}: was found for {file.process}, and does not fit this run's {process!r}"
            )


def _check_same(path: str, what: str, theirs: float, ours: float, option: str) -> None:
    if not math.isclose(theirs, ours, rel_tol=_AGREE, abs_tol=1e-9):
        raise UserError(
            f"{path}: its table {what} {theirs:.6g}, but this run asks for {ours:.6g}; "
            f"leave {option} as they are by default"
        )
