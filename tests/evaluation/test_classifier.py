"""The small classifier learns real digits, repeats itself, and refuses wrong images."""

from pathlib import Path

import numpy as np
import pytest

import scorediff
from scorediff.evaluation.classifier import to_unit, train_classifier

DIGITS = Path(scorediff.__file__).parent / "data" / "digits.npz"


@pytest.fixture(scope="module")
def digits():
    with np.load(DIGITS) as file:
        return file["image"], file["label"], np.arange(len(file["label"])) % 6 == 0


@pytest.fixture(scope="module")
def trained(digits):
    image, label, test = digits
    return train_classifier(
        image[~test], label[~test], seed=0, white=16, width=16, dim=24, steps=150, batch_size=64
    )


@pytest.mark.slow
def test_recognises_unseen_digits(digits, trained):
    image, label, test = digits
    assert trained.accuracy(image[test], label[test]) > 0.9
    shuffled = np.random.default_rng(0).permutation(label[test])
    assert trained.accuracy(image[test], shuffled) < 0.2  # ten classes: a tenth by chance


@pytest.mark.slow
def test_full_training_reaches_98_percent(digits):
    image, label, test = digits
    net = train_classifier(image[~test], label[~test], seed=1, white=16)
    assert net.accuracy(image[test], label[test]) > 0.98


def test_features_do_not_depend_on_the_batch_or_the_range(digits, trained):
    image = digits[0]
    features = trained.features(image[:501])  # one more than a batch
    assert features.shape == (501, 24)
    np.testing.assert_allclose(trained.features(image[500:501])[0], features[500], atol=1e-4)
    as_float = image[:3].astype(np.float32) / 8 - 1
    np.testing.assert_allclose(trained.features(as_float), features[:3], atol=1e-4)
    assert np.linalg.matrix_rank(np.cov(trained.features(image).T)) == 24


@pytest.mark.slow
def test_the_seed_decides_everything(digits):
    image, label = digits[0][:200], digits[1][:200]

    def features(seed):
        short = {"white": 16, "width": 4, "dim": 8, "steps": 3, "batch_size": 16}
        return train_classifier(image, label, seed=seed, **short).features(image[:5])

    np.testing.assert_array_equal(features(3), features(3))
    assert np.abs(features(3) - features(4)).max() > 1e-3


def test_range_and_shape_of_images():
    image = np.arange(17, dtype=np.uint8).reshape(1, 1, 17, 1)
    np.testing.assert_allclose(to_unit(image, 16).ravel(), np.linspace(-1, 1, 17), atol=1e-7)
    with pytest.raises(ValueError, match=r"0\.\.15.*from 0 to 16"):
        to_unit(image, 15)
    with pytest.raises(ValueError, match="shape"):
        to_unit(image[0], 16)
    with pytest.raises(ValueError, match="labels"):
        train_classifier(np.zeros((3, 8, 8, 1), np.uint8), np.zeros(2), seed=0)
