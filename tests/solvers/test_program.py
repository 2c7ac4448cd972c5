"""Adaptive solvers as programs beside tables: what is compiled once, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.data.toy import Gaussian
from scorediff.diffusion import VE, FlowMatching, VPLinear
from scorediff.errors import UserError
from scorediff.solvers import (
    Sampler,
    adaptive_ode,
    ancestral,
    ddim,
    dpm_adaptive,
    learned_variance,
    sample_keys,
)
from scorediff.solvers.program import is_adaptive, make_driver, prior, rows, times

PROCESS = VPLinear()
BED = Gaussian(mean=(0.3, -0.2), stds=(0.8, 0.3))
KEYS = sample_keys(jax.random.key(0), jnp.arange(4))


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (adaptive_ode, True),
        (functools.partial(adaptive_ode, rtol=1e-3), True),
        (dpm_adaptive, True),
        (ddim, False),
        (functools.partial(ancestral, variance="large"), False),
        (learned_variance, False),
        (lambda grid: ddim(grid), False),
    ],
)
def test_a_solver_is_adaptive_where_it_takes_a_denoiser(solver, expected):
    assert is_adaptive(solver) is expected


@pytest.mark.parametrize(
    ("solver", "process", "message"),
    [
        (functools.partial(adaptive_ode, rtol=-1.0), PROCESS, "rtol and atol must be at least 0"),
        (functools.partial(adaptive_ode, solver="euler"), PROCESS, "solver must be one of"),
        (functools.partial(adaptive_ode, t_end=0.1), PROCESS, "t_end of an adaptive solver"),
        (functools.partial(dpm_adaptive, to_data=True), PROCESS, "to_data of an adaptive solver"),
        (functools.partial(dpm_adaptive, order=4), PROCESS, "order must be one of 2, 3"),
        (dpm_adaptive, FlowMatching(), "start at a smaller t_start"),
    ],
)
def test_options_are_refused_before_anything_is_sampled(solver, process, message):
    with pytest.raises(UserError, match=message):
        make_driver(solver, process)


def test_a_driver_follows_the_exact_flow_and_no_tolerance_compiles_again():
    traces = []

    @jax.jit
    def run(driver, x):
        traces.append(1)
        return driver(BED.denoiser(PROCESS), x)

    drivers = [
        make_driver(functools.partial(dpm_adaptive, rtol=r, atol=r), PROCESS, to_data=False)
        for r in (1e-2, 1e-4)
    ]
    x = prior(drivers[0], KEYS, (2,))
    coarse, fine = (run(driver, x) for driver in drivers)
    ends = PROCESS.host(np.array([PROCESS.t_max, PROCESS.t_min]))
    start, end = zip(ends.alpha, ends.sigma, strict=True)
    exact = BED.flow(np.asarray(x), start, end)
    assert len(traces) == 1
    assert np.abs(fine.x - exact).max() < 1e-3 < np.abs(coarse.x - exact).max() < 0.1
    assert (fine.nfe > coarse.nfe).all()


def test_programs_say_where_they_evaluate_and_start_from_the_same_noise():
    table = Sampler(solver=ddim, nfe=4).table(PROCESS)
    pair = Sampler(solver=learned_variance, nfe=4).table(PROCESS)
    driver = make_driver(dpm_adaptive, PROCESS)
    assert (rows(table), rows(pair), rows(driver)) == (4, 4, None)
    np.testing.assert_array_equal(times(pair), times(table))
    np.testing.assert_array_equal(times(driver), [PROCESS.t_max, PROCESS.t_min])
    starts = [prior(program, KEYS, (2,)) for program in (table, pair, driver)]
    np.testing.assert_allclose(starts[1], starts[0], rtol=1e-6)
    np.testing.assert_allclose(starts[2], starts[0], rtol=1e-6)


def test_a_sampler_that_climbs_has_the_grid_upside_down():
    process = VE(t_min=0.01)
    options = {"solver": ddim, "nfe": 5, "to_data": False}
    down, up = Sampler(**options).table(process), Sampler(**options, climbs=True).table(process)
    np.testing.assert_allclose(up.t, down.t[::-1])
    with pytest.raises(ValueError, match="to_data must be False"):
        Sampler(solver=ddim, climbs=True)
