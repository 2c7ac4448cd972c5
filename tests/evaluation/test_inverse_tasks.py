"""The operators behind names, and the shapes that they do not fit."""

import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.evaluation.inverse_tasks import TASKS, parse_task


def known(task, shape):
    """1 where a number of x0 shows in A^+ A x."""
    return np.asarray(parse_task(task)(shape).project(np.ones((1, *shape), np.float32)))[0]


def test_inpainting_hides_the_middle():
    seen = known("inpaint:hole=0.5", (8, 6, 3))
    assert seen[2:6, 1:4].sum() == 0 and seen.sum() == (48 - 12) * 3


def test_random_pixels_are_whole_pixels_and_the_seeds():
    seen = known("random_pixels:known=0.25", (8, 8, 3))
    assert (seen == seen[..., :1]).all() and seen[..., 0].sum() == 16
    assert (known("random_pixels:known=0.25:seed=1", (8, 8, 3)) != seen).any()
    assert known("random_pixels:known=0.1", (2,)).sum() == 1  # never nothing


def test_grey_and_small_images_have_their_shapes(tmp_path):
    assert parse_task("grey")((4, 4, 3)).data_shape == (4, 4, 1)
    assert parse_task("super_resolve:factor=4")((8, 8, 3)).data_shape == (2, 2, 3)
    np.save(tmp_path / "a.npy", np.eye(2, 4))
    assert parse_task(f"dense:path={tmp_path / 'a.npy'}")((4,)).data_shape == (2,)


@pytest.mark.parametrize(
    ("task", "shape", "message"),
    [
        ("inpaint", (4,), "no image"),
        ("inpaint:hole=1.5", (8, 8, 1), "hole must be between 0 and 1"),
        ("random_pixels:known=0.0", (4,), "known must be between 0 and 1"),
        ("grey", (8, 8, 1), "grey already"),
        ("super_resolve:factor=3", (8, 8, 1), "factor=3"),
        ("dense", (4,), "name an .npy file"),
        (f"dense:path={__file__}", (4,), "no .npy file of numbers"),
        ("inpant", (8, 8, 1), "did you mean inpaint"),
        ("inpaint,grey", (8, 8, 1), "one at a time"),
    ],
)
def test_what_does_not_fit_is_one_line(task, shape, message):
    with pytest.raises(UserError, match=message):
        parse_task(task)(shape)


def test_names_are_those_of_the_functions():
    assert list(TASKS) == ["inpaint", "random_pixels", "grey", "super_resolve", "dense"]
