"""Singlestep DPM-Solvers: measured orders, invariants, equivalences and mistakes."""

import itertools
from functools import partial

import numpy as np
import pytest

from scorediff.diffusion import FlowMatching, VPLinear
from scorediff.errors import UserError
from scorediff.solvers.ancestral_sde import dpmpp_2s_ancestral
from scorediff.solvers.ddim import ddim
from scorediff.solvers.grid import make_grid
from scorediff.solvers.moments import gaussian_moments
from scorediff.solvers.noise import check_path
from scorediff.solvers.sample import Sampler
from scorediff.solvers.singlestep import dpm_singlestep, dpm_singlestep_mixed
from scorediff.solvers.spacing import karras, logsnr, quadratic, uniform
from scorediff.solvers.table import NOISE
from tests.solvers.test_multistep import (
    PROCESSES,
    check_carries_a_point,
    check_equal,
    check_invariants,
    measured_order,
    span,
)

ORDERS = {
    "1": (partial(dpm_singlestep, order=1), 1),
    "2": (dpm_singlestep, 2),
    "2_taylor": (partial(dpm_singlestep, form="taylor"), 2),
    "2_eps": (partial(dpm_singlestep, prediction="eps"), 2),
    "2_uniform": (partial(dpm_singlestep, inner=uniform), 2),
    "3": (partial(dpm_singlestep, order=3), 3),
    "3_taylor": (partial(dpm_singlestep, order=3, form="taylor"), 3),
    "3_eps": (partial(dpm_singlestep, order=3, prediction="eps"), 3),
}
STEPS = {1: (40, 80), 2: (40, 80), 3: (60, 120)}  # by order


