"""Guidance rules against closed forms on an exact class-conditional mixture."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.diffusion import (
    EDM,
    VE,
    FlowMatching,
    SubVP,
    Trigonometric,
    VPLinear,
    ZeroTerminalSNR,
    target,
)
from scorediff.diffusion.classifier_guidance import classifier_guided
from scorediff.diffusion.clipping import dynamically_clipped
from scorediff.diffusion.guidance import (
    autoguidance,
    cfg_zero,
    classifier_free,
    composed,
    projected,
    rescaled,
)
from scorediff.diffusion.intervals import interval, zero_init
from scorediff.errors import UserError
from tests.oracles import bed_a

BED = bed_a(labels=(0, 0, 1, 1, 2))
NULL = {"label": BED.num_classes}
N = 24
X = 1.5 * jax.random.normal(jax.random.key(0), (N, 2))
COND = {"label": jnp.arange(N, dtype=jnp.int32) % 3}
PROCESSES = (VPLinear(), SubVP(), VE(), EDM(), FlowMatching(), Trigonometric())


def exact(process):
    return BED.denoiser(process)


def gaussians(process):
    """Exact for one round Gaussian a class, a wider one for the null class; quick to compile."""
    means = np.float32([[1.0, 0.5], [-1.0, 1.0], [0.5, -1.5], [0.2, 0.1]])

    def denoise(x, t, cond):
        m, label = process(t).expand(x), cond["label"]
        mean, variance = jnp.asarray(means)[label], jnp.where(label == 3, 1.0, 0.3)[:, None]
        gain = m.alpha * variance / (m.alpha**2 * variance + m.sigma**2)
        return mean + gain * (x - m.alpha * mean)

    return denoise


def at(rule, t, cond=COND):
    """A rule at X, compiled: one compilation instead of many small ones."""
    return np.asarray(jax.jit(rule)(X, jnp.asarray(t, jnp.float32), cond))


def host(process, t):
    """alpha and sigma at t, as numbers."""
    m = process.host(np.array([t]))
    return float(m.alpha[0]), float(m.sigma[0])


def score(process, t, x0_hat):
    alpha, sigma = host(process, t)
    return (alpha * x0_hat - np.asarray(X)) / sigma**2


def exact_score(process, t, label):
    return np.asarray(BED.score(X, *host(process, t), {"label": label}))


NO_LABEL = jnp.full_like(COND["label"], BED.num_classes)


# --- one condition, a negative one, several


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_guided_score_is_its_closed_form(t):
    process = FlowMatching()
    u, c = (exact_score(process, t, label) for label in (NO_LABEL, COND["label"]))
    for scale in (-1.0, 0.0, 0.5, 3.0):
        for times in (t, np.full(N, t, np.float32)):
            found = score(process, t, classifier_free_flow(scale, times))
            np.testing.assert_allclose(found, u + scale * (c - u), rtol=5e-4, atol=5e-4)


@jax.jit
def classifier_free_flow(scale, t):
    return classifier_free(exact(FlowMatching()), null_cond=NULL, scale=scale)(X, t, COND)


def test_scale_zero_is_the_null_condition_alone():
    unconditional = classifier_free(gaussians(VPLinear()), null_cond=NULL, scale=0)
    wanted = at(gaussians(VPLinear()), 0.3, {"label": NO_LABEL})
    np.testing.assert_allclose(at(unconditional, 0.3), wanted, rtol=1e-5, atol=1e-6)


def test_scale_one_returns_the_same_function_and_needs_no_null_condition():
    denoise = exact(VPLinear())
    options = {"null_cond": {}, "scale": 1}
    process = VPLinear()
    assert classifier_free(denoise, **options) is denoise
    assert projected(denoise, **options) is denoise
    assert rescaled(denoise, process=process, **options) is denoise
    assert cfg_zero(denoise, process=process, **options) is denoise
    assert autoguidance(denoise, denoise, scale=1) is denoise
    assert classifier_guided(denoise, None, process=process, scale=0) is denoise


def test_scale_may_be_an_array():
    scales = np.linspace(0.0, 4.0, N)

    @jax.jit
    def guided(scale):
        return classifier_free(gaussians(VPLinear()), null_cond=NULL, scale=scale)(X, 0.3, COND)

    each = guided(scales)
    for i in (0, 7, N - 1):
        np.testing.assert_allclose(each[i], guided(scales[i])[i], rtol=1e-5, atol=1e-6)


def test_null_condition_may_be_an_array():
    """An embedding [n, d] is broadcast over the samples, beside a label."""

    def denoise(x, t, cond):
        return x + jnp.sum(cond["text"], axis=(1, 2))[:, None] + cond["label"][:, None]

    text = jax.random.normal(jax.random.key(1), (N, 3, 5))
    empty = jax.random.normal(jax.random.key(2), (3, 5))
    null = {"text": empty, "label": 7}
    guided = classifier_free(denoise, null_cond=null, scale=3.0)
    found = at(guided, 0.5, {"text": text, **COND})
    c, u = np.asarray(text).sum((1, 2)) + COND["label"], np.asarray(empty).sum() + 7
    np.testing.assert_allclose(found, X + (u + 3 * (c - u))[:, None], rtol=1e-4, atol=1e-4)


def test_a_negative_condition_takes_the_place_of_the_null():
    process, t = FlowMatching(), 0.5
    negative = (COND["label"] + 1) % 4  # for every third sample the null label itself
    guided = classifier_free(exact(process), null_cond={}, scale=2.0)
    found = at(guided, t, COND | {"negative_label": negative})
    u, c = (exact_score(process, t, label) for label in (negative, COND["label"]))
    np.testing.assert_allclose(score(process, t, found), 2 * c - u, rtol=2e-4, atol=2e-4)


def test_composed_score_is_its_closed_form():
    process, t, scales = FlowMatching(), 0.4, (2.0, 1.5, -0.5)
    labels = jnp.stack([(COND["label"] + i) % 3 for i in range(3)], axis=1)
    guided = composed(exact(process), null_cond=NULL, scales=scales)
    u = exact_score(process, t, NO_LABEL)
    wanted = u + sum(w * (exact_score(process, t, labels[:, i]) - u) for i, w in enumerate(scales))
    found = score(process, t, at(guided, t, {"label": labels}))
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=5e-4)


def test_one_composed_condition_is_classifier_free():
    denoise, t = gaussians(VPLinear()), 0.3
    one = composed(denoise, null_cond=NULL, scales=(2.5,))
    np.testing.assert_allclose(
        at(one, t, {"label": COND["label"][:, None]}),
        at(classifier_free(denoise, null_cond=NULL, scale=2.5), t),
        rtol=1e-5,
        atol=1e-6,
    )


# --- a classifier, a weaker model


def log_class(process):
    def log_probability(x, t, cond):
        m = process(t)
        log = jnp.log(BED.class_probabilities(x, m.alpha, m.sigma))
        return jnp.take_along_axis(log, cond["label"][:, None], axis=1)[:, 0]

    return log_probability


@pytest.mark.parametrize("process", [VPLinear(), EDM()])
def test_the_exact_classifier_makes_the_conditional_model(process):
    denoise = exact(process)
    unconditional = classifier_free(denoise, null_cond=NULL, scale=0)
    guided = jax.jit(
        classifier_guided(unconditional, log_class(process), process=process, scale=1.0)
    )
    for noise in (0.5, 1.0, 3.0):
        t = float(process.host_when(np.ones(1), np.array([noise]))[0])
        np.testing.assert_allclose(
            guided(X, jnp.asarray(t), COND), at(denoise, t), rtol=1e-3, atol=1e-3
        )


def test_autoguidance_moves_away_from_the_weaker_model():
    denoise, t = gaussians(VPLinear()), 0.4
    c = at(denoise, t)
    np.testing.assert_allclose(
        at(autoguidance(denoise, denoise, scale=3.0), t), c, rtol=1e-6, atol=1e-6
    )
    weak = classifier_free(denoise, null_cond=NULL, scale=0)
    np.testing.assert_allclose(
        at(autoguidance(denoise, weak, scale=3.0), t),
        at(classifier_free(denoise, null_cond=NULL, scale=3.0), t),
        rtol=1e-5,
        atol=1e-5,
    )


# --- rules that are not linear


def test_projected_drops_what_is_parallel():
    denoise, t, scale = gaussians(VPLinear()), 0.5, 4.0
    plain = at(classifier_free(denoise, null_cond=NULL, scale=scale), t)
    same = at(projected(denoise, null_cond=NULL, scale=scale, eta=1.0), t)
    np.testing.assert_allclose(same, plain, rtol=1e-4, atol=1e-5)
    c = at(denoise, t)
    move = at(projected(denoise, null_cond=NULL, scale=scale), t) - c
    np.testing.assert_allclose(np.sum(move * c, 1), 0, atol=1e-4)
    parallel = plain - c - move  # what was dropped lies along c
    np.testing.assert_allclose(parallel[:, 0] * c[:, 1], parallel[:, 1] * c[:, 0], atol=1e-4)


def test_projected_shortens_only_long_moves():
    denoise, t, scale, radius = gaussians(VPLinear()), 0.5, 4.0, 1.0
    c = at(denoise, t)
    limited, plain = (
        at(rule, t) - c
        for rule in (
            projected(denoise, null_cond=NULL, scale=scale, eta=1.0, max_norm=radius),
            classifier_free(denoise, null_cond=NULL, scale=scale),
        )
    )
    norm, whole = np.linalg.norm(limited, axis=1), np.linalg.norm(plain, axis=1)
    np.testing.assert_allclose(norm, np.minimum(whole, 3 * radius), rtol=1e-3, atol=1e-5)
    assert (whole > 3 * radius).any() and (whole < 3 * radius).any()


@pytest.mark.parametrize("row", [target.v, target.eps, target.velocity])
def test_rescaled_prediction_has_the_conditional_deviation(row):
    process, t = VPLinear(), 0.5
    denoise, (alpha, sigma) = gaussians(process), host(process, t)
    a, b = (float(entry[0]) for entry in row(process.host(np.array([t]))))

    def prediction(rule):
        x0_hat = at(rule, t)
        return a * x0_hat + b * (X - alpha * x0_hat) / sigma

    options = {"process": process, "null_cond": NULL, "scale": 3.0, "target": row}
    plain = prediction(classifier_free(denoise, null_cond=NULL, scale=3.0))
    np.testing.assert_array_equal(prediction(rescaled(denoise, phi=0.0, **options)), plain)
    whole = prediction(rescaled(denoise, phi=1.0, **options))
    wanted = np.std(prediction(denoise), axis=1)
    np.testing.assert_allclose(np.std(whole, axis=1), wanted, rtol=1e-3, atol=1e-4)
    half = prediction(rescaled(denoise, phi=0.5, **options))
    np.testing.assert_allclose(half, (whole + plain) / 2, rtol=1e-3, atol=1e-4)


def test_cfg_zero_takes_the_nearest_multiple_of_the_null_velocity():
    """On the straight path the velocity is eps - x0, and s u is c's projection on u."""
    process, t, scale = FlowMatching(), 0.6, 2.5
    alpha, sigma = host(process, t)

    def velocity(x0_hat):
        return (X - alpha * x0_hat) / sigma - x0_hat

    c, u = (velocity(at(gaussians(process), t, {"label": k})) for k in (COND["label"], NO_LABEL))
    direction = u / np.linalg.norm(u, axis=1, keepdims=True)
    nearest = np.sum(c * direction, axis=1, keepdims=True) * direction
    guided = cfg_zero(gaussians(process), process=process, null_cond=NULL, scale=scale)
    found = velocity(at(guided, t))
    np.testing.assert_allclose(found, nearest + scale * (c - nearest), rtol=1e-3, atol=1e-3)


