"""A fixed-grid solver as a table: one row is one network evaluation.

Row k evaluates the network at (t_k, alpha_k, sigma_k) on register e, which gives x0_hat. What the
solver remembers of it is linear in both, keep[0] e + keep[1] x0_hat: x0_hat itself, eps_hat, or the
velocity. It becomes the newest entry m0 of a short history m0 ... m4 (a found table may look back
further: the number of columns says how far). Then both registers follow, each linear in all of them
and in fresh noise z:

    e <- next evaluation point,    b <- base point of the step that is being made.

Single-stage solvers leave b alone; multi-stage ones keep in it the state that the step started
from. A row is written in the paper's own quantities with `Row` and `linear`, in float64 on the
host; the one loop of `sample` runs every table. Tables of equal length stack, so they can be
vmapped, and no number in one is part of a compilation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scorediff.solvers.grid import Node

HISTORY = 5
COLUMNS = ("e", "b", "z", *(f"m{j}" for j in range(HISTORY)))
NOISE = COLUMNS.index("z")
_UNCHANGED_B = (0.0, 1.0, 0.0, *([0.0] * HISTORY))
_FARTHEST = 20.0  # what stands for log(alpha/sigma) = +-infinity on the clock of a noise path


class StepTable(NamedTuple):
    """The table as arrays: n rows, and the marginals at the n evaluations and at the end."""

    t: np.ndarray  # [n + 1]
    alpha: np.ndarray  # [n + 1]
    sigma: np.ndarray  # [n + 1]
    keep: np.ndarray  # [n, 2], of e and x0_hat
    e: np.ndarray  # [n, 3 + history], one column for each of COLUMNS
    b: np.ndarray  # [n, 3 + history]
    over: np.ndarray  # [n, 2], log(alpha/sigma) between which z is the noise; NaN: of no path
    start: np.ndarray  # [2]: e <- start[0] x + start[1] z before the first row (churn)

    @property
    def nfe(self) -> int:
        """Number of network evaluations."""
        return self.e.shape[0]

    @property
    def history(self) -> int:
        """How many evaluations are remembered."""
        return self.e.shape[1] - len(("e", "b", "z"))


class Row(NamedTuple):
    """One evaluation at a node, what is kept of it, and how the registers follow.

    over: the nodes between which the row's z is the noise of the process; None: this row's node and
      the next one's. Noise that leads back, as churn does, belongs to no path: `OFF_PATH`.
    """

    at: Node
    e: np.ndarray
    b: np.ndarray = np.array(_UNCHANGED_B)
    keep: tuple[float, float] = (0.0, 1.0)
    over: tuple[Node, Node] | None = None


OFF_PATH = (Node(*[np.nan] * 5),) * 2


def linear(
    *, e: float = 0.0, b: float = 0.0, z: float = 0.0, m: Sequence[float] = ()
) -> np.ndarray:
    """Coefficients of one register's update, in the order of COLUMNS; m is newest first."""
    return np.array([e, b, z, *m, *([0.0] * (HISTORY - len(m)))], np.float64)


def keep_eps(at: Node) -> tuple[float, float]:
    """Remember eps_hat = (x - alpha x0_hat) / sigma."""
    return 1 / at.sigma, -at.alpha / at.sigma


def keep_velocity(at: Node) -> tuple[float, float]:
    """Remember dx/dt = alpha' x0_hat + sigma' eps_hat on the probability-flow ODE."""
    p = at.dsigma / at.sigma
    return p, at.dalpha - at.alpha * p


def denoise_to_data(at: Node) -> Row:
    """The last step to sigma = 0, where every solver takes x0_hat itself."""
    return Row(at, e=linear(m=(1.0,)))


def make_table(
    rows: Sequence[Row], end: Node, start: tuple[float, float] = (1.0, 0.0)
) -> StepTable:
    """Stack rows; `end` is the node at which the last row leaves e."""
    points = [*(row.at for row in rows), end]
    spans = [
        row.over or (row.at, following) for row, following in zip(rows, points[1:], strict=True)
    ]
    clock = np.array([[a.logsnr_half, b.logsnr_half] for a, b in spans])
    return StepTable(
        t=np.array([p.t for p in points]),
        alpha=np.array([p.alpha for p in points]),
        sigma=np.array([p.sigma for p in points]),
        keep=np.array([row.keep for row in rows]),
        e=np.stack([row.e for row in rows]),
        b=np.stack([row.b for row in rows]),
        over=np.clip(clock, -_FARTHEST, _FARTHEST),
        start=np.array(start, np.float64),
    )


def join(first: StepTable, second: StepTable) -> StepTable:
    """One table after another, which starts where the first ends.

    The second's own start (its churn) becomes part of the first's last row. The history goes on, so
    the second must not look further back than its own rows, as no solver does.
    """
    scale, churn = second.start
    if not np.allclose([first.alpha[-1], first.sigma[-1]], marginal_before(second), rtol=1e-9):
        raise ValueError("join: the second table does not start where the first one ends")
    e, over = first.e.copy(), first.over.copy()
    e[-1] *= scale
    if churn:
        e[-1, NOISE] = np.hypot(e[-1, NOISE], churn)
        over[-1] = np.nan
    merged = {
        name: np.concatenate([getattr(first, name)[: first.nfe], getattr(second, name)])
        for name in ("t", "alpha", "sigma", "keep", "b")
    }
    return StepTable(
        **merged,
        e=np.concatenate([e, second.e]),
        over=np.concatenate([over, second.over]),
        start=first.start,
    )


