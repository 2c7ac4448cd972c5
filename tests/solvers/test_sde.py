"""SDE solvers and restart: weak and strong orders, invariants, identities, mistakes."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.diffusion import EDM, VE, FlowMatching, SubVP, Trigonometric, VPLinear
from scorediff.errors import UserError
from scorediff.solvers import (
    ancestral,
    ddim,
    euler_maruyama,
    logsnr,
    make_grid,
    sample_keys,
    uniform,
)
from scorediff.solvers.ancestral_sde import (
    dpm2_ancestral,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    euler_ancestral,
)
from scorediff.solvers.moments import gaussian_moments, propagate, transport
from scorediff.solvers.noise import brownian_path, check_path
from scorediff.solvers.restart import restart
from scorediff.solvers.reverse_sde import (
    constant,
    decreasing,
    discrete_ancestral,
    flow_sde,
    flow_stochastic,
    increasing_decreasing,
    linear_in_t,
    matched,
    reverse_diffusion,
)
from scorediff.solvers.runge_kutta import dpm2, heun
from scorediff.solvers.sample import sample_bounded
from scorediff.solvers.table import pad
from tests.oracles import bed_b, testbed

PROCESSES = {
    "vp": VPLinear(),
    "sub_vp": SubVP(),
    "ve": VE(t_min=1e-3),
    "edm": EDM(),
    "flow": FlowMatching(t_max=0.98),  # logsnr spacing needs alpha > 0
}
# written in y = x / alpha and s = sigma / alpha: the same on every process, but for the scale
ANCESTRAL = {
    "euler_ancestral": (euler_ancestral, 1),
    "dpm2_ancestral": (dpm2_ancestral, 2),
    "dpmpp_2s_ancestral": (dpmpp_2s_ancestral, 2),
    "dpmpp_sde": (dpmpp_sde, 2),
    "dpmpp_sde_third": (partial(dpmpp_sde, r=1 / 3, eta=0.5), 2),
    "dpmpp_sde_independent": (partial(dpmpp_sde, independent=True), 1),
}
REVERSE = {
    "reverse_diffusion": (reverse_diffusion, 1),
    "half_score": (partial(reverse_diffusion, eta=0.0), 1),
    "discrete_ancestral_large": (partial(discrete_ancestral, variance="large"), 1),
    "flow_sde": (flow_sde, 1),
    "flow_sde_heun": (partial(flow_sde, method="heun"), 2),
}


def grid_of(process, n, high=-2.0, low=1.0):
    """A grid between two values of log(alpha/sigma)."""
    start, end = process.host_when(np.exp([high, low]), np.ones(2))
    return make_grid(process, logsnr, n, to_data=False, t_start=start, t_end=end)


def moment_errors(table):
    """Errors of mean and variance, summed over data variances, so that no lucky one cancels."""
    total = np.zeros(2)
    for variance in (0.1, 0.8, 3.0):
        exact = table.alpha[-1] * 0.7, table.alpha[-1] ** 2 * variance + table.sigma[-1] ** 2
        found = gaussian_moments(table, 0.7, variance)
        total += np.abs(np.array([found.mean[-1], found.variance[-1]]) - exact)
    return total


def weak_slopes(process, solver):
    coarse, fine = (moment_errors(solver(grid_of(process, n))) for n in (64, 128))
    resolved = coarse > 1e-9  # a mean that is exact at any step size has no slope
    assert resolved.any()
    return np.log2(coarse[resolved] / fine[resolved])


@pytest.mark.parametrize("name", ANCESTRAL)
def test_weak_order_of_the_ancestral_solvers(name):
    solver, order = ANCESTRAL[name]
    slopes = weak_slopes(SubVP(), solver)
    assert np.all(np.abs(slopes - order) < 0.1), slopes


@pytest.mark.parametrize("process", PROCESSES)
def test_weak_order_of_the_reverse_sde_solvers(process):
    for name, (solver, order) in REVERSE.items():
        slopes = weak_slopes(PROCESSES[process], solver)
        least = 2.0 if name == "flow_sde_heun" else order  # its mean is of second order, too
        assert np.all(np.abs(slopes - least) < 0.1), (name, slopes)


def test_weak_order_with_any_diffusion():
    for form in (constant, linear_in_t, decreasing, increasing_decreasing, matched):
        for method, order in (("euler", 1), ("heun", 2)):
            solver = partial(flow_sde, diffusion=form, method=method)
            slopes = weak_slopes(Trigonometric(), solver)
            assert np.all(np.abs(slopes - order) < 0.15), (form.__name__, method, slopes)


def test_noise_before_the_first_stage_is_of_first_order():
    coarse, fine = (
        # started from the true marginal: the moments' own start would take the noise for churn
        np.abs(_from_marginal(flow_sde(grid_of(FlowMatching(), n), method="heun_noise_first")))
        for n in (100, 200)
    )
    assert abs(np.log2(coarse / fine) - 1) < 0.1


def _from_marginal(table, variance=0.8):
    def x0_hat(k):
        return table.alpha[k] * variance / (
            table.alpha[k] ** 2 * variance + table.sigma[k] ** 2
        ), 0.0

    first, last = (table.alpha[k] ** 2 * variance + table.sigma[k] ** 2 for k in (0, -1))
    return propagate(table, x0_hat, 0.0, first).variance[-1] - last


def test_correlated_noise_of_dpmpp_sde_is_what_makes_it_accurate():
    grid = grid_of(EDM(), 20)
    correlated, independent = (
        moment_errors(dpmpp_sde(grid, independent=choice))[1] for choice in (False, True)
    )
    assert correlated < 0.05 * independent


@jax.jit
def run_path(table, rows, x):
    def denoise(x, k, cond=None):
        k = k.astype(int)
        return bed_b().x0_hat(x, table.alpha[k], table.sigma[k])

    numbered = table._replace(t=jnp.arange(table.t.shape[0]) * 1.0)
    keys = sample_keys(jax.random.key(3), jnp.arange(x.shape[0]))
    return sample_bounded(denoise, numbered, rows, x, keys=keys, noise=brownian_path)


STRONG = {
    "euler_maruyama": euler_maruyama,
    "euler_ancestral": euler_ancestral,
    "dpmpp_sde": dpmpp_sde,
    "flow_sde": flow_sde,
}


@pytest.mark.parametrize("process", PROCESSES)
def test_noise_names_its_span(process):
    """The spans of the noisy rows follow each other from the first node to the last."""
    grid = grid_of(PROCESSES[process], 5)
    single = (euler_ancestral, dpm2_ancestral, dpmpp_2s_ancestral, reverse_diffusion)
    for solver in (*single, euler_maruyama, dpmpp_sde, flow_sde, partial(flow_sde, method="heun")):
        table = solver(grid)
        check_path(table)
        over = table.over[np.abs(table.e[:, 2]) + np.abs(table.b[:, 2]) > 0]
        ends = [grid.nodes[0].logsnr_half, *over[:, 1]]
        np.testing.assert_allclose(over[:, 0], ends[:-1], atol=1e-9)
        assert np.isclose(ends[-1], grid.nodes[-1].logsnr_half)


def test_strong_order_on_one_brownian_path(x64):
    """Runs at n, 2n and 4n steps approach each other: additive noise makes the order 1.

    Were a row's noise drawn for the wrong span of the path, they would not.
    """
    for name, solver in STRONG.items():
        ends = []
        for n in (16, 32, 64):
            table = solver(grid_of(SubVP(), n))
            check_path(table)
            x = jnp.asarray(table.sigma[0] * testbed()["z_B_big"])
            ends.append(run_path(jax.tree.map(jnp.asarray, pad(table, 128)), table.nfe, x))
        apart = [float(jnp.sqrt(jnp.mean((a - b) ** 2))) for a, b in pairwise(ends)]
        assert abs(np.log2(apart[0] / apart[1]) - 1) < 0.2, (name, apart)


@pytest.mark.parametrize("process", PROCESSES)
def test_ancestral_solvers_carry_the_marginal(process):
    grid = make_grid(PROCESSES[process], logsnr, 6)
    for solver in (euler_ancestral, dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde):
        for eta in (0.0, 0.5, 1.0, 1.7):
            moments = transport(table := solver(grid, eta=eta))
            np.testing.assert_allclose(moments.mean, table.alpha, rtol=1e-12)
            np.testing.assert_allclose(moments.variance, table.sigma**2, rtol=1e-11, atol=1e-25)


@pytest.mark.parametrize("process", PROCESSES)
def test_identities(process):
    grid = make_grid(PROCESSES[process], logsnr, 6)
    for eta in (0.0, 0.4, 1.0):
        assert_same(euler_ancestral(grid, eta=eta), ddim(grid, eta=eta))
    for variance in ("small", "large"):
        assert_same(discrete_ancestral(grid, variance=variance), ancestral(grid, variance=variance))
    assert_same(euler_ancestral(grid, eta=1e9), flow_stochastic(grid))
    assert_same(flow_sde(grid, diffusion=matched), euler_maruyama(grid), effect=True)
    assert_same(dpmpp_2s_ancestral(grid, eta=0.0), dpmpp_sde(grid, eta=0.0), end=True)
    assert_same(dpm2_ancestral(grid, eta=0.0), dpm2(grid, frame="straight"))


def assert_same(first, second, *, effect=False, end=False):
    """Equal rows; with `effect`, what one-row steps do; with `end`, what the whole tables do."""
    if end:
        first, second = (np.stack(gaussian_moments(t, 0.7, 0.8)) for t in (first, second))
        np.testing.assert_allclose(first, second, rtol=1e-11, atol=1e-13)
        return
    for name in ("e",) if effect else ("e", "b", "keep", "t", "sigma"):
        a, b = getattr(first, name), getattr(second, name)
        if effect:  # of x, z and x0_hat, whatever is kept
            a, b = (_effect(table) for table in (first, second))
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12, err_msg=name)


def _effect(table):
    to_x = table.e[:, 0] + table.e[:, 3] * table.keep[:, 0]
    return np.stack([to_x, table.e[:, 2], table.e[:, 3] * table.keep[:, 1]])


def test_noise_scale():
    grid = make_grid(EDM(), logsnr, 5)
    for solver in (euler_ancestral, dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde):
        plain, louder = solver(grid), solver(grid, noise_scale=1.5)
        for a, b in ((plain.e, louder.e), (plain.b, louder.b)):
            factor = np.ones(8)
            factor[2] = 1.5
            np.testing.assert_allclose(a * factor, b, rtol=1e-12)


def test_pure_noise():
    grid = make_grid(FlowMatching(), uniform, 4)
    for solver in (euler_ancestral, flow_stochastic, flow_sde, partial(flow_sde, method="heun")):
        assert np.isfinite(solver(grid).e).all()
    singular = (dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde, reverse_diffusion, euler_maruyama)
    for solver in (*singular, discrete_ancestral, partial(flow_sde, diffusion=matched)):
        with pytest.raises(UserError, match=r"alpha = 0,? .*t=1"):
            solver(grid)


def test_last_step_of_the_flow_sde():
    grid = make_grid(FlowMatching(), uniform, 5, t_end=0.04)
    mean, velocity, tweedie = (flow_sde(grid, last_step=s) for s in ("mean", "euler", "tweedie"))
    assert mean.nfe == velocity.nfe == tweedie.nfe == 5
    # on the straight path Euler's step along the velocity ends in x0_hat
    np.testing.assert_allclose(_effect(velocity)[:, -1], _effect(tweedie)[:, -1], atol=1e-12)
    w = grid.nodes[-2].sigma
    score = np.array([-1, 0, grid.nodes[-2].alpha]) / grid.nodes[-2].sigma ** 2
    np.testing.assert_allclose(
        _effect(mean)[:, -1] - _effect(velocity)[:, -1], 0.04 * w * score, atol=1e-12
    )


def test_step_size_of_its_own():
    grid = make_grid(VPLinear(), uniform, 4, to_data=False, t_end=0.2)
    assert_same(euler_maruyama(grid, step_size=0.2), euler_maruyama(grid))
    shorter = euler_maruyama(grid, step_size=0.1)
    np.testing.assert_allclose(shorter.e[:, 2], euler_maruyama(grid).e[:, 2] / np.sqrt(2))


INTERVALS = ((0.1, 0.4, 2, 3), (1.0, 4.0, 1, 2))


def test_restart_rows():
    grid = make_grid(EDM(), logsnr, 12)
    table = restart(grid, intervals=INTERVALS)
    assert table.nfe == 23 + 2 * 3 * 2 + 1 * 2 * 2
    levels = table.sigma
    ups = np.flatnonzero(np.diff(levels) > 0)
    np.testing.assert_allclose(levels[ups + 1], [4.0, 0.4, 0.4])
    with pytest.raises(UserError, match="restart"):
        check_path(table)
    assert_same(restart(grid), heun(grid))


@pytest.mark.parametrize("process", PROCESSES)
def test_restart_carries_the_marginal(process):
    low, middle, high = PROCESSES[process].host_when(np.exp([1.0, 0.0, -1.0]), np.ones(3))
    grid = make_grid(PROCESSES[process], logsnr, 10)
    nested = ((low, high, 2, 3), (low, middle, 1, 1))  # from one node, one after the other
    for solver in (ddim, partial(heun, frame="straight", churn=1.0), partial(ddim, eta=0.5)):
        table = restart(grid, solver=solver, intervals=nested, spacing=logsnr)
        moments = transport(table)
        np.testing.assert_allclose(moments.mean, table.alpha, rtol=1e-12)
        np.testing.assert_allclose(moments.variance, table.sigma**2, rtol=1e-11, atol=1e-25)


def test_restart_contracts_errors():
    """A start of the wrong variance: what survives of it falls with every repetition."""
    grid, left = grid_of(EDM(), 60), []

    def excess(table, variance=0.8):
        def x0_hat(k):
            gain = variance / (variance + table.sigma[k] ** 2)
            return gain, 0.0

        start = variance + table.sigma[0] ** 2
        right, wrong = (propagate(table, x0_hat, 0.0, v).variance[-1] for v in (start, 2 * start))
        return wrong / right - 1

    for repeats in (0, 1, 2):
        intervals = ((0.5, 4.0, repeats, 30),) if repeats else ()
        left.append(excess(restart(grid, intervals=intervals)))
    assert np.isclose(left[0], 1.0, atol=0.05)  # the ODE keeps it all
    assert left[1] < 0.15 and left[2] < 0.15 * left[1]


GRID = make_grid(EDM(), logsnr, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: euler_ancestral(GRID, eta=-0.1), "eta must not be negative, got -0.1"),
        (lambda: dpmpp_sde(GRID, r=0.0), r"r must be in \(0, 1\], got 0"),
        (lambda: discrete_ancestral(GRID, variance="fixed"), "small or large, got 'fixed'"),
        (lambda: flow_sde(GRID, method="rk4"), "heun_noise_first, got 'rk4'"),
        (lambda: flow_sde(GRID, last_step="x0"), "tweedie, mean or euler, got 'x0'"),
        (lambda: flow_sde(GRID, diffusion=lambda at: -1.0), "diffusion must not be"),
        (lambda: restart(GRID, intervals=((1.0, 0.5, 1, 2),)), "0 < t_low < t_high"),
        (lambda: restart(GRID, intervals=((0.1, 0.5, 0, 2),)), "at least 1, got 0, 2"),
        (lambda: restart(GRID, intervals=((0.1, 0.11, 1, 2),)), "not below t_high=0.11"),
        (lambda: restart(make_grid(EDM(), logsnr, 1), intervals=((1, 2, 1, 1),)), "no node"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
