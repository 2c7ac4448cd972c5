"""Evaluators: what a config names to have a run measured and drawn.

An evaluator gets a `Run`, a generator with the parameters and the program of one solver, and gives
numbers with their floor and reference, and pictures. `ImageQuality` is for labelled images with a
real data set beside them, `PointQuality` for models of a distribution that is known exactly.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from scorediff.data.pipeline import load_all
from scorediff.data.source import Source
from scorediff.data.toy import ExactDistribution
from scorediff.data.transforms import to_uint8
from scorediff.errors import UserError
from scorediff.evaluation import pictures
from scorediff.evaluation.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
)
from scorediff.evaluation.generate import Generator, Samples
from scorediff.evaluation.image_quality import (
    RealImages,
    Reference,
    measure_samples,
    train_reference,
)
from scorediff.evaluation.neighbours import nearest
from scorediff.evaluation.result import Spread, hash_json, spreads
from scorediff.solvers import StepTable
from scorediff.solvers.program import Program
from scorediff.types import Array, Cond, Params

GRID_ROWS, STRIP_SAMPLES = 8, 6


class Run(NamedTuple):
    """A trained model and the solver that it is sampled with."""

    generate: Generator
    params: Params
    program: Program

    def draw(self, n: int, seed: int) -> Samples:
        return self.generate(self.params, self.program, n, seed=seed)


class Measurement(NamedTuple):
    """Numbers over seeds, the same measured on real data, and what they are compared with.

    nfe: network evaluations made for each sample, as counted.
    """

    numbers: Mapping[str, Spread]
    floor: Mapping[str, Spread]
    reference: str
    reference_hash: str
    samples: int
    seeds: tuple[int, ...]
    nfe: float


class Evaluator(Protocol):
    """What a config's `evaluation` node builds."""

    def picture(self, run: Run, path: Path) -> None:
        """Write one picture of samples, for a look during training."""
        ...

    def measure(self, run: Run) -> Measurement: ...

    def draw(self, run: Run, folder: Path) -> None:
        """Write the pictures of a finished run."""
        ...


@dataclass(frozen=True, kw_only=True)
class ImageQuality:
    """Labelled images against a real data set, in the features of a classifier trained on it.

    train, test: the real splits. white: the value of a white pixel. samples: for each of `seeds`.
    classifier_steps: of the two small classifiers, trained anew (seconds for the digits).
    """

    train: Source
    test: Source
    white: int = 255
    samples: int = 1000
    seeds: tuple[int, ...] = (0, 1, 2)
    classifier_steps: int = 500

    def __post_init__(self):
        if self.samples < 2 or not self.seeds:
            raise UserError(f"nothing to measure: samples={self.samples}, seeds={self.seeds}")

    def picture(self, run: Run, path: Path) -> None:
        samples = run.draw(GRID_ROWS * _classes(run), seed=0)
        pictures.save_image(path, _grid(samples))

    def measure(self, run: Run) -> Measurement:
        numbers, spent = [], []
        for seed in self.seeds:
            samples = run.draw(self.samples, seed)
            spent.append(samples.nfe)
            numbers.append(
                measure_samples(self._pixels(samples.x0), samples.labels, self._reference)
            )
        return Measurement(
            numbers=spreads(numbers),
            floor=self._reference.floor,
            reference=str(self._reference),
            reference_hash=self._reference.statistics.digest(),
            samples=self.samples,
            seeds=self.seeds,
            nfe=float(np.mean(spent)),
        )

    def draw(self, run: Run, folder: Path) -> None:
        self.picture(run, folder / "samples.png")
        pictures.save_image(folder / "neighbours.png", self._neighbours(run))
        strip = folder / "strip.png"
        if isinstance(run.program, StepTable):
            states = run.generate.trajectory(run.params, run.program, STRIP_SAMPLES, seed=0)
            times = run.program.t.tolist()
            pictures.save_image(strip, pictures.denoising_strip(pictures.from_unit(states), times))
        else:  # no rows to show; nor should the rows of an earlier solver stay
            strip.unlink(missing_ok=True)

    def _neighbours(self, run: Run, n: int = 10) -> Image.Image:
        samples = run.draw(n, seed=1)
        mine, real = self._pixels(samples.x0), self._real.train
        found = nearest(mine / self.white, real / self.white)
        scale = np.sqrt(np.prod(mine.shape[1:]))
        both = [pictures.brighten(images, self.white) for images in (mine, real[found.index])]
        return pictures.neighbours_picture(*both, (found.distance / scale).tolist())

    def _pixels(self, x0: np.ndarray) -> np.ndarray:
        return np.asarray(to_uint8(x0, high=float(self.white)))

    @functools.cached_property
    def _real(self) -> RealImages:
        train, test = (load_all(source) for source in (self.train, self.test))
        return RealImages(
            train=train["image"],
            train_label=train["label"],
            test=test["image"],
            test_label=test["label"],
            white=self.white,
        )

    @functools.cached_property
    def _reference(self) -> Reference:
        return train_reference(self._real, steps=self.classifier_steps)


