"""Runge-Kutta solvers: measured orders on a mixture, invariants, churn, the step to data."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.diffusion import EDM, VE, FlowMatching, SubVP, VPLinear
from scorediff.errors import UserError
from scorediff.solvers import ddim, logsnr, make_grid, uniform
from scorediff.solvers.moments import transport
from scorediff.solvers.noise import check_path
from scorediff.solvers.runge_kutta import dpm2, euler, heun, midpoint, rk3, rk4
from scorediff.solvers.sample import sample_bounded
from scorediff.solvers.table import pad
from tests.oracles import bed_a, testbed

PROCESSES = {
    "vp": VPLinear(),
    "sub_vp": SubVP(),
    "ve": VE(t_min=1e-3),
    "edm": EDM(),
    "flow": FlowMatching(t_max=0.98),  # logsnr spacing needs alpha > 0
}
SOLVERS = {
    "euler": (euler, 1),
    "midpoint": (midpoint, 2),
    "heun": (heun, 2),
    "ralston": (partial(heun, alpha=2 / 3), 2),
    "dpm2": (dpm2, 2),
    "rk3": (rk3, 3),
    "rk4": (rk4, 4),
    "three_eighths": (partial(rk4, rule="three_eighths"), 4),
}
CHURNING = {"euler": euler, "heun": heun, "dpm2": dpm2}
HIGH, LOW = -2.0, 1.0  # log(alpha/sigma) between which orders are measured
ROWS, POINTS = 384, 32


@jax.jit
def run(table, rows, x):
    """One compilation for every solver, process and number of steps."""

    def denoise(x, k, cond=None):
        k = k.astype(int)
        return bed_a().x0_hat(x, table.alpha[k], table.sigma[k])

    numbered = table._replace(t=jnp.arange(table.t.shape[0]) * 1.0)
    keys = jax.random.split(jax.random.key(0), x.shape[0])
    return sample_bounded(denoise, numbered, rows, x, keys=keys)


def unit_marginal(logsnr_half):
    norm = np.hypot(np.exp(logsnr_half), 1)
    return np.exp(logsnr_half) / norm, 1 / norm


@cache
def exact_end():
    """The exact flow from HIGH to LOW, as x / sqrt(alpha^2 + sigma^2): the same on any process."""
    return bed_a().flow(testbed()["z_A_big"][:POINTS], unit_marginal(HIGH), unit_marginal(LOW))


def log_error(process, solver, n):
    """Mean over the points of log2 |error|, so that slopes are means of each point's own slope.

    The RMS would hide the order behind a few points near a separatrix of the mixture, the median
    behind one whose leading error happens to cancel.
    """
    start, end = process.host_when(np.exp([HIGH, LOW]), np.ones(2))
    grid = make_grid(process, logsnr, n, to_data=False, t_start=start, t_end=end)
    table, first, last = solver(grid), grid.nodes[0], grid.nodes[-1]
    x = testbed()["z_A_big"][:POINTS] * np.hypot(first.alpha, first.sigma)
    found = run(jax.tree.map(jnp.asarray, pad(table, ROWS)), table.nfe, jnp.asarray(x))
    off = np.asarray(found) - exact_end() * np.hypot(last.alpha, last.sigma)
    return np.mean(np.log2(np.linalg.norm(off, axis=-1)))


@pytest.mark.parametrize("process", PROCESSES)
def test_order(process, x64):
    # in the straight frame a run is the same on every process, but for its scale
    frames = ("clock", "straight") if process == "sub_vp" else ("clock",)
    for name, (solver, order) in SOLVERS.items():
        for frame in frames:
            framed = partial(solver, frame=frame)
            coarse, fine = (log_error(PROCESSES[process], framed, n) for n in (48, 96))
            assert abs(coarse - fine - order) < 0.1, (name, frame, coarse, fine)


def grid_of(process, n=6, **options):
    return make_grid(process, logsnr, n, **options)


def assert_same(first, second):
    for name, a, b in zip(first._fields, first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_straight_frame_carries_the_marginal(process, name):
    table = SOLVERS[name][0](grid_of(PROCESSES[process]), frame="straight")
    moments = transport(table)
    np.testing.assert_allclose(moments.mean, table.alpha, rtol=1e-12)
    np.testing.assert_allclose(moments.variance, table.sigma**2, rtol=1e-11, atol=1e-25)


@pytest.mark.parametrize("process", ["edm", "flow"])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_clock_frame_carries_a_straight_marginal(process, name):
    table = SOLVERS[name][0](grid_of(PROCESSES[process]))
    moments = transport(table)
    np.testing.assert_allclose(moments.mean, table.alpha, rtol=1e-12)
    np.testing.assert_allclose(moments.variance, table.sigma**2, rtol=1e-11, atol=1e-25)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_frames_are_one_on_edm(name):
    clock, straight = (SOLVERS[name][0](grid_of(EDM()), frame=f) for f in ("clock", "straight"))
    assert_same(clock, straight)


@pytest.mark.parametrize("process", PROCESSES)
def test_straight_euler_is_ddim(process):
    grid = grid_of(PROCESSES[process])
    found, expected = euler(grid, frame="straight"), ddim(grid)
    # the one keeps eps_hat, the other x0_hat: compare what they do to x and x0_hat
    to_x = found.e[:, 0] + found.e[:, 3] * found.keep[:, 0]
    to_x0 = found.e[:, 3] * found.keep[:, 1]
    np.testing.assert_allclose(to_x, expected.e[:, 0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(to_x0, expected.e[:, 3], rtol=1e-12, atol=1e-12)


def test_heun_with_its_stage_in_the_middle_is_the_midpoint_rule():
    grid = grid_of(VPLinear())
    assert_same(heun(grid, alpha=0.5), midpoint(grid))


def test_evaluations_a_step():
    for name, stages in {
        "euler": 1,
        "midpoint": 2,
        "heun": 2,
        "dpm2": 2,
        "rk3": 3,
        "rk4": 4,
    }.items():
        solver = SOLVERS[name][0]
        assert solver(grid_of(VPLinear(), 5)).nfe == 4 * stages + 1
        assert solver(grid_of(VPLinear(), 5, to_data=False)).nfe == 5 * stages
        assert solver(grid_of(VPLinear(), 1)).nfe == 1


def test_the_last_step_to_data():
    path = FlowMatching(t_min=0.0)
    grid = make_grid(path, uniform, 4, t_end=0.25)
    denoised, stepped = heun(grid), heun(grid, last_step="euler")
    np.testing.assert_allclose(transport(stepped).mean, transport(denoised).mean, atol=1e-12)
    full = heun(grid, last_step="full")
    assert (denoised.nfe, stepped.nfe, full.nfe) == (7, 7, 8)
    assert full.sigma[-2:].tolist() == [0.0, 0.0]  # its last stage is at data
    np.testing.assert_allclose(transport(full).mean[-1], 1.0, rtol=1e-12)
    # the same as a grid that ends at t = 0, not in data
    assert_same(full, heun(make_grid(path, uniform, 4, to_data=False, t_end=0.0), last_step="full"))
    with pytest.raises(UserError, match="VE still has sigma"):
        heun(grid_of(VE(t_min=1e-3)), last_step="full")
    with pytest.raises(UserError, match="infinite sigma'"):
        heun(grid_of(VPLinear()), last_step="full")
    midpoint(grid_of(VPLinear()), last_step="full")  # has no stage at data


def test_pure_noise():
    grid = make_grid(FlowMatching(), uniform, 4)
    for name in ("euler", "midpoint", "heun", "rk3", "rk4"):
        table = SOLVERS[name][0](grid)
        assert np.isfinite(table.e).all() and np.isfinite(table.keep).all()
    for solver in (partial(midpoint, frame="straight"), dpm2):
        with pytest.raises(UserError, match="alpha = 0 at t=1"):
            solver(grid)


@pytest.mark.parametrize("name", CHURNING)
@pytest.mark.parametrize("process", PROCESSES)
def test_churn_keeps_the_marginal(name, process):
    plain = CHURNING[name](grid_of(PROCESSES[process]), frame="straight")
    table = CHURNING[name](grid_of(PROCESSES[process]), frame="straight", churn=2.0)
    moments, first = transport(table), np.flatnonzero(~np.isin(table.t, plain.t))
    np.testing.assert_allclose(moments.mean, table.alpha, rtol=1e-12)
    np.testing.assert_allclose(moments.variance, table.sigma**2, rtol=1e-11, atol=1e-25)
    assert first[0] == 0 and table.nfe == plain.nfe
    np.testing.assert_allclose(
        table.sigma[0] / table.alpha[0], (1 + 2 / 6) * plain.sigma[0] / plain.alpha[0]
    )
    with pytest.raises(UserError, match="churn"):
        check_path(table)


def test_churn_bounds_and_noise():
    grid = grid_of(EDM())
    within = [1.0 <= node.sigma <= 10.0 for node in grid.nodes[:-1]]
    table = euler(grid, churn=2.0, churn_min=1.0, churn_max=10.0, churn_noise=1.5)
    ratio = table.sigma[:-1] / [node.sigma for node in grid.nodes[:-1]]
    np.testing.assert_allclose(ratio, np.where(within, 4 / 3, 1.0))
    raised = np.flatnonzero(within)
    sigma = np.array([node.sigma for node in grid.nodes])[raised]
    np.testing.assert_allclose(table.e[raised - 1, 2], 1.5 * np.sqrt(16 / 9 - 1) * sigma)
    assert_same(euler(grid, churn=2.0, churn_min=1e3), euler(grid))
    # the gain is limited
    assert np.isclose(euler(grid, churn=1e3).sigma[0] / grid.nodes[0].sigma, np.sqrt(2))


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (partial(heun, alpha=0.0), "alpha must be in"),
        (partial(heun, frame="sigma"), "frame must be one of clock, straight, got 'sigma'"),
        (partial(rk4, rule="ralston"), "rule must be one of classic, three_eighths"),
        (partial(rk3, last_step="x0"), "last_step must be one of denoise, euler, full, got 'x0'"),
        (partial(dpm2, last_step="full"), "dpm2: last_step must be one of denoise, euler"),
        (partial(euler, churn=-1.0), "churn must not be negative, got -1"),
    ],
)
def test_mistakes_are_named(solver, message):
    with pytest.raises(UserError, match=message):
        solver(grid_of(EDM()))
