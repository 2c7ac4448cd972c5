"""Our tables against recorded runs of the field's own codes, in float64, on the exact test-beds.

tests/fixtures/solvers/recorded.npz holds the grid (t, alpha, sigma), the noise and the result of
runs of LuChengTHU/dpm-solver (52bc3fbc), NVlabs/edm (008a4e53) and openai/guided-diffusion: numbers
only, with the exact denoiser in the place of a network.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.diffusion import EDM, VPLinear
from scorediff.solvers import Grid, ancestral, ddim, dpmpp_multistep, heun, make_grid, sample
from scorediff.solvers import spacing as grids
from scorediff.solvers.grid import DATA, Node
from tests.oracles import FIXTURES, bed_a, bed_b, testbed

SOLVERS = {
    "dpmpp_multistep": dpmpp_multistep,
    "heun": heun,
    "ddim": ddim,
    "ancestral": ancestral,
}
BEDS = {"A": bed_a(), "B": bed_b()}


@functools.cache
def recorded():
    with np.load(FIXTURES / "solvers" / "recorded.npz", allow_pickle=False) as file:
        arrays = dict(file)
    return json.loads(arrays.pop("runs").tobytes()), arrays


def table_of(run):
    """Our table on the recorded grid; EDM's clock is sigma, so its derivatives are 0 and 1."""
    nodes = [Node(*row, 0.0, 1.0) for row in recorded()[1][run["key"] + "_grid"].tolist()]
    if nodes[-1].sigma < 1e-12:
        nodes[-1] = DATA
    process = EDM(t_min=0.0) if run["solver"] == "heun" else VPLinear()
    return SOLVERS[run["solver"]](Grid(process=process, nodes=tuple(nodes)), **run["args"])


@jax.jit
def x0_hat_a(x, alpha, sigma):
    return BEDS["A"].x0_hat(x, alpha, sigma)


@jax.jit
def x0_hat_b(x, alpha, sigma):
    return BEDS["B"].x0_hat(x, alpha, sigma)


def follow(run, table):
    """What the table says, row by row, with the recorded noise."""
    x0_hat = {"A": x0_hat_a, "B": x0_hat_b}[run["bed"]]
    is_heun = run["solver"] == "heun"

    def noise(k):  # EDM draws one row at the start of each step of two, the others at its end
        return recorded()[1][f"noise_{run['bed']}"][(k + 1) // 2 if is_heun else k]

    first = recorded()[1][run["key"] + "_grid"][0, 2] if is_heun else 1.0
    e = table.start[0] * first * testbed()[f"z_{run['bed']}"]
    if table.start[1]:
        e = e + table.start[1] * noise(-1)
    b, history = np.zeros_like(e), [np.zeros_like(e)] * 5
    for k in range(table.nfe):
        estimate = x0_hat(jnp.asarray(e), table.alpha[k], table.sigma[k])
        kept = table.keep[k, 0] * e + table.keep[k, 1] * np.asarray(estimate)
        history = [kept, *history[:4]]
        z = noise(k) if table.e[k, 2] else np.zeros_like(e)
        registers = np.stack([e, b, z, *history])
        e, b = (np.tensordot(row, registers, 1) for row in (table.e[k], table.b[k]))
    return e


@pytest.mark.parametrize("source", ["dpm_solver", "edm", "guided_diffusion"])
def test_tables_reproduce_the_original_codes(source, x64):
    runs = [run for run in recorded()[0] if run["source"] == source]
    assert len(runs) >= 20
    for run in runs:
        table = table_of(run)
        final = recorded()[1][run["key"] + "_final"]
        assert table.nfe == run["nfe"], run
        difference = np.abs(follow(run, table) - final).max() / np.abs(final).max()
        assert difference < 1e-9, (run, difference)


def test_the_loop_does_what_the_table_says(x64):
    """`sample` itself, compiled, on a recorded multistep run."""
    run = next(r for r in recorded()[0] if r["args"].get("order") == 2 and r["bed"] == "A")
    table = table_of(run)
    x = jnp.asarray(testbed()["z_A"])
    keys = jax.random.split(jax.random.key(0), len(x))
    rows = table._replace(t=np.arange(len(table.t)) * 1.0)

    def denoise(x, k, cond=None):
        k = k.astype(int)
        return x0_hat_a(x, jnp.asarray(table.alpha)[k], jnp.asarray(table.sigma)[k])

    found = sample(denoise, rows, x, keys=keys)
    np.testing.assert_allclose(found, recorded()[1][run["key"] + "_final"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spacing", ["logsnr", "uniform", "quadratic"])
def test_grids_are_those_of_dpm_solver(spacing):
    steps, skip = 10, getattr(grids, spacing)
    mine = [n.t for n in make_grid(VPLinear(), skip, steps, to_data=False).nodes]
    theirs = [
        recorded()[1][run["key"] + "_grid"][:, 0]
        for run in recorded()[0]
        if run["source"] == "dpm_solver" and run["nfe"] == steps
    ]
    assert min(np.abs(t - mine).max() for t in theirs) < 1e-13
