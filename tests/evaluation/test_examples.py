"""Examples as x0 and as whole numbers, and data of which nobody can say that."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from scorediff.data.transforms import as_x0, to_unit_range
from scorediff.errors import UserError
from scorediff.evaluation.examples import read_examples, whole_numbers

DIGITS = partial(to_unit_range, high=16.0)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Examples that are written down."""

    columns: dict

    def open(self):
        return self

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitems__(self, indices):
        return [{key: column[i] for key, column in self.columns.items()} for i in indices]


def images(dtype=np.uint8):
    image = np.arange(12).reshape(3, 2, 2, 1).astype(dtype)
    return Listed(columns={"image": image, "label": np.array([2, 0, 1])})


def test_images_are_read_as_in_training_and_as_whole_numbers():
    found = read_examples(images(), DIGITS, ("label",), n=2, shape=(2, 2, 1))
    assert found.levels == 17 and found.values.dtype == np.int32
    np.testing.assert_array_equal(found.values.ravel(), np.arange(8))
    np.testing.assert_allclose(found.x0, found.values / 8 - 1)
    assert found.cond["label"].tolist() == [2, 0]


def test_a_range_that_starts_elsewhere_counts_from_its_start():
    values, levels = whole_numbers(
        {"image": np.array([[-1, 2]])}, partial(to_unit_range, low=-1.0, high=2.0), np.zeros((1, 2))
    )
    assert (values.tolist(), levels) == ([[0, 3]], 4)


@pytest.mark.parametrize("to_x0", [DIGITS, partial(as_x0, key="image")])
def test_real_data_have_no_levels(to_x0):
    found = read_examples(images(np.float32), to_x0, (), n=9, shape=(2, 2, 1))
    assert found.values is found.levels is found.cond is None and len(found.x0) == 3


@pytest.mark.parametrize(
    ("to_x0", "options", "message"),
    [
        (partial(to_unit_range, high=8.0), {}, "range 0 to 8, but 'image' holds .* from 0 to 11"),
        (partial(to_unit_range, high=16.5), {}, "range 0 to 16.5"),
        (partial(as_x0, key="image"), {}, "does not say their range"),
        (lambda batch: batch["image"] / 8 - 1, {}, "does not say their range"),
        (DIGITS, {"shape": (4, 4, 1)}, r"config.data.shape is \(4, 4, 1\)"),
        (DIGITS, {"cond_keys": ("text",)}, "the data set has no text"),
    ],
)
def test_what_does_not_fit_is_one_line(to_x0, options, message):
    options = {"cond_keys": (), "shape": (2, 2, 1), **options}
    with pytest.raises(UserError, match=message):
        read_examples(images(), to_x0, n=3, **options)
