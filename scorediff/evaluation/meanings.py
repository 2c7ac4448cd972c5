"""What each measured number means, in a sentence for a reader who is no expert."""

from collections.abc import Iterable
from typing import NamedTuple


class Meaning(NamedTuple):
    title: str
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
        "1 is perfect",
        "The Frechet distance divided by its floor.",
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
    "coverage": Meaning(
        "Coverage",
        "higher is better",
        "The share of real images with a generated one close by; less swayed by odd images than "
        "recall. It depends on how many images are compared.",
    ),
}
PERCENT = ("recognised", "near_train")


def in_order(names: Iterable[str]) -> list[str]:
    """Names in the order of MEANINGS, the unknown ones after them as they come."""
    order = list(MEANINGS)
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def meaning(name: str) -> Meaning:
    """The meaning of a number; one that is not listed here keeps its own name."""
    return MEANINGS.get(name, Meaning(name.replace("_", " "), "", ""))