def threes(grid, **options):
    return dpm_singlestep_mixed(grid, orders=(3,) * (len(grid) // 3), **options)


MIXED = {
    "mixed_3": (threes, 3),
    "mixed_3_stages": (partial(threes, stages="midpoint"), 3),
    "mixed_2": (partial(dpm_singlestep_mixed, order=2), 2),
}


@pytest.mark.parametrize("process", PROCESSES)
def test_orders_are_those_of_theory(process, x64):
    for name in ORDERS if process == "vp" else ("2", "3_eps"):
        solver, order = ORDERS[name]
        found = measured_order(PROCESSES[process], solver, STEPS[order])
        assert abs(found - order) < 0.1, (name, found)
    for name in MIXED if process == "vp" else ("mixed_3",):
        solver, order = MIXED[name]
        found = measured_order(PROCESSES[process], solver, (180, 360))
        assert abs(found - order) < 0.1, (name, found)


# --- invariants

ON_DATA = {
    "2": dpm_singlestep,
    "3_taylor": partial(dpm_singlestep, order=3, form="taylor"),
    "2_eta": partial(dpm_singlestep, eta=1.0),
    "3_eta": partial(dpm_singlestep, order=3, eta=0.5),
    "mixed": dpm_singlestep_mixed,
    "mixed_2": partial(dpm_singlestep_mixed, order=2, form="taylor"),
}
ON_EPS = {
    "2_eps": partial(dpm_singlestep, prediction="eps"),
    "3_eps": partial(dpm_singlestep, prediction="eps", order=3, form="taylor"),
    "mixed_eps": partial(dpm_singlestep_mixed, prediction="eps"),
}


@pytest.mark.parametrize("process", PROCESSES)
def test_tables_carry_alpha_and_sigma_along(process):
    process = PROCESSES[process]
    start, end = span(process, -4.6, 3.0)
    cases = itertools.product((uniform, karras), (2, 7), (True, False))
    for spacing, n, to_data in cases:
        grid = make_grid(process, spacing, n, to_data=to_data, t_start=start, t_end=end)
        for solver in ON_DATA.values():
            check_invariants(solver(grid))
        for solver in ON_EPS.values():
            check_carries_a_point(solver(grid))


def test_flow_starts_at_pure_noise():
    """alpha = 0 at the first node: that step is a single evaluation, and all is finite."""
    grid = make_grid(FlowMatching(), uniform, 6)
    for solver in ON_DATA.values():
        table = solver(grid)
        assert all(np.all(np.isfinite(leaf)) for leaf in (table.e, table.b))
        check_invariants(table)
    assert dpm_singlestep(grid).nfe == 1 + 4 * 2 + 1
    assert dpm_singlestep_mixed(grid).nfe == 6


def test_the_sde_solver_ends_in_the_data():
    grid = make_grid(VPLinear(), logsnr, 80, t_end=1e-4)
    table = dpm_singlestep(grid, eta=1.0)
    check_path(table)
    found = gaussian_moments(table, 0.7, 0.3)
    np.testing.assert_allclose([found.mean[-1], found.variance[-1]], [0.7, 0.3], rtol=0.02)
    assert np.count_nonzero(table.e[:, NOISE]) == 78  # not in the steps to the last node and data


# --- what is equal to what


def grid_of(n=8, **options):
    return make_grid(VPLinear(), quadratic, n, **{"t_end": 0.01, **options})


def test_order_one_is_ddim():
    for n, prediction in itertools.product((1, 5), ("x0", "eps")):
        for solver in (dpm_singlestep, dpm_singlestep_mixed):
            check_equal(solver(grid_of(n), order=1, prediction=prediction), ddim(grid_of(n)))


def test_order_two_is_that_of_k_diffusion():
    grid = grid_of()
    check_equal(dpm_singlestep(grid), dpmpp_2s_ancestral(grid, eta=0.0))
    noisy = dpm_singlestep(grid, eta=0.6), dpmpp_2s_ancestral(grid, eta=0.6)
    rows = slice(0, -3)  # only theirs adds noise in the step to the last node
    for name in ("e", "b", "t", "over"):
        ours, theirs = (getattr(table, name)[rows] for table in noisy)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def test_mixed_steps_on_equal_intervals_are_the_papers():
    for order, to_data in itertools.product((2, 3), (False, True)):
        fine = make_grid(VPLinear(), logsnr, 4 * order + to_data, to_data=to_data)
        coarse = make_grid(VPLinear(), logsnr, 4 + to_data, to_data=to_data)
        orders = (order,) * 4 + (1,) * to_data
        check_equal(dpm_singlestep_mixed(fine, orders=orders), dpm_singlestep(coarse, order=order))


@pytest.mark.parametrize(
    ("n", "order", "starts"),
    [
        (9, 3, [0, 3, 6, 8]),
        (10, 3, [0, 3, 6, 9]),
        (11, 3, [0, 3, 6, 9]),
        (3, 3, [0, 2]),
        (7, 2, [0, 2, 4, 6]),
        (6, 2, [0, 2, 4]),
    ],
)
def test_tail_of_the_mixed_solver(n, order, starts):
    table = dpm_singlestep_mixed(grid_of(n, to_data=False), order=order)
    assert np.flatnonzero(table.e[:, 0]).tolist() == starts  # later rows start from register b
    longer = dpm_singlestep_mixed(grid_of(n + 1), order=order)  # one more step, to data
    assert np.flatnonzero(longer.e[:, 0]).tolist() == starts
    assert table.nfe == n


def test_a_budget_is_spent():
    for nfe in (1, 2, 7, 20):
        assert Sampler(solver=dpm_singlestep_mixed, nfe=nfe).table(VPLinear()).nfe == nfe
        assert Sampler(solver=dpm_singlestep, nfe=nfe).table(VPLinear()).nfe == nfe - 1 + nfe % 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda g: dpm_singlestep(g, order=4), "order must be 1, 2 or 3, got 4"),
        (lambda g: dpm_singlestep(g, orders=(2, 2)), "names 2 steps, but the grid has 8"),
        (lambda g: dpm_singlestep(g, form="heun"), "heun"),
        (lambda g: dpm_singlestep(g, eta=-0.5), "-0.5"),
        (lambda g: dpm_singlestep_mixed(g, orders=(3, 3)), "add up to 6, but the grid has 8"),
        (lambda g: dpm_singlestep_mixed(g, orders=(3, 3, 2)), "step to data"),
        (lambda g: dpm_singlestep_mixed(g, stages="heun"), "stages must be one of"),
        (lambda g: dpm_singlestep_mixed(g, prediction="score"), "'score'"),
        (lambda g: dpm_singlestep_mixed(pure_noise(), prediction="eps"), "alpha > 0"),
        (lambda g: dpm_singlestep_mixed(pure_noise(), orders=(3, 1, 1)), "alpha=0"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(UserError, match=words):
        make(grid_of())


def pure_noise():
    return make_grid(FlowMatching(), uniform, 5)
