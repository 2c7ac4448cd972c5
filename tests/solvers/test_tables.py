"""Invariants of the tables, equivalences between solvers, and the one loop."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.diffusion import (
    EDM,
    VE,
    FlowMatching,
    SubVP,
    VPDiscrete,
    VPLinear,
    linear_betas,
)
from scorediff.errors import UserError
from scorediff.solvers import (
    Sampler,
    ancestral,
    ddim,
    dpmpp_multistep,
    euler,
    euler_maruyama,
    heun,
    karras,
    leading,
    logsnr,
    make_grid,
    quadratic,
    sample,
    sample_keys,
    sample_prior,
    trailing,
    uniform,
)
from scorediff.solvers.exponential import phi
from scorediff.solvers.grid import upward
from scorediff.solvers.moments import gaussian_moments, transport
from scorediff.solvers.table import describe, in_one_register
from tests.oracles import bed_a
from tests.solvers.catalogue import DETERMINISTIC, ROWS
from tests.solvers.test_order import PROCESSES, span

MARGINAL_SOLVERS = {
    "ddim": ddim,
    "ddim_eta": partial(ddim, eta=0.7),
    "ancestral": ancestral,
    "dpmpp_1": partial(dpmpp_multistep, order=1),
    "dpmpp_2": partial(dpmpp_multistep, order=2),
    "dpmpp_3": partial(dpmpp_multistep, order=3),
    "dpmpp_3_full": partial(dpmpp_multistep, order=3, lower_order_final=False),
}
CLOCK_SOLVERS = {
    "euler": euler,
    "heun": heun,
    "heun_churn": partial(heun, churn=10.0, churn_noise=1.0),
}


def check_invariants(table):
    seen = transport(table)
    np.testing.assert_allclose(seen.mean, table.alpha, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(seen.variance, table.sigma**2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", MARGINAL_SOLVERS)
def test_tables_carry_alpha_and_sigma_along(process, name):
    process = PROCESSES[process]
    start, end = span(process)
    for spacing, n, to_data in itertools.product(
        (uniform, logsnr, karras), (1, 2, 7, 20), (True, False)
    ):
        grid = make_grid(process, spacing, n, to_data=to_data, t_start=start, t_end=end)
        check_invariants(MARGINAL_SOLVERS[name](grid))


@pytest.mark.parametrize("name", CLOCK_SOLVERS)
@pytest.mark.parametrize("process", [EDM(), FlowMatching()])
def test_clock_solvers_are_exact_on_straight_processes(process, name):
    for n, to_data in itertools.product((1, 5, 18), (True, False)):
        check_invariants(CLOCK_SOLVERS[name](make_grid(process, uniform, n, to_data=to_data)))


def test_flow_starts_at_pure_noise():
    """alpha = 0 at the first node: an infinite step in logSNR, finite in every table."""
    for solver in (*MARGINAL_SOLVERS.values(), euler, heun):
        table = solver(make_grid(FlowMatching(), uniform, 6))
        assert all(np.all(np.isfinite(leaf)) for leaf in (table.e, table.b))
        check_invariants(table)


def check_equal(one, other, rtol=1e-9):
    """Tables that may remember different things do the same to Gaussians."""
    for variance in (0.0, 0.3, 2.0):
        mine, theirs = (gaussian_moments(table, 0.7, variance) for table in (one, other))
        np.testing.assert_allclose(mine.mean, theirs.mean, rtol=rtol, atol=1e-12)
        np.testing.assert_allclose(mine.variance, theirs.variance, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_equivalent_solvers_are_equal(process):
    process = PROCESSES[process]
    start, end = span(process)
    grid = make_grid(process, logsnr, 12, t_start=start, t_end=end)
    check_equal(ddim(grid), dpmpp_multistep(grid, order=1))
    check_equal(ddim(grid, eta=1.0), ancestral(grid))
    check_equal(euler_maruyama(grid, eta=0.0), euler(grid))


@pytest.mark.parametrize("to_data", [True, False])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_one_register_is_enough_for_every_solver_without_noise(name, to_data):
    solver, _ = DETERMINISTIC[name]
    table = Sampler(solver=solver, nfe=ROWS, to_data=to_data).table(VPLinear())
    again = in_one_register(table)
    assert not again.b.any()
    assert again.e.shape == (table.nfe, 3 + table.nfe)
    check_equal(again, table)


def test_noise_does_not_fit_into_one_register():
    with pytest.raises(ValueError, match="adds noise"):
        in_one_register(ancestral(make_grid(VPLinear(), logsnr, 4)))


def test_euler_on_flow_is_ddim():
    grid = make_grid(FlowMatching(), uniform, 9)
    check_equal(euler(grid), ddim(grid))


def test_ddim_lands_on_the_next_node_or_a_stride_below():
    process = VPDiscrete(betas=linear_betas())
    even = make_grid(process, leading, 10)  # timesteps 900, 800, ..., 0
    check_equal(ddim(even), ddim(even, stride=0.1))
    uneven = ddim(make_grid(process, trailing, 30), stride=0.033)  # 30 does not divide 1000
    lands = process.host([1.0 - 0.033])
    np.testing.assert_allclose(uneven.e[0, 0], lands.sigma[0] / uneven.sigma[0], rtol=1e-12)
    assert np.abs(transport(uneven).mean - uneven.alpha).max() > 1e-4  # told a wrong level


def test_phi_is_its_integral():
    s, w = np.polynomial.legendre.leggauss(40)
    s, w = (s + 1) / 2, w / 2
    for k, h in itertools.product((1, 2, 3), (1e-8, 1e-3, 0.3, 0.999, 1.001, 4.0)):
        exact = np.sum(w * np.exp(-h * (1 - s)) * s ** (k - 1)) / [1, 1, 2][k - 1]
        np.testing.assert_allclose(phi(k, h), exact, rtol=1e-12)


def test_third_order_weights_integrate_quadratics_exactly():
    """1, s, s^2 in lambda, through the row of a third-order step, against quadrature."""
    grid = make_grid(VPLinear(), quadratic, 9, to_data=False, t_end=0.01)
    table = dpmpp_multistep(grid, order=3, lower_order_final=False)
    lam = np.array([node.logsnr_half for node in grid.nodes])
    nodes, weights = np.polynomial.legendre.leggauss(60)
    for k in range(2, 9):
        h = lam[k + 1] - lam[k]
        s, w = (nodes + 1) * h / 2, weights * h / 2
        for power in range(3):
            exact = table.alpha[k + 1] * np.sum(w * np.exp(s - h) * s**power)
            past = lam[[k, k - 1, k - 2]] - lam[k]
            np.testing.assert_allclose(table.e[k, 3:6] @ past**power, exact, rtol=1e-10, atol=1e-13)


def test_spacings():
    process, n = VPLinear(), 8
    times = {
        s: [x.t for x in make_grid(process, s, n, to_data=False).nodes]
        for s in (uniform, quadratic)
    }
    np.testing.assert_allclose(np.diff(times[uniform]), -(1 - 1e-3) / n, rtol=1e-12)
    np.testing.assert_allclose(np.diff(np.sqrt(times[quadratic])), (1e-3**0.5 - 1) / n, rtol=1e-12)
    levels = np.array([x.logsnr_half for x in make_grid(process, logsnr, n, to_data=False).nodes])
    np.testing.assert_allclose(np.diff(levels), np.diff(levels)[0], rtol=1e-10)
    sigmas = np.array([x.sigma for x in make_grid(EDM(), karras, n).nodes[:-1]])
    i = np.arange(n) / (n - 1)
    expected = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigmas, expected, rtol=1e-12)


def test_moments_of_many_steps_are_those_of_the_data():
    """Every solver ends in the data's mean and variance; the noise of t_end aside."""
    for solver in (ddim, ancestral, euler_maruyama, heun, partial(heun, churn=30.0)):
        for process in (SubVP(), VE()):
            found = gaussian_moments(solver(make_grid(process, karras, 800)), 0.7, 0.3)
            np.testing.assert_allclose([found.mean[-1], found.variance[-1]], [0.7, 0.3], rtol=0.03)


