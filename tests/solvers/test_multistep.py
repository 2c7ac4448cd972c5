"""Multistep solvers: measured orders, invariants, equivalences and mistakes."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.diffusion import EDM, VE, FlowMatching, SubVP, VPLinear
from scorediff.errors import UserError
from scorediff.solvers.adams import deis, ipndm, lms, pndm
from scorediff.solvers.ddim import ancestral, ddim
from scorediff.solvers.dpm import dpm_multistep, dpmpp_multistep
from scorediff.solvers.exponential import phi
from scorediff.solvers.grid import Grid, make_grid
from scorediff.solvers.moments import gaussian_moments, propagate, transport
from scorediff.solvers.noise import check_path
from scorediff.solvers.sample import sample_bounded
from scorediff.solvers.spacing import karras, logsnr, quadratic, uniform
from scorediff.solvers.stochastic_adams import noisy_between, sa_solver
from scorediff.solvers.table import NOISE, pad
from scorediff.solvers.unipc import unipc
from tests.oracles import bed_b, testbed

PROCESSES = {
    "vp": VPLinear(),
    "sub_vp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": FlowMatching(),
}
FULL = {"lower_order_final": False}  # the last first-order step would hide the order
ORDERS = {
    "dpmpp_1": (partial(dpmpp_multistep, order=1, **FULL), 1),
    "dpmpp_2": (partial(dpmpp_multistep, **FULL), 2),
    "dpmpp_2_taylor": (partial(dpmpp_multistep, form="taylor", **FULL), 2),
    "dpmpp_3": (partial(dpmpp_multistep, order=3, **FULL), 3),
    "dpmpp_3_published": (
        partial(dpmpp_multistep, order=3, third_order="published", **FULL),
        2,
    ),
    "dpm_2": (partial(dpm_multistep, **FULL), 2),
    "dpm_2_taylor": (partial(dpm_multistep, form="taylor", **FULL), 2),
    "dpm_3": (partial(dpm_multistep, order=3, **FULL), 3),
    "unipc_1": (partial(unipc, order=1, **FULL), 2),
    "unipc_2_bh1": (partial(unipc, order=2, variant="bh1", **FULL), 3),
    "unipc_2": (partial(unipc, order=2, **FULL), 3),
    "unipc_2_eps": (partial(unipc, order=2, prediction="eps", **FULL), 3),
    "unipc_3": (partial(unipc, order=3, **FULL), 4),
    "unip_3": (partial(unipc, order=3, corrector=False, **FULL), 3),
    "unipc_2_vary": (partial(unipc, order=2, variant="vary_coeff", **FULL), 3),
    "unipc_2_vary_published": (
        partial(unipc, order=2, variant="vary_coeff_published", **FULL),
        1,
    ),
    "lms_2": (partial(lms, order=2), 2),
    "lms_3": (partial(lms, order=3), 3),
    "deis_t_2": (partial(deis, order=2), 2),
    "deis_t_3": (deis, 3),
    "deis_log_rho_4": (partial(deis, order=4, variable="log_rho"), 4),
    "ipndm": (ipndm, 2),  # its steps in rho are equal up to the next order only
    "pndm": (pndm, 2),
    "sa_3_4": (partial(sa_solver, tau=0.0, corrector_order=4, **FULL), 4),
    "sa_3_0": (partial(sa_solver, tau=0.0, corrector_order=0, **FULL), 3),
}
STEPS, BOUND = (200, 400), 512


@jax.jit
def run(table, rows, x):
    """One compilation for all: the bed reads (alpha, sigma) from the table."""

    def denoise(x, k, cond=None):
        k = k.astype(int)
        return bed_b().x0_hat(x, table.alpha[k], table.sigma[k])

    numbered = table._replace(t=jnp.arange(table.t.shape[0]) * 1.0)
    keys = jax.random.split(jax.random.key(0), x.shape[0])
    return sample_bounded(denoise, numbered, rows, x, keys=keys)


def span(process, high=-6.5, low=1.5):
    """Times of log(alpha/sigma) = -6.5, where a warm-up errs little, and 1.5."""
    return process.host_when(np.exp([high, low]), np.ones(2))


def flow_error(process, solver, steps):
    """RMS error at the end of the grid, against the exact flow of the Gaussian."""
    start, end = span(process)
    grid = make_grid(process, logsnr, steps, to_data=False, t_start=start, t_end=end)
    table = solver(grid)
    x = grid.nodes[0].sigma * testbed()["z_B_big"][:16]
    padded = jax.tree.map(jnp.asarray, pad(table, BOUND))
    ends = [(node.alpha, node.sigma) for node in (grid.nodes[0], grid.nodes[-1])]
    error = np.asarray(run(padded, table.nfe, jnp.asarray(x))) - bed_b().flow(x, *ends)
    return float(np.sqrt(np.mean(error**2)))


def measured_order(process, solver, steps):
    rough, fine = (flow_error(process, solver, n) for n in steps)
    return np.log(rough / fine) / np.log(steps[1] / steps[0])


# On one grid in lambda, processes differ only in the scale of x and in t: one of each kind will do.
ON_EVERY_PROCESS = ("dpmpp_3", "dpm_2", "unipc_2", "deis_t_3", "pndm", "sa_3_4")


@pytest.mark.parametrize("process", PROCESSES)
def test_orders_are_those_of_theory(process, x64):
    for name in ORDERS if process == "vp" else ON_EVERY_PROCESS:
        solver, order = ORDERS[name]
        found = measured_order(PROCESSES[process], solver, STEPS)
        assert abs(found - order) < 0.1, (name, found)


# --- invariants

ON_DATA = {
    "dpmpp_3": partial(dpmpp_multistep, order=3),
    "dpmpp_3_full": partial(dpmpp_multistep, order=3, **FULL),
    "dpmpp_3_published": partial(dpmpp_multistep, order=3, third_order="published"),
    "dpmpp_2_sde": partial(dpmpp_multistep, eta=1.0),
    "dpmpp_3_sde_half": partial(dpmpp_multistep, order=3, eta=0.5, form="taylor", **FULL),
    "unipc_4": partial(unipc, order=4, **FULL),
    "unipc_vary": partial(unipc, variant="vary_coeff"),
    "unipc_vary_published": partial(unipc, variant="vary_coeff_published"),
    "unip_2": partial(unipc, order=2, corrector=False),
    "sa": sa_solver,
    "sa_4_5": partial(sa_solver, tau=0.7, predictor_order=4, corrector_order=5, **FULL),
    "sa_between": partial(sa_solver, tau=noisy_between(0.05, 1.0)),
}
ON_EPS = {
    "dpm_3": partial(dpm_multistep, order=3, **FULL),
    "unipc_3_eps": partial(unipc, prediction="eps"),
    "unipc_bh1": partial(unipc, order=2, variant="bh1"),
    "lms": lms,
    "lms_extrapolated": partial(lms, extrapolate_to_data=True),
    "deis_t": deis,
    "deis_log_rho": partial(deis, variable="log_rho", order=4),
    "ipndm": partial(ipndm, extrapolate_to_data=True),
    "pndm": pndm,
    "pndm_extrapolated": partial(pndm, extrapolate_to_data=True),
}


def check_invariants(table):
    """Coefficients carry alpha x0 along, and variances add up to sigma^2."""
    seen = transport(table)
    np.testing.assert_allclose(seen.mean, table.alpha, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(seen.variance, table.sigma**2, rtol=1e-12, atol=1e-12)


def check_carries_a_point(table):
    """x = alpha x0 + sigma eps is carried along; variances would cancel where eps_hat is kept."""
    start = table.alpha[0] + table.sigma[0]
    seen = propagate(table, lambda k: (0.0, 1.0), start, 0.0)
    # eps_hat has weights up to sigma/alpha = 100 and is itself a difference divided by sigma
    np.testing.assert_allclose(seen.mean, table.alpha + table.sigma, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("process", PROCESSES)
def test_tables_carry_alpha_and_sigma_along(process):
    process = PROCESSES[process]
    start, end = span(process, -4.6, 3.0)
    cases = itertools.product((uniform, logsnr, karras), (1, 2, 8), (True, False))
    for spacing, n, to_data in cases:
        grid = make_grid(process, spacing, n, to_data=to_data, t_start=start, t_end=end)
        for solver in ON_DATA.values():
            check_invariants(solver(grid))
        for solver in ON_EPS.values():
            check_carries_a_point(solver(grid))


def test_flow_starts_at_pure_noise():
    """alpha = 0 at the first node: an infinite step in lambda, finite in every table on x0_hat."""
    grid = make_grid(FlowMatching(), uniform, 6)
    for solver in ON_DATA.values():
        table = solver(grid)
        assert all(np.all(np.isfinite(leaf)) for leaf in (table.e, table.b))
        check_invariants(table)


def test_noise_in_the_middle_of_an_extrapolation_is_on_the_path():
    grid = make_grid(VPLinear(), logsnr, 6)
    for solver in (partial(dpmpp_multistep, eta=1.0), partial(dpm_multistep, eta=1.0), sa_solver):
        table = solver(grid)
        check_path(table)
        assert np.all(table.e[:-1, NOISE] > 0)


# --- what is equal to what


def grid_of(n=9, **options):
    return make_grid(VPLinear(), quadratic, n, **{"t_end": 0.01, **options})


def check_equal(first, second):
    """The same updates, whether x0_hat or eps_hat is kept."""
    assert first.nfe == second.nfe
    for name in ("e", "b"):
        one, other = (_on_x0_hat(table, getattr(table, name)) for table in (first, second))
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)


def _on_x0_hat(table, update):
    """Rows in terms of e, b, z and the newest x0_hat, with what is older left as it is."""
    update = update.copy()
    of_e, of_x0 = table.keep.T
    update[:, 0] += update[:, 3] * of_e
    update[:, 3] *= of_x0
    return update


@pytest.mark.parametrize("process", PROCESSES)
def test_first_order_is_ddim(process):
    process = PROCESSES[process]
    start, end = span(process, -4.6, 3.0)
    grid = make_grid(process, logsnr, 7, t_start=start, t_end=end)
    for solver in (dpmpp_multistep, dpm_multistep, lms, deis, ipndm):
        check_equal(solver(grid, order=1), ddim(grid))
    check_equal(unipc(grid, order=1, corrector=False), ddim(grid))
    check_equal(dpmpp_multistep(grid, order=1, eta=1.0), ancestral(grid))


def test_deis_contains_dpm_solver_and_lms():
    grid = grid_of()
    check_equal(deis(grid, variable="rho", order=4), lms(grid))
    for order in (2, 3):
        found = deis(grid, variable="log_rho", order=order)
        check_equal(found, dpm_multistep(grid, order=order, form="taylor", **FULL))


def test_ipndm_is_lms_where_its_steps_are_equal():
    grid = make_grid(EDM(), uniform, 8)  # on this clock rho = t
    check_equal(ipndm(grid), lms(grid))
    step = make_grid(EDM(), uniform, 8, to_data=False)
    width = step.nodes[1].sigma - step.nodes[0].sigma
    for k, published in enumerate(([1], [3, -1], [23, -16, 5], [55, -59, 37, -9])):
        expected = width * np.array(published) / [1, 2, 12, 24][k]
        np.testing.assert_allclose(ipndm(step).e[k, 3 : 4 + k], expected, rtol=1e-12)


def test_lms_integrates_cubics_exactly():
    grid = grid_of(to_data=False)
    rho = np.array([node.sigma / node.alpha for node in grid.nodes])
    table = lms(grid)
    for k, power in itertools.product(range(3, 9), range(4)):
        exact = grid.nodes[k + 1].alpha * np.diff(rho[k : k + 2] ** (power + 1)) / (power + 1)
        found = table.e[k, 3:7] @ rho[[k, k - 1, k - 2, k - 3]] ** power
        np.testing.assert_allclose(found, exact[0], rtol=1e-9)


def test_deis_in_time_integrates_cubics_in_time():
    grid = grid_of(to_data=False)
    t = np.array([node.t for node in grid.nodes])
    table, (s, w) = deis(grid, order=4), np.polynomial.legendre.leggauss(50)
    for k, power in itertools.product(range(3, 9), range(4)):
        u = t[k] + (s + 1) / 2 * (t[k + 1] - t[k])
        m = grid.process.host(u)
        slope = (m.dsigma - m.sigma * m.dalpha / m.alpha) / m.alpha
        exact = grid.nodes[k + 1].alpha * np.sum(w * slope * u**power) / 2 * (t[k + 1] - t[k])
        found = table.e[k, 3:7] @ t[[k, k - 1, k - 2, k - 3]] ** power
        np.testing.assert_allclose(found, exact, rtol=1e-8)


def test_sa_solver_contains_unipc_and_the_sde_solvers():
    grid = grid_of()
    for order in (1, 2, 3, 4):
        found = sa_solver(grid, tau=0.0, predictor_order=order, corrector_order=order + 1, **FULL)
        check_equal(found, unipc(grid, order=order, variant="vary_coeff", **FULL))
    found = sa_solver(grid, tau=0.8, corrector_order=0)
    check_equal(found, dpmpp_multistep(grid, order=3, eta=0.64, form="taylor"))


def test_unipc_variants_are_one_where_three_values_are_used():
    grid = grid_of()
    orders = (1, 2, 3, 4, 3, 3, 4, 4, 1)
    tables = [unipc(grid, order=4, orders=orders, variant=v) for v in ("bh1", "bh2", "vary_coeff")]
    for name, other in itertools.product(("e", "b"), tables[1:]):
        rows = [getattr(table, name)[3:] for table in (tables[0], other)]
        np.testing.assert_allclose(*rows, rtol=1e-10, atol=1e-12)
    assert np.abs(tables[0].b[1] - tables[1].b[1]).max() > 1e-3  # they differ where two are


@pytest.mark.parametrize("solver", [partial(dpmpp_multistep, eta=0.5), unipc, sa_solver])
def test_solvers_on_x0_hat_do_not_depend_on_the_scale_of_x(solver):
    grid = grid_of()
    nodes = tuple(
        n._replace(alpha=1.0, sigma=n.sigma / n.alpha) if not n.is_data else n for n in grid.nodes
    )
    found, scaled = solver(grid), solver(Grid(process=grid.process, nodes=nodes))
    alpha, after = found.alpha[:-1, None], found.alpha[1:, None]
    of_x, rest = found.e[:, :1] * alpha / after, found.e[:, 2:] / after
    np.testing.assert_allclose(of_x, scaled.e[:, :1], rtol=1e-10)
    np.testing.assert_allclose(rest, scaled.e[:, 2:], rtol=1e-10, atol=1e-11)


def test_orders_may_be_given_one_by_one():
    grid = grid_of(7)
    check_equal(dpmpp_multistep(grid, order=3), dpmpp_multistep(grid, orders=(1, 2, 3, 3, 3, 2, 1)))
    check_equal(unipc(grid, order=2), unipc(grid, orders=(1, 2, 2, 2, 2, 2, 1)))


def test_pndm_makes_the_first_step_twice():
    grid = grid_of(5)
    table = pndm(grid)
    assert table.nfe == 6
    assert table.t[1] == table.t[2] == grid.nodes[1].t
    np.testing.assert_allclose(table.e[1, 3], table.e[1, 4], rtol=1e-12)
    assert np.count_nonzero(table.e[4, 3:]) == 4
    assert table.e[4, 6] == 0  # the evaluation that was made for the first step only


def test_phi_is_its_integral_on_both_sides():
    s, w = np.polynomial.legendre.leggauss(60)
    s, w = (s + 1) / 2, w / 2
    for k, h in itertools.product(range(1, 6), (-9.0, -2.001, -1.999, -0.1, 1e-8, 1.999, 2.001, 9)):
        exact = np.sum(w * np.exp(-h * (1 - s)) * s ** (k - 1)) / [1, 1, 2, 6, 24][k - 1]
        np.testing.assert_allclose(phi(k, h), exact, rtol=1e-12)


# --- stochastic solvers


@pytest.mark.parametrize("process", PROCESSES)
def test_sde_solvers_end_in_the_data(process):
    process = PROCESSES[process]
    start, end = span(process, -4.6, 4.5)
    grid = make_grid(process, logsnr, 60, t_start=start, t_end=end)
    for solver in (
        partial(dpmpp_multistep, eta=1.0),
        partial(dpmpp_multistep, order=3, eta=0.5),
        sa_solver,
        partial(sa_solver, tau=noisy_between(0.05, 5.0)),
    ):
        found = gaussian_moments(solver(grid), 0.7, 0.3)
        np.testing.assert_allclose([found.mean[-1], found.variance[-1]], [0.7, 0.3], rtol=0.02)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda g: dpmpp_multistep(g, order=4), "order must be 1 to 3, got 4"),
        (lambda g: dpmpp_multistep(g, form="heun"), "form must be one of midpoint, taylor.*heun"),
        (lambda g: dpmpp_multistep(g, third_order="diffusers_sde"), "eta=0"),
        (lambda g: dpmpp_multistep(g, eta=-1.0), "-1.0"),
        (lambda g: dpmpp_multistep(g, orders=(1, 2)), "names 2 steps, but the grid has 9"),
        (lambda g: unipc(g, orders=(1, 3, *[1] * 7)), r"orders\[1\]=3"),
        (lambda g: unipc(g, variant="bh3"), "bh3"),
        (lambda g: unipc(g, prediction="v"), "'v'"),
        (lambda g: deis(g, variable="sigma"), "sigma"),
        (lambda g: sa_solver(g, corrector_order=6), "corrector_order must be 0 to 5, got 6"),
        (lambda g: sa_solver(g, tau=lambda level: -2.0), "-2.0"),
        (lambda g: dpm_multistep(pure_noise()), "alpha > 0"),
        (lambda g: lms(pure_noise()), "FlowMatching"),
        (lambda g: pndm(pure_noise()), "t_start"),
        (lambda g: unipc(pure_noise(), variant="bh1"), "bh2"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(UserError, match=words):
        make(grid_of())


def pure_noise():
    return make_grid(FlowMatching(), uniform, 5)
