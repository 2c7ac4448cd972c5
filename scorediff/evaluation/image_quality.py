"""The measurements of a set of generated images, and what the same measurements say of real ones.

Every number stands beside its *floor*: the same quantity measured on real images in the place of
samples. For Frechet distance, precision and recall the floor is one random half of the training set
against the other half; for the share recognised and the neighbours it is the held-out images.
A perfect generator scores about the floor, not zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scorediff.evaluation.classifier import Classifier, train_classifier
from scorediff.evaluation.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
)
from scorediff.evaluation.neighbours import memorisation
from scorediff.evaluation.precision_recall import density_coverage, precision_recall
from scorediff.evaluation.result import Spread, spreads

HALVINGS = 10


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """Real images uint8 [n, h, w, c] in 0..white with labels [n]: training and test split."""

    train: np.ndarray
    train_label: np.ndarray
    test: np.ndarray
    test_label: np.ndarray
    white: int = 255  # the value of a white pixel; 16 in the digits

    def __post_init__(self):
        for name in ("train", "test"):
            images, labels = getattr(self, name), getattr(self, name + "_label")
            if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
                found = f"{images.dtype} {images.shape} with labels {labels.shape}"
                raise ValueError(f"{name} must be uint8 [n, h, w, c] with n labels, got {found}")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What samples are compared with: the real images in feature space, and the two classifiers."""

    real: RealImages
    feature_net: Classifier
    judge: Classifier
    features: np.ndarray  # of the training images, [n, d]
    statistics: FeatureStatistics
    floor: dict[str, Spread]
    judge_accuracy: float  # on the test split

    def __str__(self) -> str:
        n, d = self.features.shape
        return (
            f"{n} real training images in {d} features of a classifier trained on them; "
            f"judge with {100 * self.judge_accuracy:.1f} % test accuracy"
        )


def compare(real: np.ndarray, samples: np.ndarray) -> dict[str, float]:
    """Frechet distance, precision, recall, density and coverage of two feature sets [n, d]."""
    distance = frechet_distance(feature_statistics(real), feature_statistics(samples))
    shape = precision_recall(real, samples)._asdict() | density_coverage(real, samples)._asdict()
    return {"frechet": distance, **shape}


def _halves(features: np.ndarray) -> Iterator[dict[str, float]]:
    for seed in range(HALVINGS):
        order = np.random.default_rng(seed).permutation(len(features))
        half = len(order) // 2
        yield compare(features[order[:half]], features[order[half:]])


def _floor(real: RealImages, feature_net: Classifier, judge: Classifier) -> dict[str, Spread]:
    """The numbers of `measure_samples`, with real images as the samples."""
    features = feature_net.features(real.train)
    held_out = feature_net.features(real.test)
    seen = memorisation(real.test, real.train, real.test, white=real.white)
    single = {
        "frechet_test": frechet_distance(
            feature_statistics(features), feature_statistics(held_out)
        ),
        "recognised": judge.accuracy(real.test, real.test_label),
        "near_train": seen.near,
        "train_distance": seen.distance,
    }
    return spreads(list(_halves(features))) | spreads([single])


def make_reference(real: RealImages, *, feature_net: Classifier, judge: Classifier) -> Reference:
    """Everything about the real images that does not depend on samples."""
    features = feature_net.features(real.train)
    return Reference(
        real=real,
        feature_net=feature_net,
        judge=judge,
        features=features,
        statistics=feature_statistics(features),
        floor=_floor(real, feature_net, judge),
        judge_accuracy=judge.accuracy(real.test, real.test_label),
    )


def train_reference(real: RealImages, *, seed: int = 0, steps: int = 500) -> Reference:
    """`make_reference` with two classifiers trained here: other seeds, other widths."""

    def trained(seed: int, width: int) -> Classifier:
        return train_classifier(
            real.train, real.train_label, seed=seed, white=real.white, width=width, steps=steps
        )

    feature_net, judge = trained(2 * seed, 24), trained(2 * seed + 1, 32)
    return make_reference(real, feature_net=feature_net, judge=judge)


def measure_samples(
    samples: np.ndarray, labels: np.ndarray | None, reference: Reference
) -> dict[str, float]:
    """All numbers of one set of samples.

    Args:
        samples: uint8 [n, h, w, c] in 0..white, as the real images.
        labels: [n], the class each sample was asked to be; None for an unconditional model, which
            leaves out `recognised`.

    Returns:
        frechet, frechet_ratio (to the mean floor), precision, recall, density, coverage,
        recognised (share), near_train (share nearer to a training image than 95 % of the held-out
        images are), train_distance (median distance to the nearest training image, root mean
        square per pixel of the full range).
    """
    if samples.dtype != np.uint8 or samples.shape[1:] != reference.real.train.shape[1:]:
        expected = reference.real.train.shape[1:]
        raise ValueError(f"expected uint8 {expected} images, got {samples.dtype} {samples.shape}")
    numbers = compare(reference.features, reference.feature_net.features(samples))
    numbers["frechet_ratio"] = numbers["frechet"] / reference.floor["frechet"].mean
    if labels is not None:
        numbers["recognised"] = reference.judge.accuracy(samples, labels)
    real = reference.real
    near = memorisation(samples, real.train, real.test, white=real.white)
    return numbers | {"near_train": near.near, "train_distance": near.distance}
