"""A fixed-grid solver as a table: one row is one network evaluation.

Row k evaluates the network at (t_k, alpha_k, sigma_k) on register e, which gives x0_hat, the newest
entry m0 of a short history m0, m1, m2, m3. Then both registers follow, each linear in all of them
and in fresh noise z:

    e <- next evaluation point,    b <- base point of the step that is being made.

Single-stage solvers leave b alone; multi-stage ones keep in it the state that the step started
from. A row is written in the paper's own quantities with `Row` and `linear`, in float64 on the
host; the one loop of `sample` runs every table. Tables of equal length stack, so they can be
vmapped, and no number in one is part of a compilation.
"""

from typing import NamedTuple

import numpy as np

from scorediff.solvers.grid import Node

HISTORY = 4
COLUMNS = ("e", "b", "z", *(f"m{j}" for j in range(HISTORY)))
_UNCHANGED_B = (0.0, 1.0, 0.0, *([0.0] * HISTORY))


class StepTable(NamedTuple):
    """The table as arrays: n rows, and the marginals at the n evaluations and at the end."""

    t: np.ndarray  # [n + 1]
    alpha: np.ndarray  # [n + 1]
    sigma: np.ndarray  # [n + 1]
    e: np.ndarray  # [n, 7], one column for each of COLUMNS
    b: np.ndarray  # [n, 7]
    start: np.ndarray  # [2]: e <- start[0] x + start[1] z before the first row (churn)

    @property
    def nfe(self) -> int:
        """Number of network evaluations."""
        return self.e.shape[0]


class Row(NamedTuple):
    """One evaluation at a node, and how the registers follow."""

    at: Node
    e: np.ndarray
    b: np.ndarray = np.array(_UNCHANGED_B)


def linear(
    *, e: float = 0.0, b: float = 0.0, z: float = 0.0, m: tuple[float, ...] = ()
) -> np.ndarray:
    """Coefficients of one register's update, in the order of COLUMNS; m is newest first."""
    return np.array([e, b, z, *m, *([0.0] * (HISTORY - len(m)))], np.float64)


def denoise_to_data(at: Node) -> Row:
    """The last step to sigma = 0, where every solver takes x0_hat itself."""
    return Row(at, e=linear(m=(1.0,)))


def make_table(rows: list[Row], end: Node, start: tuple[float, float] = (1.0, 0.0)) -> StepTable:
    """Stack rows; `end` is the node at which the last row leaves e."""
    points = [*(row.at for row in rows), end]
    return StepTable(
        t=np.array([p.t for p in points]),
        alpha=np.array([p.alpha for p in points]),
        sigma=np.array([p.sigma for p in points]),
        e=np.stack([row.e for row in rows]),
        b=np.stack([row.b for row in rows]),
        start=np.array(start, np.float64),
    )


def describe(table: StepTable) -> str:
    """The table as text: each row's evaluation point and its two updates as formulas."""
    lines = [f"{table.nfe} network evaluations"]
    if tuple(table.start) != (1.0, 0.0):
        lines.append(f"      e <- {table.start[0]:.5g} x {table.start[1]:+.5g} z")
    for k in range(table.nfe):
        lines.append(
            f"{k:4d}  t={table.t[k]:<9.4g} alpha={table.alpha[k]:<9.4g}"
            f" sigma={table.sigma[k]:<9.4g} e <- {_formula(table.e[k])}"
        )
        if tuple(table.b[k]) != _UNCHANGED_B:
            lines.append(f"{'':>48} b <- {_formula(table.b[k])}")
    return "\n".join(lines)


def _formula(coefficients: np.ndarray) -> str:
    terms = [f"{c:+.5g} {name}" for c, name in zip(coefficients, COLUMNS, strict=True) if c]
    return " ".join(terms) or "0"
