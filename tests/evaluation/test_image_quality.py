"""The measurements as a whole, on images whose quality is known by construction."""

from pathlib import Path

import numpy as np
import pytest

import scorediff
from scorediff.evaluation.classifier import train_classifier
from scorediff.evaluation.image_quality import RealImages, make_reference, measure_samples

DIGITS = Path(scorediff.__file__).parent / "data" / "digits.npz"


pytestmark = pytest.mark.slow  # a classifier is trained first


@pytest.fixture(scope="module")
def reference():
    with np.load(DIGITS) as file:
        image, label = file["image"], file["label"]
    test = np.arange(len(label)) % 6 == 0
    real = RealImages(
        train=image[~test],
        train_label=label[~test],
        test=image[test],
        test_label=label[test],
        white=16,
    )
    short = {"white": 16, "width": 12, "dim": 16, "steps": 150, "batch_size": 64}
    nets = [train_classifier(real.train, real.train_label, seed=seed, **short) for seed in (0, 1)]
    return make_reference(real, feature_net=nets[0], judge=nets[1])


def test_unseen_real_images_score_about_the_floor(reference):
    real, floor = reference.real, reference.floor
    numbers = measure_samples(real.test, real.test_label, reference)
    assert numbers["frechet_ratio"] < 3  # 300 images against halves of 748
    assert numbers["frechet"] == pytest.approx(floor["frechet_test"].mean)
    assert numbers["precision"] > floor["precision"].mean - 0.1
    assert numbers["recognised"] == reference.judge_accuracy > 0.85
    assert numbers["near_train"] == pytest.approx(0.05, abs=0.01)


def test_copies_are_caught(reference):
    real = reference.real
    numbers = measure_samples(real.train, real.train_label, reference)
    assert numbers["frechet"] == pytest.approx(0, abs=1e-6)
    assert numbers["near_train"] == 1.0
    assert numbers["train_distance"] == 0.0


def test_noise_a_missing_class_and_wrong_labels_are_caught(reference):
    real, floor = reference.real, reference.floor
    noise = np.random.default_rng(0).integers(0, 17, (400, 8, 8, 1), dtype=np.uint8)
    numbers = measure_samples(noise, np.arange(400) % 10, reference)
    assert numbers["frechet_ratio"] > 20
    assert numbers["recognised"] < 0.3
    assert numbers["near_train"] < 0.01
    kept = real.train_label < 5
    numbers = measure_samples(real.train[kept], None, reference)
    assert "recognised" not in numbers
    assert numbers["precision"] == 1.0
    assert numbers["recall"] < 0.75
    assert numbers["frechet_ratio"] > 5
    wrong = measure_samples(real.test, (real.test_label + 1) % 10, reference)
    assert wrong["recognised"] < 0.1 < floor["recognised"].mean


def test_floor_has_its_spread_and_the_shapes_are_checked(reference):
    assert reference.floor["frechet"].n == 10
    assert reference.floor["frechet"].std > 0
    assert reference.floor["recognised"].std is None
    with pytest.raises(ValueError, match=r"\(8, 8, 1\)"):
        measure_samples(np.zeros((5, 9, 9, 1), np.uint8), None, reference)
    with pytest.raises(ValueError, match="float32"):
        measure_samples(np.zeros((5, 8, 8, 1), np.float32), None, reference)