# --- finite everywhere, or refused


def every_rule(process):
    denoise = gaussians(process)
    options = {"null_cond": NULL, "scale": 3.0}
    cfg = classifier_free(denoise, **options)
    on = {"process": process}
    yield "cfg", lambda: cfg
    yield "projected", lambda: projected(denoise, max_norm=1.0, **options)
    for row in (target.v, target.eps, target.x0, target.velocity):
        yield (
            f"rescaled {row.__name__}",
            lambda row=row: rescaled(denoise, target=row, **on, **options),
        )
    yield "cfg_zero", lambda: cfg_zero(denoise, **on, **options)
    middle = (process.t_min + process.t_max) / 2
    yield "zero_init", lambda: zero_init(cfg, above=middle, **on)
    yield "interval", lambda: interval(cfg, denoise, low=0.1, high=5.0, **on)
    yield "auto", lambda: autoguidance(cfg, denoise, scale=2.0)
    yield "clipped", lambda: dynamically_clipped(cfg)
    yield "classifier", lambda: classifier_guided(denoise, smooth_classifier, scale=2.0, **on)


def smooth_classifier(x, t, cond):
    return -jnp.sum(jnp.square(x), axis=1) / (1 + jnp.square(t))


QUICK = ("VPLinear", "VE", "FlowMatching")  # one compilation of every rule each


