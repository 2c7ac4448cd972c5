"""Evaluators on models whose quality is known: the exact denoiser, and one that knows nothing."""

import json
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from scorediff.data.toy import GaussianMixture, pinwheel
from scorediff.diffusion import EDM, FlowMatching, VPCosine
from scorediff.errors import UserError
from scorediff.evaluation.evaluators import ImageQuality, PointQuality, Run
from scorediff.evaluation.generate import Generator, Sampling
from scorediff.solvers import dpm_adaptive, heun, karras, uniform

CLASSES = 4
POINTS = pinwheel(num_classes=CLASSES)
PROCESS = EDM(t_min=0.005, t_max=60.0)
LEVELS = (-8.0, -4.0, 0.0, 4.0, 8.0)


@dataclass(frozen=True, kw_only=True)
class Exact:
    """In the place of a trained `Denoiser`: the perfect one, times `params`."""

    process: Any
    distribution: Any = POINTS

    def bind(self, params):
        exact = self.distribution.denoiser(self.process)
        return lambda x, t, cond=None: params * exact(x, t, cond)


def exact_run(
    params=1.0, *, process=PROCESS, distribution=POINTS, classes=CLASSES, solver=heun, **options
):
    """A run of the exact model; params = 0 is a model that always answers the origin."""
    generate = Generator(
        denoiser=Exact(process=process, distribution=distribution),
        shape=options.pop("shape", (2,)),
        null_cond={} if classes is None else {"label": classes},
        sampling=Sampling(batch_size=500, **options),
    )
    grid = karras if process is PROCESS else uniform
    program = Sampling(grid=grid, nfe=99).program(solver, process)
    return Run(generate, jnp.float32(params), program)


@pytest.fixture(scope="module")
def points():
    return PointQuality(distribution=POINTS, levels=LEVELS, samples=1500, seeds=(0, 1))


@pytest.mark.parametrize("process", [PROCESS, VPCosine(), FlowMatching()], ids=lambda p: str(p)[:6])
def test_the_exact_denoiser_has_no_score_error_at_any_level(points, process):
    errors = points.score_errors(exact_run(process=process), seed=0)
    assert errors.shape == (len(LEVELS),)
    assert errors.max() < 1e-4  # float32; a model that knows nothing has up to 100


def test_the_score_error_is_that_of_the_formula(points):
    """Half the exact answer is wrong by alpha/sigma |x0_hat| / 2 a dimension."""
    found = points.score_errors(exact_run(0.5), seed=0)
    whole = points.score_errors(exact_run(0.0), seed=0)
    np.testing.assert_allclose(found, whole / 2, rtol=1e-3)
    # With hardly any noise x0_hat = x0, and the mean square is that of the data.
    mean, cov = POINTS.moments()
    size = np.sqrt((np.trace(cov) + mean @ mean) / 2)
    assert whole[-1] == pytest.approx(np.exp(LEVELS[-1] / 2) * size, rel=0.05)
    assert (np.diff(whole) > 0).all()


def test_the_exact_model_is_at_the_floor(points):
    found = points.measure(exact_run())
    numbers, floor = found.numbers, found.floor
    assert numbers["moment_distance"].mean < 5 * floor["moment_distance"].mean
    assert numbers["log_density"].mean == pytest.approx(floor["log_density"].mean, abs=0.1)
    assert numbers["right_class"].mean == pytest.approx(floor["right_class"].mean, abs=0.02)
    assert numbers["right_class"].mean > 0.95
    assert numbers["score_error_at_logsnr_-4"].mean < 1e-4
    assert (found.samples, found.seeds, numbers["moment_distance"].n) == (1500, (0, 1), 2)


def test_a_model_that_knows_nothing_is_far_from_it(points):
    found = points.measure(exact_run(0.0))
    # All samples lie at the origin, which is no arm's place.
    mean, cov = POINTS.moments()
    assert found.numbers["moment_distance"].mean == pytest.approx(
        np.trace(cov) + mean @ mean, rel=0.05
    )
    assert found.numbers["moment_distance"].mean > 100 * found.floor["moment_distance"].mean
    assert found.numbers["right_class"].mean < 0.5
    origin = float(POINTS.logpdf(jnp.zeros((1, 2)))[0])
    assert found.numbers["log_density"].mean == pytest.approx(origin, abs=1e-3)
    assert origin < found.floor["log_density"].mean
    assert found.numbers["score_error_at_logsnr_4"].mean > 1


