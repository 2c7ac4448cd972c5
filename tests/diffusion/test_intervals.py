"""Rules that act along a part of the way, and what all rules cost, counted and for real."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.counting import counted, record
from scorediff.diffusion import FlowMatching, Trigonometric, VPLinear
from scorediff.diffusion.classifier_guidance import classifier_guided
from scorediff.diffusion.clipping import clipped
from scorediff.diffusion.guidance import (
    autoguidance,
    cfg_zero,
    classifier_free,
    composed,
    projected,
    rescaled,
)
from scorediff.diffusion.intervals import interval, zero_init
from scorediff.solvers import ddim, make_grid, sample_keys, uniform
from scorediff.solvers.sample import run
from tests.diffusion.test_guidance import COND, NULL, N, X, at, smooth_classifier


def network(x, t, cond=None):
    """Something cheap that knows its condition."""
    return jnp.sin(x) * (1 + cond["label"][:, None])


@pytest.mark.parametrize("clock", ["noise", "t"])
def test_interval_is_guided_inside_and_plain_outside(clock):
    process = VPLinear()
    guide = classifier_free(network, null_cond=NULL, scale=3.0)
    noise = float(process(0.4).sigma / process(0.4).alpha)
    middle = noise if clock == "noise" else 0.4
    limits = {"low": 0.9 * middle, "high": 1.1 * middle, "clock": clock}
    limited = jax.jit(interval(guide, network, process=process, **limits))
    for t in (0.1, 0.4, 0.8):
        expected = at(guide if t == 0.4 else network, t)
        np.testing.assert_allclose(limited(X, jnp.asarray(t), COND), expected, rtol=1e-5)


def test_each_sample_may_have_its_own_time():
    process = VPLinear()
    guide = classifier_free(network, null_cond=NULL, scale=3.0)
    limited = interval(guide, network, process=process, low=0.3, high=0.5, clock="t")
    times = jnp.tile(jnp.array([0.1, 0.4, 0.8]), N // 3)
    each, count = jax.jit(lambda: counted(lambda: limited(X, times, COND), batch=N))()
    inside = np.asarray(times == 0.4)[:, None]
    expected = np.where(inside, at(guide, times), at(network, times))
    np.testing.assert_allclose(each, expected, rtol=1e-5)
    assert count == 3  # both are evaluated


@pytest.mark.parametrize("process", [FlowMatching(), Trigonometric()])
def test_an_open_interval_holds_pure_noise(process):
    guide = classifier_free(network, null_cond=NULL, scale=3.0)
    limited = interval(guide, network, process=process, low=0.5)
    np.testing.assert_allclose(at(limited, 1.0), at(guide, 1.0), rtol=1e-5)


CALLS = []


def watched(x, t, cond=None):
    """A stand-in for a network, which says at run time how many samples it is given."""
    record(x.shape[0])
    jax.debug.callback(lambda: CALLS.append(x.shape[0]))
    return 0.5 * x + 0.1 * cond["label"][:, None]


def silent(x, t, cond=None):
    """The same without `record`, like an exact formula."""
    jax.debug.callback(lambda: CALLS.append(x.shape[0]))
    return 0.5 * x


def draw(rule, **options):
    """The outcome of 8 rows of DDIM from X. They draw no noise, so none is compiled."""
    table = ddim(make_grid(FlowMatching(), uniform, 8))
    keys = sample_keys(jax.random.key(0), jnp.arange(N))

    def none(keys, stream, over, x):
        return jnp.zeros_like(x)

    CALLS.clear()
    out = jax.jit(lambda x: run(rule, table, x, keys=keys, cond=COND, noise=none, **options))(X)
    jax.effects_barrier()
    return out


def limited_rules(denoise, process):
    """Rules that depend on t, each with its NFE over 8 rows; the interval holds rows 2 to 4."""
    cfg = classifier_free(denoise, null_cond=NULL, scale=2.0)
    within = {"process": process, "low": 0.4, "high": 0.8, "clock": "t"}
    limited = interval(cfg, denoise, **within)
    inner = interval(limited, denoise, process=process, low=0.4, high=0.5, clock="t")
    return {
        "interval": (limited, 11),
        "interval of an interval": (interval(inner, denoise, **within), 9),
        "guided interval": (classifier_free(limited, null_cond=NULL, scale=3.0), 22),
        "waiting": (zero_init(cfg, process=process, above=0.8), 12),
    }


@pytest.mark.parametrize("name", limited_rules(watched, FlowMatching()))
def test_counted_nfe_is_the_number_of_real_evaluations(name):
    denoise = silent if name == "interval" else watched
    rule, nfe = limited_rules(denoise, FlowMatching())[name]
    assert float(draw(rule).nfe) == sum(CALLS) / N == nfe


def test_zero_init_stands_still():
    waiting = zero_init(network, process=FlowMatching(), above=0.6)  # nodes 0, 1, 2 of 8
    seen = draw(waiting, trace=lambda at: at.x).seen
    np.testing.assert_allclose(seen[:4], np.stack([X] * 4), rtol=1e-6, atol=1e-6)
    assert np.abs(seen[4] - X).max() > 0.1


def test_rules_cost_what_they_say():
    t, options = jnp.asarray(0.5), {"null_cond": NULL, "scale": 2.0}
    process = FlowMatching(t_max=0.99)
    for denoise in (watched, silent):
        cfg = classifier_free(denoise, **options)
        for rule, nfe in (
            (denoise, 1),
            (classifier_free(denoise, null_cond=NULL, scale=0), 1),
            (cfg, 2),
            (clipped(cfg), 2),
            (autoguidance(cfg, denoise, scale=2.0), 3),
            (projected(denoise, **options), 2),
            (rescaled(denoise, process=process, **options), 2),
            (cfg_zero(denoise, process=process, **options), 2),
            (classifier_guided(cfg, smooth_classifier, process=process, scale=1.0), 2),
        ):
            CALLS.clear()
            count = jax.jit(lambda x, rule=rule: counted(lambda: rule(x, t, COND), batch=N)[1])(X)
            jax.effects_barrier()
            assert count == sum(CALLS) / N == nfe
    several = composed(silent, null_cond=NULL, scales=(1.0, 2.0, 3.0))
    cond = {"label": jnp.zeros((N, 3), jnp.int32)}
    assert counted(lambda: several(X, t, cond), batch=N)[1] == 4


def test_a_corrector_is_counted_with_its_guidance():
    rule, nfe = limited_rules(watched, FlowMatching())["interval"]

    def adjust(point, key):
        return point.x + 0.01 * rule(point.x, point.t, COND)

    assert float(draw(rule, adjust=adjust).nfe) == sum(CALLS) / N == 2 * nfe


def test_a_nested_interval_has_derivatives_and_vmaps():
    process = FlowMatching()
    rule, _ = limited_rules(lambda x, t, cond: jnp.sin(x), process)["interval of an interval"]

    @jax.jit
    def slope(t):
        gradient = lambda: jax.grad(lambda x: jnp.sum(rule(x, t, COND)))(X)  # noqa: E731
        return counted(gradient, batch=N)

    for t, nfe in ((0.45, 2), (0.7, 1)):
        gradient, count = slope(t)
        np.testing.assert_allclose(gradient, np.cos(X), rtol=1e-5, atol=1e-6)
        assert float(count) == nfe
    together = jax.jit(jax.vmap(lambda t: rule(X, t, COND)))(jnp.array([0.45, 0.7]))
    np.testing.assert_allclose(together, np.stack([np.sin(X)] * 2), rtol=1e-5)
