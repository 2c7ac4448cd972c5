"""Adaptive solvers against exact flows; their evaluations against calls that were really made."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.counting import either, record
from scorediff.data.toy import Gaussian
from scorediff.diffusion import FlowMatching, VPLinear
from scorediff.errors import UserError
from scorediff.solvers.adaptive_dpm import dpm_adaptive
from scorediff.solvers.adaptive_ode import adaptive_ode, integrate
from scorediff.solvers.step_control import (
    RUNGE_KUTTA_RULES,
    Attempt,
    DpmSolverRule,
    PidRule,
    check_finished,
)
from tests.oracles import bed_a, bed_b, exact_flow, testbed

pytestmark = pytest.mark.slow  # compilation; make test has no minute left for it

VP, FLOW = VPLinear(), FlowMatching(t_min=0.0)
POINT = Gaussian(mean=(0.3, -0.2), stds=(0.5, 0.5))


@functools.partial(jax.jit, static_argnames=("t_start", "t_end"))
def ode_a(x, tol, t_start=1.0, t_end=1e-3):
    return adaptive_ode(
        bed_a().denoiser(VP), VP, x, t_start=t_start, t_end=t_end, rtol=tol, atol=tol
    )


@functools.partial(jax.jit, static_argnames=("t_start", "t_end", "coupled"))
def ode_b(x, tol, t_start, t_end, coupled=False):
    denoise = bed_b().denoiser(FLOW)
    return adaptive_ode(
        denoise, FLOW, x, t_start=t_start, t_end=t_end, rtol=tol, atol=tol, coupled=coupled
    )


@functools.partial(jax.jit, static_argnames=("order", "prediction", "control", "coupled"))
def dpm_a(x, tol, order=3, prediction="x0", control="standard", coupled=False):
    return dpm_adaptive(
        bed_a().denoiser(VP),
        VP,
        x,
        order=order,
        prediction=prediction,
        rtol=tol,
        atol=tol,
        control=control,
        coupled=coupled,
    )


def worst(out, exact):
    """Largest error of each sample, [b]."""
    return np.abs(np.asarray(out.x) - exact).max(axis=tuple(range(1, exact.ndim)))


# --- the probability-flow ODE


def test_ode_keeps_its_tolerance_on_the_mixture(x64):
    z = testbed()["z_A"]
    exact = exact_flow(bed_a(), VP, z, 1.0, 1e-3)
    for tol in (1e-3, 1e-5, 1e-7):
        out = ode_a(z, tol)
        # Errors of some ten steps add up, and the mixture's flow stretches them where it divides.
        assert worst(out, exact).max() < 50 * tol
        np.testing.assert_array_equal(out.nfe, 2 + 6 * (out.accepted + out.rejected))
        assert np.asarray(out.finished).all() and np.asarray(out.rejected).sum() > 0


@pytest.mark.slow
def test_ode_goes_from_pure_noise_to_data_and_back(x64):
    """alpha = 0 at one end and sigma = 0 at the other; down with one step size for the batch."""
    z = testbed()["z_B"]
    down = ode_b(z, 1e-8, 1.0, 0.0, coupled=True)
    assert worst(down, exact_flow(bed_b(), FLOW, z, 1.0, 0.0)).max() < 1e-6
    assert len(set(np.asarray(down.nfe).tolist())) == 1
    up = ode_b(down.x, 1e-8, 0.0, 1.0)
    # the way up spreads the narrowest direction, of deviation 0.05, by its inverse
    assert worst(up, z).max() < 1e-6 / 0.05


def test_a_sample_has_its_own_steps(x64):
    z = testbed()["z_A"]
    out, other = ode_a(z, 1e-5), ode_a(np.concatenate([z[:1], 3 * z[1:]]), 1e-5)
    assert len(set(np.asarray(out.nfe).tolist())) > 1
    np.testing.assert_array_equal(out.x[0], other.x[0])
    assert out.nfe[0] == other.nfe[0]
    assert (np.asarray(out.nfe) != np.asarray(other.nfe)).any()


@pytest.mark.slow
def test_evaluations_that_depend_on_t_are_counted():
    """As with guidance in an interval: two for t > middle, one below."""

    @jax.jit
    def solve(middle):
        def denoise(x, t, cond=None):
            def spend(n):
                record(n * x.shape[0])
                return POINT.denoiser(VP)(x, t)

            return either(t > middle, lambda: spend(2), lambda: spend(1), batch=x.shape[0])

        x = jnp.ones((2, 2))
        return adaptive_ode(denoise, VP, x, rtol=1e-2, atol=1e-3, coupled=True)

    one, some, two = (solve(middle) for middle in (2.0, 0.5, -1.0))
    np.testing.assert_array_equal(one.nfe, 2 + 6 * (one.accepted + one.rejected))
    np.testing.assert_array_equal(two.nfe, 2 * one.nfe)
    assert ((one.nfe < some.nfe) & (some.nfe < two.nfe)).all()


@pytest.mark.slow
def test_ode_is_differentiable():
    """Through x and what the denoiser closes over, against the Gaussian's own flow map."""

    def end(x, scale):
        denoise = lambda x, t, cond: scale * POINT.denoiser(VP)(x, t)  # noqa: E731
        return adaptive_ode(denoise, VP, x, t_end=0.3, rtol=1e-4, atol=1e-4).x.sum()

    x = jnp.array([[0.2, -0.1]])
    slope, by_scale = jax.grad(end, argnums=(0, 1))(x, 1.0)
    ends = VP.host(np.array([1.0, 0.3]))
    spread = np.sqrt((ends.alpha * 0.5) ** 2 + ends.sigma**2)
    np.testing.assert_allclose(slope, spread[1] / spread[0], rtol=1e-3)
    assert np.isfinite(by_scale) and by_scale != 0