def noised_up(table: StepTable, high: Node, *, noise_scale: float = 1.0) -> StepTable:
    """The table with forward noise in its last row, from where it ended up to the node `high`."""
    scale = high.alpha / table.alpha[-1]
    added = noise_scale * (high.sigma**2 - (scale * table.sigma[-1]) ** 2) ** 0.5
    e, over = table.e.copy(), table.over.copy()
    e[-1] *= scale
    e[-1, NOISE] = np.hypot(e[-1, NOISE], added)
    over[-1] = np.nan  # noise that leads back belongs to no path
    ends = {
        name: np.append(getattr(table, name)[:-1], getattr(high, name))
        for name in ("t", "alpha", "sigma")
    }
    return table._replace(e=e, over=over, **ends)


def in_one_register(table: StepTable) -> StepTable:
    """The same table without noise, remembering every x0_hat and making no use of b.

    Each evaluation point is a combination of the start and of every earlier x0_hat; each row takes
    the share of the start from the point before. Raises ValueError for a table that adds noise, or
    with a point before the last that has no share of the start.
    """
    n, columns = table.nfe, table.e.shape[1]
    if table.start[1] or table.e[:, NOISE].any() or table.b[:, NOISE].any():
        raise ValueError("in_one_register: the table adds noise")
    unit = np.eye(n + 1)  # of the start and of each x0_hat
    registers = np.zeros((columns, n + 1))
    registers[0] = unit[0]
    rows = np.zeros((n, NOISE + 1 + n))
    for k in range(n):
        before = registers[0].copy()
        if not before[0]:
            raise ValueError(f"in_one_register: row {k} has no share of the start")
        kept = table.keep[k] @ np.stack([before, unit[k + 1]])
        registers[NOISE + 1 :] = np.stack([kept, *registers[NOISE + 1 : -1]])
        registers[0], registers[1] = table.e[k] @ registers, table.b[k] @ registers
        rows[k, 0] = registers[0, 0] / before[0]
        rest = registers[0] - rows[k, 0] * before
        rows[k, NOISE + 1 : NOISE + 2 + k] = rest[k + 1 : 0 : -1]  # newest first
    keep = np.tile([0.0, 1.0], (n, 1))
    return table._replace(e=rows, b=np.zeros_like(rows), keep=keep)


def marginal_before(table: StepTable) -> tuple[float, float]:
    """alpha and sigma of the state that sampling starts from, before the table's own churn."""
    scale, churn = table.start
    return table.alpha[0] / scale, (table.sigma[0] ** 2 - churn**2) ** 0.5 / scale


def without_last_noise(table: StepTable) -> StepTable:
    """The same table, ending in the mean of its last step."""
    e = table.e.copy()
    e[-1, NOISE] = 0.0
    return table._replace(e=e)


def pad(table: StepTable, rows: int) -> StepTable:
    """The table with rows added that are never run, so that `sample_bounded` compiles once."""
    if table.nfe > rows:
        raise ValueError(f"a table of {table.nfe} rows does not fit into {rows}")
    extra = rows - table.nfe
    padded = {
        name: np.concatenate([leaf, np.repeat(leaf[-1:], extra, axis=0)])
        for name, leaf in table._asdict().items()
        if name != "start"
    }
    return StepTable(**padded, start=table.start)


def describe(table: StepTable) -> str:
    """The table as text: each row's evaluation point, what is kept, and its updates as formulas."""
    lines = [f"{table.nfe} network evaluations"]
    if tuple(table.start) != (1.0, 0.0):
        lines.append(f"      e <- {table.start[0]:.5g} x {table.start[1]:+.5g} z")
    for k in range(table.nfe):
        lines.append(
            f"{k:4d}  t={table.t[k]:<9.4g} alpha={table.alpha[k]:<9.4g}"
            f" sigma={table.sigma[k]:<9.4g} e <- {_formula(table.e[k])}"
        )
        if _formula(table.b[k]) != "+1 b":
            lines.append(f"{'':>48} b <- {_formula(table.b[k])}")
        if tuple(table.keep[k]) != (0.0, 1.0):
            lines.append(f"{'':>48} m0 = {_formula(table.keep[k], ('e', 'x0_hat'))}")
    return "\n".join(lines)


def _formula(coefficients: np.ndarray, names: Sequence[str] = ("e", "b", "z")) -> str:
    names = *names, *(f"m{j}" for j in range(len(coefficients) - len(names)))
    terms = [f"{c:+.5g} {name}" for c, name in zip(coefficients, names, strict=True) if c]
    return " ".join(terms) or "0"