# --- the loop


def denoiser(process=None):
    return bed_a().denoiser(process or VPLinear())


def drawn(process, n=8, seed=0):
    keys = sample_keys(jax.random.key(seed), jnp.arange(n))
    return keys, sample_prior(ddim(make_grid(process, uniform, 2)), keys, (2,))


def test_prior_has_the_scale_of_the_first_node():
    keys = sample_keys(jax.random.key(0), jnp.arange(4000))
    for solver in (ddim, partial(heun, churn=100.0)):
        table = solver(make_grid(VE(), uniform, 4, t_start=0.8))
        x = sample_prior(table, keys, (2,))
        np.testing.assert_allclose(np.std(x), 0.01 * 5000**0.8, rtol=0.05)


def test_one_compilation_for_all_solvers_of_equal_nfe():
    traces = []
    process = VPLinear()

    @jax.jit
    def run(table, x, keys):
        traces.append(table.nfe)
        return sample(denoiser(), table, x, keys=keys)

    keys, x = drawn(process)
    for solver, spacing in itertools.product(
        MARGINAL_SOLVERS.values(), (uniform, quadratic, logsnr, karras)
    ):
        assert np.all(np.isfinite(run(solver(make_grid(process, spacing, 9)), x, keys)))
    for churn in (0.0, 3.0, 40.0):
        table = heun(make_grid(process, karras, 5), churn=churn)
        assert np.all(np.isfinite(run(table, x, keys)))
    for eta in (0.0, 0.4, 1.0):
        assert np.all(np.isfinite(run(ddim(make_grid(process, logsnr, 9), eta=eta), x, keys)))
    run(euler_maruyama(make_grid(process, uniform, 9)), x, keys)
    assert traces == [9]