@pytest.mark.slow
def test_guidance_is_not_in_the_score_error_but_in_the_samples(points):
    plain, guided = exact_run(), exact_run(guidance_scale=3.0)
    np.testing.assert_array_equal(
        points.score_errors(plain, seed=0), points.score_errors(guided, seed=0)
    )
    mine, theirs = plain.draw(200, 0), guided.draw(200, 0)
    assert mine.labels.tolist() == [i % CLASSES for i in range(200)]
    assert np.abs(mine.x0 - theirs.x0).max() > 0.1
    sure = POINTS.class_probabilities(theirs.x0)[np.arange(200), theirs.labels]
    assert np.mean(sure > 0.5) > 0.95


def test_an_unconditional_model_is_asked_for_no_class(points):
    run = exact_run(classes=None)
    assert points.score_errors(run, seed=0).max() < 1e-4
    found = points.measure(run)
    assert "right_class" not in found.numbers
    assert found.numbers["moment_distance"].mean < 5 * found.floor["moment_distance"].mean


def test_the_pictures_of_points(points, tmp_path):
    points.draw(exact_run(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mixture.png", "score_error.png"]
    for path in tmp_path.iterdir():
        assert min(Image.open(path).size) > 100


# Images: 4 x 4, bright above or below, and a mixture with the same two classes as the model.


@dataclass(frozen=True, kw_only=True)
class Halves:
    """In the place of a data set: images are bright above (class 0) or below (class 1)."""

    n: int
    seed: int

    def open(self):
        rng, found = np.random.default_rng(self.seed), []
        for label in np.arange(self.n) % 2:
            image = 40 + 8 * rng.standard_normal((4, 4, 1))
            image[2 * label : 2 * label + 2] += 160
            found.append({"image": image.round().astype(np.uint8), "label": np.int32(label)})
        return Listed(found)

    def describe(self):
        return json.loads(json.dumps({"n": self.n, "seed": self.seed}))


class Listed(list):
    def __getitems__(self, indices):
        return [self[i] for i in indices]


def halves_model():
    """The distribution of `Halves` in [-1, 1], exactly but for rounding."""
    means = np.full((2, 4, 4, 1), 40 / 127.5 - 1)
    for label in (0, 1):
        means[label, 2 * label : 2 * label + 2] = 200 / 127.5 - 1
    return GaussianMixture(
        weights=(1.0, 1.0),
        means=tuple(map(tuple, means.reshape(2, 16).tolist())),
        stds=((8 / 127.5,) * 16,) * 2,
        labels=(0, 1),
    )


@pytest.fixture(scope="module")
def images():
    return ImageQuality(
        train=Halves(n=300, seed=1),
        test=Halves(n=100, seed=2),
        samples=300,
        seeds=(0, 1),
        classifier_steps=150,
    )


def image_run(params=1.0, **options):
    distribution = halves_model()
    return exact_run(params, distribution=distribution, classes=2, shape=(4, 4, 1), **options)


@pytest.mark.slow
def test_images_of_the_exact_model_measure_as_real_ones(images):
    found = images.measure(image_run())
    numbers, floor = found.numbers, found.floor
    assert floor["recognised"].mean == 1.0
    assert numbers["recognised"].mean == 1.0
    assert numbers["frechet_ratio"].mean < 3
    assert numbers["precision"].mean > floor["precision"].mean - 0.1
    assert numbers["recall"].mean > floor["recall"].mean - 0.1
    assert numbers["near_train"].mean < 0.15
    assert "300 real training images" in found.reference


@pytest.mark.slow
def test_images_of_a_model_that_knows_nothing_are_caught(images):
    numbers = images.measure(image_run(0.0)).numbers
    assert numbers["recognised"].mean == pytest.approx(0.5)  # one grey image, two classes
    assert numbers["frechet_ratio"].mean > 20
    assert numbers["recall"].mean == 0


@pytest.mark.slow
def test_the_pictures_of_images(images, tmp_path):
    images.draw(image_run(), tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["neighbours.png", "samples.png", "strip.png"]
    for path in tmp_path.iterdir():
        assert min(Image.open(path).size) > 20


@pytest.mark.slow
def test_an_adaptive_solver_has_no_rows_to_show(images, tmp_path):
    (tmp_path / "strip.png").write_text("of an earlier solver")
    images.draw(image_run(solver=dpm_adaptive), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["neighbours.png", "samples.png"]


@pytest.mark.parametrize("wrong", [{"samples": 1}, {"seeds": ()}, {"levels": ()}])
def test_nothing_to_measure_is_refused(wrong):
    with pytest.raises(UserError, match="nothing to measure"):
        PointQuality(distribution=POINTS, **wrong)
    if "levels" not in wrong:
        with pytest.raises(UserError, match="nothing to measure"):
            ImageQuality(train=Halves(n=2, seed=0), test=Halves(n=2, seed=0), **wrong)
