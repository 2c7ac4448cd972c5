"""Measured convergence order of every solver on every process, against exact flows and moments."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.diffusion import (
    EDM,
    VE,
    FlowMatching,
    Shifted,
    SubVP,
    Trigonometric,
    VPCosine,
    VPDiscrete,
    VPLinear,
    ZeroTerminalSNR,
    linear_betas,
)
from scorediff.solvers import (
    ancestral,
    ddim,
    dpmpp_multistep,
    euler,
    euler_maruyama,
    heun,
    karras,
    logsnr,
    make_grid,
    sample,
    uniform,
)
from scorediff.solvers.moments import gaussian_moments
from tests.oracles import bed_b, testbed

PROCESSES = {
    "vp_linear": VPLinear(),
    "vp_cosine": VPCosine(),
    "vp_discrete": VPDiscrete(betas=linear_betas()),
    "sub_vp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": FlowMatching(),
    "trigonometric": Trigonometric(),
    "shifted_flow": Shifted(process=FlowMatching(), shift=3.0),
    "zero_snr": ZeroTerminalSNR(process=VPLinear()),
}
FINAL_OFF = {"lower_order_final": False}  # the last first-order step would hide the order
LOGSNR_SOLVERS = {
    "ddim": (ddim, 1),
    "dpmpp_1": (partial(dpmpp_multistep, order=1, **FINAL_OFF), 1),
    "dpmpp_2": (partial(dpmpp_multistep, order=2, **FINAL_OFF), 2),
    "dpmpp_3": (partial(dpmpp_multistep, order=3, **FINAL_OFF), 3),
}
CLOCK_SOLVERS = {"euler": (euler, 1), "heun": (heun, 2)}
ROWS = (240, 480)
KEYS = 64


@jax.jit
def run(table, x):
    """One compilation per number of rows: the bed reads (alpha, sigma) from the table."""
    bed = bed_b()

    def denoise(x, k, cond=None):
        k = k.astype(int)
        return bed.x0_hat(x, table.alpha[k], table.sigma[k])

    rows = table._replace(t=jnp.arange(table.t.shape[0]) * 1.0)
    return sample(denoise, rows, x, keys=jax.random.split(jax.random.key(0), KEYS))


def span(process, high=-4.6, low=3.0):
    """Times of log(alpha/sigma) = -4.6, where x0_hat is still flat, as in use, and 3."""
    return process.host_when(np.exp([high, low]), np.ones(2))


def error(process, solver, spacing, rows):
    start, end = span(process)
    per_step = solver(make_grid(process, spacing, 1, to_data=False, t_start=start, t_end=end)).nfe
    grid = make_grid(process, spacing, rows // per_step, to_data=False, t_start=start, t_end=end)
    table = jax.tree.map(jnp.asarray, solver(grid))
    assert table.nfe == rows
    first, last = grid.nodes[0], grid.nodes[-1]
    x = jnp.asarray(first.sigma * testbed()["z_B_big"])
    exact = bed_b().flow(np.asarray(x), (first.alpha, first.sigma), (last.alpha, last.sigma))
    return float(np.sqrt(np.mean((np.asarray(run(table, x)) - exact) ** 2)))


def slope(errors):
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize("process", PROCESSES)
def test_order_of_the_ode_solvers(process, x64):
    clock_spacing = karras if process in ("edm", "ve") else uniform
    cases = {name: (*case, logsnr) for name, case in LOGSNR_SOLVERS.items()}
    cases |= {name: (*case, clock_spacing) for name, case in CLOCK_SOLVERS.items()}
    for name, (solver, order, spacing) in cases.items():
        errors = [error(PROCESSES[process], solver, spacing, rows) for rows in ROWS]
        assert abs(slope(errors) - order) < 0.1, (name, errors, slope(errors))


def moment_errors(table):
    """Errors of mean and variance, summed over data variances, so that no lucky one cancels."""
    total = np.zeros(2)
    for variance in (0.1, 0.8, 3.0):
        exact = table.alpha[-1] * 0.7, table.alpha[-1] ** 2 * variance + table.sigma[-1] ** 2
        found = gaussian_moments(table, 0.7, variance)
        total += np.abs(np.array([found.mean[-1], found.variance[-1]]) - exact)
    return total


SDE_SOLVERS = {
    "ancestral": ancestral,
    "ddim_eta_1": partial(ddim, eta=1.0),
    "ddim_eta_half": partial(ddim, eta=0.5),
    "euler_maruyama": euler_maruyama,
}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", SDE_SOLVERS)
def test_weak_order_of_the_sde_solvers(process, name):
    process = PROCESSES[process]
    start, end = span(process, high=-3.0, low=1.0)  # later, leading errors nearly cancel
    errors = []
    for n in (400, 800):
        grid = make_grid(process, logsnr, n, to_data=False, t_start=start, t_end=end)
        errors.append(moment_errors(SDE_SOLVERS[name](grid)))
    # a mean that is exact at any step size, as the posterior's is, has no slope
    rough, fine = (e[errors[0] > 1e-9] for e in errors)
    assert rough.size
    assert np.all(np.abs(np.log2(rough / fine) - 1) < 0.1), errors