@dataclass(frozen=True, kw_only=True)
class PointQuality:
    """Points against the exact distribution that they were trained on.

    The score error at a noise level is the root mean square of sigma (score_hat - score), over
    draws of the exact x_t, half of them with their class and half with none; 0 is perfect. Levels
    are logSNR. It belongs to the network alone: no solver or guidance is in it.
    """

    distribution: ExactDistribution
    levels: tuple[float, ...] = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)
    samples: int = 4000
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self):
        if self.samples < 2 or not self.seeds or not self.levels:
            raise UserError(
                f"nothing to measure: samples={self.samples}, seeds={self.seeds}, "
                f"levels={self.levels}"
            )

    def picture(self, run: Run, path: Path) -> None:
        points = run.draw(self.samples, seed=0).x0
        pictures.scatter_picture(path, points, self._labelled(0)[0])

    def measure(self, run: Run) -> Measurement:
        numbers, floor, spent = [], [], []
        for seed in self.seeds:
            samples = run.draw(self.samples, seed)
            spent.append(samples.nfe)
            numbers.append(self._quality(samples.x0, samples.labels))
            errors = dict(zip(self.levels, self.score_errors(run, seed), strict=True))
            numbers[-1] |= {f"score_error_at_logsnr_{k:g}": float(v) for k, v in errors.items()}
            floor.append(self._quality(*self._labelled(seed)))
        return Measurement(
            numbers=spreads(numbers),
            floor=spreads(floor),
            reference=f"the exact {type(self.distribution).__name__}",
            reference_hash=hash_json(repr(self.distribution)),
            samples=self.samples,
            seeds=self.seeds,
            nfe=float(np.mean(spent)),
        )

    def draw(self, run: Run, folder: Path) -> None:
        self.picture(run, folder / "mixture.png")
        curve = {"network": self.score_errors(run, seed=0)}
        pictures.noise_level_plot(folder / "score_error.png", self.levels, curve)

    def score_errors(self, run: Run, seed: int) -> np.ndarray:
        """The score error at each level."""
        process = run.generate.denoiser.process
        t = process.host_when(np.exp(np.array(self.levels) / 2), np.ones(len(self.levels)))
        x0, label = self._labelled(seed)
        null = run.generate.null_cond.get("label")
        # a point goes with its own class, or with none: other classes never see it in training
        cond = None if null is None else {"label": np.where(np.arange(len(x0)) % 2, label, null)}
        noise = jax.random.normal(jax.random.key(seed), x0.shape)
        return np.array([self._score_error(run, at, x0, noise, cond) for at in t.tolist()])

    def _score_error(self, run: Run, t: float, x0: np.ndarray, noise: Array, cond: Cond) -> float:
        denoiser = run.generate.denoiser
        m = denoiser.process(jnp.asarray(t))
        x = m.alpha * x0 + m.sigma * noise
        found = denoiser.bind(run.params)(x, jnp.asarray(t), cond)
        exact = self.distribution.x0_hat(x, m.alpha, m.sigma, cond)
        return float(jnp.sqrt(jnp.mean((m.alpha / m.sigma * (found - exact)) ** 2)))

    def _quality(self, x0: np.ndarray, labels: np.ndarray | None) -> dict[str, float]:
        distance = frechet_distance(feature_statistics(x0), self._moments)
        numbers = {
            "moment_distance": distance,
            "log_density": float(jnp.mean(self.distribution.logpdf(x0))),
        }
        if labels is not None:
            guess = np.argmax(self.distribution.class_probabilities(x0), axis=-1)
            numbers["right_class"] = float(np.mean(guess == labels))
        return numbers

    def _labelled(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return self.distribution.sample_host(np.random.default_rng(seed), self.samples)

    @property
    def _moments(self) -> FeatureStatistics:
        mean, cov = self.distribution.moments()
        return FeatureStatistics(mean=mean, cov=cov, n=self.samples)


def _classes(run: Run) -> int:
    return int(run.generate.null_cond.get("label", GRID_ROWS))


def _grid(samples: Samples) -> Image.Image:
    shown = pictures.from_unit(samples.x0)
    if samples.labels is None:
        return pictures.image_grid(shown, columns=GRID_ROWS)
    return pictures.class_grid(shown, samples.labels, rows=GRID_ROWS)
