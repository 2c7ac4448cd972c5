"""What each measured number means, in a sentence for a reader who is no expert."""

from collections.abc import Iterable
from typing import NamedTuple


class Meaning(NamedTuple):
    title: str  # in explanations
    better: str  # which way is better
    text: str


MEANINGS = {
    "frechet": Meaning(
        "Frechet distance",
        "lower is better",
        "How different the generated images are from the real ones as a crowd: both crowds are "
        "seen through a small image classifier and compared in average and spread. The floor is "
        "the distance between two random halves of the real images: perfect looks like that.",
    ),
    "frechet_ratio": Meaning(
        "Distance / floor",
        "1 or less is perfect",
        "The Frechet distance divided by its floor. It can be below 1: the halves that make the "
        "floor have fewer images, and fewer images look more different.",
    ),
    "recognised": Meaning(
        "Recognised",
        "higher is better",
        "The share of generated images in which a second, independent classifier sees the class "
        "that the model was asked for. The floor is its hit rate on real images it has not seen.",
    ),
    "precision": Meaning(
        "Precision",
        "higher is better",
        "The share of generated images that lie among real ones: how many look right. "
        "The floor is one half of the real images measured against the other.",
    ),
    "recall": Meaning(
        "Recall",
        "higher is better",
        "The share of real images that lie among generated ones: how much of the variety is "
        "covered. The floor is one half of the real images measured against the other.",
    ),
    "near_train": Meaning(
        "Close copies",
        "not above the floor",
        "The share of generated images nearer to a training image than 95 % of unseen real images "
        "are. About 5 % is what images that copy nothing give; much more means that the model "
        "repeats its training images.",
    ),
    "train_distance": Meaning(
        "Distance to training",
        "near the floor",
        "The typical difference between a generated image and the training image most like it "
        "(0: identical, 1: black against white). The floor is the same for unseen real images.",
    ),
    "density": Meaning(
        "Density",
        "about 1",
        "How tightly generated images lie among real ones; odd images sway it less than precision.",
    ),
    "moment_distance": Meaning(
        "Moment distance",
        "near the floor",
        "How different the samples are from the exact distribution in mean and covariance (squared "
        "Wasserstein-2 distance of the two Gaussians). The floor is exact samples in their place.",
    ),
    "right_class": Meaning(
        "Right class",
        "near the floor",
        "The share of samples for which the class that they were asked for is the most probable "
        "one under the exact distribution. The floor is exact samples in their place.",
    ),
    "log_density": Meaning(
        "Log density",
        "near the floor",
        "How probable the samples are under the exact distribution, on average, in nats. Above the "
        "floor they are too typical, below it some are where nothing should be.",
    ),
    "bits_per_dim": Meaning(
        "Bits per dimension",
        "lower is better",
        "How many bits the model needs for each number of a real example it has not made: minus "
        "the logarithm of its probability, or of its density where data are real numbers.",
    ),
    "standard_error": Meaning(
        "Standard error",
        "",
        "How far the mean over these examples may be from the mean over all, typically.",
    ),
    "rmse": Meaning(
        "Error (RMS)",
        "lower is better",
        "The typical difference between a restored number and the original one. A model that draws "
        "what could have been there is not expected to find what was.",
    ),
    "psnr": Meaning(
        "PSNR",
        "higher is better",
        "The same in decibels below the range of an image, averaged over images.",
    ),
    "psnr_of_measured": Meaning(
        "PSNR before",
        "",
        "The same of the simplest image that fits the measurement, before the model has seen it.",
    ),
    "inconsistency": Meaning(
        "Inconsistency",
        "about the noise of the measurement",
        "What the restored image, degraded in the same way, differs by from the measurement.",
    ),
    "coverage": Meaning(
        "Coverage",
        "higher is better",
        "The share of real images with a generated one close by; less swayed by odd images than "
        "recall. It depends on how many images are compared.",
    ),
}
SCORE_ERROR = "score_error_at_logsnr_"
LEVELLED = Meaning(
    "Score error",
    "0 is perfect",
    "How far the network is from the exact answer at a noise level (large logSNR: little noise), "
    "in units of the noise. The solver plays no part in it.",
)
PERCENT = ("recognised", "near_train", "right_class")


def in_order(names: Iterable[str]) -> list[str]:
    """Names in the order of MEANINGS, the unknown ones after them as they come."""
    order = list(MEANINGS)
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def meaning(name: str) -> Meaning:
    """The meaning of a number; one that is not listed here keeps its own name."""
    if name.startswith(SCORE_ERROR):
        return LEVELLED
    return MEANINGS.get(name, Meaning(name.replace("_", " "), "", ""))


def heading(name: str) -> str:
    """What stands above a column of this number."""
    level = name.removeprefix(SCORE_ERROR)
    return meaning(name).title if level == name else f"{LEVELLED.title} at logSNR {level}"