# --- DPM-Solver


@pytest.mark.parametrize(
    ("order", "prediction"), [pytest.param(2, "eps", marks=pytest.mark.slow), (3, "x0")]
)
def test_dpm_keeps_its_tolerance_on_the_mixture(x64, order, prediction):
    z = testbed()["z_A"]
    exact = exact_flow(bed_a(), VP, z, 1.0, 1e-3)
    for tol in (1e-2, 1e-4):
        out = dpm_a(z, tol, order, prediction)
        assert worst(out, exact).max() < 20 * tol
        np.testing.assert_array_equal(out.nfe, order * (out.accepted + out.rejected))
        assert np.asarray(out.finished).all()


def test_dpm_samples_have_their_own_steps(x64):
    z = testbed()["z_A"]
    out, alone = dpm_a(z, 1e-4), dpm_a(z[2:3], 1e-4)
    assert len(set(np.asarray(out.nfe).tolist())) > 1
    np.testing.assert_allclose(out.x[2:3], alone.x, rtol=1e-12)
    assert out.nfe[2] == alone.nfe[0]


def test_pid_control_keeps_its_tolerance(x64):
    """With one step size for the batch, as k-diffusion has."""
    z = testbed()["z_A"]
    out = dpm_a(z, 1e-4, control="k_diffusion", coupled=True)
    assert worst(out, exact_flow(bed_a(), VP, z, 1.0, 1e-3)).max() < 20e-4
    assert len(set(np.asarray(out.nfe).tolist())) == 1
    assert out.rejected[0] > 0


# --- what is counted, and what happens when it runs out


class Calls:
    """A denoiser that knows how often it was called when the program ran."""

    def __init__(self):
        self.made = 0

    def __call__(self, x, t, cond=None):
        jax.debug.callback(self.add)
        return POINT.denoiser(VP)(x, t)

    def add(self):
        self.made += 1

    def during(self, run, *args):
        self.made = 0
        out = run(*args)
        jax.effects_barrier()
        return self.made, out


@pytest.mark.parametrize(
    ("solve", "options", "fixed", "attempt"),
    [
        (dpm_adaptive, {}, 1, 3),
        (adaptive_ode, {}, 3, 6),
        pytest.param(adaptive_ode, {"solver": "dopri8"}, 3, 13, marks=pytest.mark.slow),
    ],
)
def test_counted_evaluations_are_the_calls_made(solve, options, fixed, attempt):
    calls = Calls()

    @jax.jit
    def run(x, tol):
        return solve(calls, VP, x, rtol=tol, atol=tol, to_data=True, max_evaluations=250, **options)

    x = jnp.array([[1.3, -0.4]])
    made, out = calls.during(run, x, 1e-3)
    check_finished(out)
    assert made == out.nfe[0] == fixed + attempt * (out.accepted[0] + out.rejected[0])

    made, strict = calls.during(run, x, 1e-10)  # beyond float32
    assert made == strict.nfe[0] <= 251
    assert np.isnan(strict.x).all()
    with pytest.raises(UserError, match="1 of 1 samples had not reached the end"):
        check_finished(strict)

    # a network that returns NaN: steps shrink to nothing before the budget is spent
    broken = run(x * jnp.nan, 1e-3)
    assert not broken.finished[0] and broken.nfe[0] < 200