@pytest.mark.parametrize(
    "process",
    [
        pytest.param(p, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for p, name in ((p, type(p).__name__) for p in PROCESSES)
    ],
)
def test_every_rule_is_finite_on_every_process_or_refused(process):
    times = np.linspace(process.t_min, process.t_max, N, dtype=np.float32)
    m = process.host(times)
    x = m.alpha[:, None] * BED.components.means[:1] + m.sigma[:, None] * X
    made, refused = {}, {}
    for name, make in every_rule(process):
        try:
            made[name] = make()
        except UserError as error:
            refused[name] = str(error)
    found = jax.jit(lambda x, t: {name: rule(x, t, COND) for name, rule in made.items()})(
        x.astype(np.float32), times
    )
    assert all(np.all(np.isfinite(x0_hat)) for x0_hat in found.values())
    ends_in_noise = isinstance(process, FlowMatching | Trigonometric)
    assert set(refused) == ({"rescaled eps", "classifier"} if ends_in_noise else set())
    assert all("t=1" in reason for reason in refused.values())


def test_zero_terminal_snr_is_finite_in_v():
    process = ZeroTerminalSNR(process=VPLinear())
    rule = rescaled(gaussians(process), process=process, null_cond=NULL, scale=7.5)
    assert np.all(np.isfinite(at(rule, 1.0)))


# --- mistakes


def plain(x, t, cond=None):
    return x


def guide(cond, **options):
    options = {"null_cond": NULL, "scale": 2.0} | options
    return classifier_free(plain, **options)(X, jnp.asarray(0.5), cond)


def composed_of(cond, scales=(1.0, 2.0)):
    return composed(plain, null_cond=NULL, scales=scales)(X, jnp.asarray(0.5), cond)


VP = VPLinear()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: guide(None), "cond=None"),
        (lambda: guide({**COND, "text": X}), r"lacks \['text'\].*\['label'\]"),
        (lambda: guide(COND, null_cond={"label": jnp.zeros(5)}), r"'label'.*\(5,\).*\(24,\)"),
        (lambda: guide(COND, scale=math.nan), "nan"),
        (lambda: composed_of(COND), r"2 scales.*\[b, 2, ...\].*\(24,\)"),
        (lambda: composed_of(None), "cond=None"),
        (lambda: composed_of(COND, ()), r"scales=\(\)"),
        (lambda: projected(plain, null_cond=NULL, scale=2, max_norm=0.0), "max_norm.*0.0"),
        (lambda: projected(plain, null_cond=NULL, scale=2, eta=math.inf), "eta.*inf"),
        (lambda: rescaled(plain, process=VP, null_cond=NULL, scale=2, phi=1.5), "phi.*1.5"),
        (lambda: interval(plain, plain, process=VP, low=2.0, high=1.0), "low=2.0, high=1.0"),
        (lambda: interval(plain, plain, process=VP, low=-1.0), "low=-1.0"),
        (lambda: interval(plain, plain, process=VP, clock="sigma"), "'sigma'"),
        (lambda: zero_init(plain, process=VP, above=math.nan), "nan"),
        (lambda: zero_init(plain, process=VPLinear(t_min=0.0), above=0.9), "t=0 of VPLinear"),
        (lambda: classifier_guided(plain, plain, process=VP, scale=math.inf), "inf"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(UserError, match=words):
        make()
