"""What the families share: the recorded files, the exact test-beds, and one compiled loop.

A family module has `replay(run, file) -> Replayed`: `run` is the run's dict of options, `file` its
`Recorded`. Most build a `StepTable` with scorediff's own solver on the recorded grid and call
`run_table`.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.data.toy import ExactDistribution, Gaussian, GaussianMixture
from scorediff.diffusion import EDM, FlowMatching, Process, VPLinear
from scorediff.solvers.grid import DATA, Grid, Node
from scorediff.solvers.sample import sample_bounded
from scorediff.solvers.table import StepTable, pad
from tests.oracles import tuples

TOLERANCE = 1e-9
ROWS = 512  # all tables are padded to multiples of this, so a bed compiles once


class Replayed(NamedTuple):
    """Our result [batch, dim] of a recorded run, and the network evaluations it took."""

    x: np.ndarray
    nfe: int


@dataclass(frozen=True, kw_only=True)
class Bed:
    """A test-bed: its exact distribution, starting noise [b, d] and noise table [n, b, d]."""

    distribution: ExactDistribution
    z: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One family's file: its runs and arrays, with the test-beds."""

    name: str
    meta: dict
    arrays: dict[str, np.ndarray]
    beds: dict[str, Bed]

    def bed(self, run: dict) -> Bed:
        return self.beds[run["testbed"]]

    def final(self, run: dict) -> np.ndarray:
        return self.arrays[f"final_{run['testbed']}"][run["row"]]

    def noise(self, run: dict) -> np.ndarray:
        """The draws of a run in the order that the original code made them, [draws, b, d]."""
        if "draws" in run:
            return self.arrays[run["draws"]]
        return self.bed(run).noise[run.get("noise_idx", [])]


def read(folder: Path, name: str) -> Recorded:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    meta = json.loads(arrays.pop("meta").tobytes())
    return Recorded(name=name, meta=meta, arrays=arrays, beds=read_beds(folder))


@functools.cache
def read_beds(folder: Path) -> dict[str, Bed]:
    with np.load(folder / "testbed.npz", allow_pickle=False) as file:
        a = dict(file)
    mixture = GaussianMixture(
        weights=tuples(a["A_weights"]),
        means=tuples(a["A_means"]),
        stds=tuples(a["A_stds"]),
        axes=tuples(a["A_eigvecs"]),
    )
    gaussian = Gaussian(
        mean=tuples(a["B_mean"]), stds=tuples(a["B_stds"]), axes=tuples(a["B_eigvecs"])
    )
    return {
        "A": Bed(distribution=mixture, z=a["z_A"], noise=a["noise_A"]),
        "B": Bed(distribution=gaussian, z=a["z_B"], noise=a["noise_B"]),
    }


# --- grids as recorded

VP, STRAIGHT, FLOW = VPLinear(), EDM(t_min=0.0, t_max=1e6), FlowMatching(t_min=0.0)


def recorded_grid(rows: np.ndarray, process: Process, *, derivatives: bool = False) -> Grid:
    """A Grid on recorded (t, alpha, sigma) [n, 3]; a node with sigma = 0 is data.

    With derivatives, d alpha/dt and d sigma/dt are the process's own at those times.
    """
    slopes = np.full((len(rows), 2), np.nan)
    if derivatives:
        slopes = np.stack(process.host(rows[:, 0])[2:], axis=-1)
    nodes = [
        DATA if row[2] < 1e-12 else Node(*row, *slope)
        for row, slope in zip(rows.tolist(), slopes.tolist(), strict=True)
    ]
    return Grid(process=process, nodes=tuple(nodes))


def straight_grid(sigmas: Sequence[float]) -> Grid:
    """Nodes at noise levels sigma with alpha = 1, on the clock t = sigma."""
    nodes = [DATA if s == 0 else Node(s, 1.0, s, 0.0, 1.0) for s in map(float, sigmas)]
    return Grid(process=STRAIGHT, nodes=tuple(nodes))


# --- the loop

Change = Callable[[jax.Array], jax.Array]


@functools.partial(jax.jit, static_argnames=("distribution", "change"))
def _loop(table, rows, x, noise, *, distribution, change):
    def denoise(x, k, cond=None):
        k = k.astype(int)
        return change(distribution.x0_hat(x, table.alpha[k], table.sigma[k]))

    def recorded(keys, stream, over, x):
        return noise[stream - 1]  # 0 is the start, k + 1 is row k

    numbered = table._replace(t=jnp.arange(table.t.shape[0]) * 1.0)
    keys = jax.random.split(jax.random.key(0), x.shape[0])
    return sample_bounded(denoise, numbered, rows, x, keys=keys, noise=recorded)


def unchanged(x0_hat: jax.Array) -> jax.Array:
    return x0_hat


def clipped(x0_hat: jax.Array) -> jax.Array:
    return jnp.clip(x0_hat, -1, 1)


def run_table(
    table: StepTable,
    bed: Bed,
    x: np.ndarray,
    noise: dict[int, np.ndarray] | None = None,
    *,
    change: Change = unchanged,
) -> Replayed:
    """Run a table through scorediff's own loop from x [b, d].

    noise: draws [b, d] by the row that uses them; -1 is the start. change: what is done to x0_hat.
    """
    bound = -(-table.nfe // ROWS) * ROWS
    draws = np.zeros((bound + 1, *x.shape))
    for row, draw in (noise or {}).items():
        draws[row + 1] = draw
    padded = jax.tree.map(jnp.asarray, pad(table, bound))
    out = _loop(
        padded, table.nfe, jnp.asarray(x), draws, distribution=bed.distribution, change=change
    )
    return Replayed(np.asarray(out), table.nfe)


def evaluations_differ(table: StepTable, recorded: np.ndarray) -> float:
    """Largest relative difference between our evaluation points and the recorded (alpha, sigma)."""
    ours = np.stack([table.alpha[:-1], table.sigma[:-1]], axis=-1)
    if ours.shape != recorded[:, 1:].shape:
        return float("inf")
    return float(np.max(np.abs(ours - recorded[:, 1:]) / np.maximum(1, np.abs(recorded[:, 1:]))))


def difference(ours: np.ndarray, final: np.ndarray) -> float:
    """max |ours - final| / max(1, max |final|); infinite where ours is not finite."""
    if not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours - final).max() / max(1.0, np.abs(final).max()))