def test_a_sample_does_not_depend_on_its_batch():
    process = VPLinear()
    table = ancestral(make_grid(process, logsnr, 6))
    run = jax.jit(lambda x, keys: sample(denoiser(), table, x, keys=keys))
    keys, x = drawn(process, 8)
    alone = run(x[3:4], keys[3:4])
    np.testing.assert_allclose(run(x, keys)[3:4], alone, rtol=1e-5, atol=1e-6)


def test_noise_is_fresh_in_every_row():
    """With x0_hat = 0 the loop only carries noise: its variance must be the table's own sum."""
    process = VPLinear()
    table = ancestral(make_grid(process, logsnr, 12, to_data=False))
    keys, x = drawn(process, 4000)
    out = sample(lambda x, t, cond=None: jnp.zeros_like(x), table, x, keys=keys)
    np.testing.assert_allclose(np.var(out), table.sigma[-1] ** 2, rtol=0.05)


def test_trace_sees_every_evaluation():
    process = VPLinear()
    table = ddim(make_grid(process, logsnr, 5))
    keys, x = drawn(process)
    out, seen = sample(denoiser(), table, x, keys=keys, trace=lambda at: at)
    assert seen.x0_hat.shape == (5, 8, 2)
    np.testing.assert_allclose(seen.t, table.t[:-1], rtol=1e-6)
    np.testing.assert_array_equal(seen.x[0], x)
    np.testing.assert_array_equal(seen.x0_hat[-1], out)  # the step to data takes x0_hat itself


@pytest.mark.slow
def test_tables_of_equal_length_vmap():
    process = VPLinear()
    keys, x = drawn(process)
    tables = [ddim(make_grid(process, s, 7)) for s in (uniform, logsnr)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *tables)
    together = jax.vmap(lambda table: sample(denoiser(), table, x, keys=keys))(stacked)
    for table, out in zip(tables, together, strict=True):
        np.testing.assert_allclose(
            out, sample(denoiser(), table, x, keys=keys), rtol=1e-4, atol=1e-5
        )


def test_nfe_is_counted_by_the_rows():
    assert Sampler(solver=ddim, nfe=20).table(VPLinear()).nfe == 20
    assert Sampler(solver=heun, nfe=20).table(VPLinear()).nfe == 19
    assert Sampler(solver=heun, nfe=20, to_data=False).table(VPLinear()).nfe == 20
    assert [Sampler(solver=heun, nfe=n).table(EDM()).nfe for n in (1, 2, 3, 4)] == [1, 1, 3, 3]
    with pytest.raises(UserError, match="nfe=1"):
        Sampler(solver=heun, nfe=1, to_data=False).table(EDM())


def test_a_table_prints_itself():
    text = describe(heun(make_grid(EDM(), karras, 3), churn=1.0))
    assert text.startswith("5 network evaluations")
    assert "b <- +1 e" in text


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_grid(FlowMatching(), logsnr, 5), "t_start"),
        (lambda: make_grid(VPLinear(), logsnr, 0), "n=0"),
        (lambda: make_grid(VPLinear(), logsnr, 5, t_start=0.1, t_end=0.2), "t_start=0.1"),
        (lambda: ddim(make_grid(VPLinear(), logsnr, 5), eta=2.0), "2.0"),
        (lambda: dpmpp_multistep(make_grid(VPLinear(), logsnr, 5), order=4), "4"),
        (lambda: euler_maruyama(make_grid(FlowMatching(), uniform, 5)), "FlowMatching"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize("solver", [partial(ddim, eta=0.5), ancestral])
def test_ancestral_noise_is_refused_on_the_way_up(solver):
    grid = make_grid(VPLinear(), logsnr, 4)
    with pytest.raises(UserError, match="cannot add ancestral noise"):
        solver(upward(grid))
