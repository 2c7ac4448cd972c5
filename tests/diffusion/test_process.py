"""Processes against their closed forms, and their inverses against themselves."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.diffusion import (
    EDM,
    VE,
    FlowMatching,
    Process,
    Shifted,
    SubVP,
    Trigonometric,
    VPCosine,
    VPDiscrete,
    VPLinear,
    ZeroTerminalSNR,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
)

PROCESSES = {
    "vp_linear": VPLinear(),
    "vp_cosine": VPCosine(),
    "vp_discrete": VPDiscrete(betas=linear_betas()),
    "vp_discrete_cosine": VPDiscrete(betas=cosine_betas()),
    "sub_vp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": FlowMatching(),
    "trigonometric": Trigonometric(),
    "shifted_flow": Shifted(process=FlowMatching(), shift=3.0),
    "shifted_discrete": Shifted(process=VPDiscrete(betas=linear_betas()), shift=2.0),
    "zero_snr": ZeroTerminalSNR(process=VPLinear()),
    "zero_snr_discrete": ZeroTerminalSNR(process=VPDiscrete(betas=scaled_linear_betas())),
}


def interior(process: Process, n: int = 23) -> np.ndarray:
    """Times away from the ends, where f and g^2 are finite for every process."""
    u = (np.arange(n) + 0.5) / n
    return process.t_min + u * (process.t_max - process.t_min)


def beta(t):
    return 0.1 + t * 19.9


def integral(t):
    return 0.1 * t + 19.9 * t**2 / 2


# f(t) and g^2(t) as the papers state them
CLOSED_FORMS = {
    "vp_linear": (lambda t: -beta(t) / 2, beta),
    "sub_vp": (lambda t: -beta(t) / 2, lambda t: beta(t) * (1 - np.exp(-2 * integral(t)))),
    "vp_cosine": (
        lambda t: -np.pi / 2.016 * np.tan((t + 0.008) / 1.008 * np.pi / 2),
        lambda t: np.pi / 1.008 * np.tan((t + 0.008) / 1.008 * np.pi / 2),
    ),
    "ve": (lambda t: 0 * t, lambda t: (0.01 * 5000**t) ** 2 * 2 * np.log(5000)),
    "edm": (lambda t: 0 * t, lambda t: 2 * t),
    "flow": (lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
    "trigonometric": (
        lambda t: -np.pi / 2 * np.tan(np.pi * t / 2),
        lambda t: np.pi * np.tan(np.pi * t / 2),
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_drift_and_diffusion_are_the_papers(name):
    t = interior(PROCESSES[name])
    m = PROCESSES[name].host(t)
    f, g2 = CLOSED_FORMS[name]
    np.testing.assert_allclose(m.drift, f(t), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(m.diffusion2, g2(t), rtol=1e-11)


@pytest.mark.parametrize("name", PROCESSES)
def test_inverse_and_monotony(name):
    process = PROCESSES[name]
    t = interior(process, 200)
    m = process.host(t)
    np.testing.assert_allclose(process.host_when(m.alpha, m.sigma), t, rtol=1e-9)
    assert np.all(np.diff(m.logsnr) < 0)
    with jax.enable_x64(True):
        np.testing.assert_allclose(process.time(jnp.asarray(m.logsnr)), t, rtol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_derivatives_are_those_of_alpha_and_sigma(name):
    process = PROCESSES[name]
    t = interior(process, 9)
    step = 1e-6 * t
    before, after, m = process.host(t - step), process.host(t + step), process.host(t)
    for value, slope in (("alpha", m.dalpha), ("sigma", m.dsigma)):
        difference = (getattr(after, value) - getattr(before, value)) / (2 * step)
        np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["vp_linear", "vp_cosine", "vp_discrete", "zero_snr", "trigonometric"]
)
def test_variance_preserving(name):
    m = PROCESSES[name].host(np.linspace(PROCESSES[name].t_min, PROCESSES[name].t_max, 50))
    np.testing.assert_allclose(m.alpha**2 + m.sigma**2, 1, rtol=1e-13)


def test_discrete_nodes_are_ddpm():
    betas = linear_betas()
    product = np.cumprod(1 - np.array(betas))
    m = VPDiscrete(betas=betas).host(np.arange(1, 1001) / 1000)
    np.testing.assert_allclose(m.alpha**2, product, rtol=1e-12)
    np.testing.assert_allclose(m.sigma**2, 1 - product, rtol=1e-11)


def test_shift_moves_logsnr_by_twice_its_logarithm():
    for base in (FlowMatching(), VPLinear(), VPCosine(), SubVP(), EDM(), VE()):
        shifted = Shifted(process=base, shift=2.5, t_min=base.t_min, t_max=base.t_max)
        t = interior(base)
        moved = shifted.host(t).logsnr - base.host(t).logsnr
        np.testing.assert_allclose(moved, -2 * np.log(2.5), rtol=1e-10)


def test_shifted_flow_is_the_sd3_formula():
    t = np.linspace(0, 1, 11)
    m = Shifted(process=FlowMatching(), shift=3.0, t_min=0.0).host(t)
    np.testing.assert_allclose(m.sigma, 3 * t / (1 + 2 * t), atol=1e-15)
    np.testing.assert_allclose(m.dsigma, 3 / (1 + 2 * t) ** 2, rtol=1e-13)


def test_zero_terminal_snr_ends_and_start():
    base = VPDiscrete(betas=scaled_linear_betas())
    m = ZeroTerminalSNR(process=base).host(np.array([1e-3, 1.0]))
    first = base.host(np.array([1e-3])).alpha[0]
    assert m.alpha[1] == 0
    np.testing.assert_allclose(m.alpha[0], first, rtol=1e-14)


def test_default_inverse_stands_in_for_a_closed_form():
    """A process that a user writes in four lines, without `when`."""

    @dataclass(frozen=True, kw_only=True)
    class Squared(Process):
        def alpha(self, t):
            return 1 - t**2

        def sigma(self, t):
            return t**2

    t = interior(Squared())
    m = Squared().host(t)
    np.testing.assert_allclose(Squared().host_when(m.alpha, m.sigma), t, rtol=1e-12)
    with jax.enable_x64(True):  # the root's derivative: t = sqrt(r / (1 + r))
        ratio = jnp.asarray(0.7)
        slope = jax.grad(lambda r: Squared().when(jnp.ones_like(r), r))(ratio)
    exact = 0.5 * np.sqrt(1.7 / 0.7) / 1.7**2
    np.testing.assert_allclose(slope, exact, rtol=1e-9)


@pytest.mark.slow
def test_float32_stays_close_to_the_host():
    for process in PROCESSES.values():
        t = interior(process)
        exact, single = process.host(t), process(jnp.asarray(t, jnp.float32))
        np.testing.assert_allclose(single.alpha, exact.alpha, rtol=2e-4, atol=2e-6)
        np.testing.assert_allclose(single.sigma, exact.sigma, rtol=2e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPLinear(t_min=2.0), "t_min=2.0"),
        (lambda: VPLinear(beta_max=0.05), "0.05"),
        (lambda: VPDiscrete(betas=(0.1, 1.5)), "1.5"),
        (lambda: Shifted(process=EDM(), shift=-1.0), "-1.0"),
        (lambda: ZeroTerminalSNR(process=EDM(), t_max=80.0), "EDM"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