def test_float64_is_exact_after_float32_in_one_process(x64):
    """x = t^4, which a polynomial of degree four between the nodes holds exactly."""

    @jax.jit
    def quartic(x):
        return integrate(
            lambda x, t, cond: 4 * t**3 * jnp.ones_like(x),
            x,
            t_start=0.0,
            t_end=1.0,
            rtol=1e-3,
            atol=1e-3,
            control="torchdiffeq",
            coupled=True,
        )

    with jax.enable_x64(False):
        assert quartic(jnp.zeros((1, 1))).x.dtype == jnp.float32
    out = quartic(jnp.zeros((1, 1)))
    assert out.x.dtype == jnp.float64
    np.testing.assert_allclose(out.x, 1.0, rtol=1e-13)


# --- the rules


def test_rules_of_runge_kutta_pairs():
    standard, scipy, torchdiffeq = RUNGE_KUTTA_RULES.values()
    two_thirds = 0.9 * 0.3 ** (-1 / 5)
    for rule, error in ((standard, 0.3), (scipy, 0.2), (torchdiffeq, 0.3)):
        kept, factor = rule(jnp.float32(error), 5, False)
        assert kept and factor == pytest.approx(two_thirds)
        assert rule(jnp.float32(0.0), 5, False)[1] == 10
        for bad in (1e9, np.inf, np.nan):
            kept, factor = rule(jnp.float32(bad), 5, False)
            assert not kept and factor == pytest.approx(0.2)
    assert scipy(jnp.float32(0.66), 5, False)[1] == pytest.approx(0.9, rel=1e-2)
    assert torchdiffeq(jnp.float32(0.99), 5, False)[1] == 1
    assert (
        torchdiffeq(jnp.float32(1.0), 5, False)[0] and not standard(jnp.float32(1.0), 5, False)[0]
    )
    assert [
        float(r(jnp.float32(1e-3), 5, True)[1]) > 1 for r in (standard, scipy, torchdiffeq)
    ] == [
        False,
        False,
        True,
    ]


def test_rules_of_dpm_solver():
    attempt = Attempt(error=jnp.float32(0.125), wanted=jnp.float32(2.0), taken=jnp.float32(0.1))
    kept, step, _ = DpmSolverRule()(attempt, 3, ())
    assert kept and step == pytest.approx(0.9 * 0.1 * 2)
    kept, step, memory = PidRule()(attempt, 3, PidRule().start())
    assert kept and step == pytest.approx(2.0 * (1 + np.arctan(2 - 1)), rel=1e-5)
    np.testing.assert_allclose(memory, 8, rtol=1e-5)
    worse = attempt._replace(error=jnp.float32(8.0))
    kept, step, after = PidRule(p=0.2, i=0.6, d=0.1)(worse, 3, memory)
    product = 8 ** (-0.9 / 3) * 8 ** (-0.4 / 3) * 8 ** (0.1 / 3)
    assert not kept and step == pytest.approx(2.0 * (1 + np.arctan(product - 1)), rel=1e-5)
    np.testing.assert_allclose(after, memory)


# --- mistakes


@pytest.mark.parametrize(
    ("solve", "options", "message"),
    [
        (dpm_adaptive, {"order": 4}, "order must be one of 2, 3, got 4"),
        (dpm_adaptive, {"rtol": -0.1}, "rtol=-0.1"),
        (dpm_adaptive, {"prediction": "v"}, "prediction must be one of x0, eps, got 'v'"),
        (dpm_adaptive, {"control": "scipy"}, "control must be one of"),
        (dpm_adaptive, {"h_init": 0.0}, "h_init must be positive, got 0.0"),
        (dpm_adaptive, {"t_start": 0.1, "t_end": 0.5}, "goes down in t"),
        (dpm_adaptive, {"max_evaluations": 0}, "max_evaluations must be at least 1, got 0"),
        (adaptive_ode, {"atol": -1e-3}, "atol=-0.001"),
        (adaptive_ode, {"rtol": 0.0, "atol": 0.0}, "one of them positive"),
        (adaptive_ode, {"solver": "rk45"}, "solver must be one of dopri5"),
        (adaptive_ode, {"control": "scipy", "solver": "tsit5"}, "needs solver='dopri5'"),
        (adaptive_ode, {"control": "pid"}, "control must be one of standard, scipy, torchdiffeq"),
        (adaptive_ode, {"t_start": 0.5, "t_end": 0.5}, "must differ"),
        (adaptive_ode, {"t_start": 0.1, "t_end": 1.0, "to_data": True}, "to_data needs"),
    ],
)
def test_mistakes_are_named(solve, options, message):
    with pytest.raises(UserError, match=message):
        solve(POINT.denoiser(VP), VP, jnp.zeros((1, 2)), **options)


def test_dpm_needs_a_finite_start():
    with pytest.raises(UserError, match="finite logSNR at both ends, but FlowMatching"):
        dpm_adaptive(POINT.denoiser(FLOW), FLOW, jnp.zeros((1, 2)))
