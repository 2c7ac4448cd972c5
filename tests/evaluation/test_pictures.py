"""Pictures: every pixel where it belongs, and files that open again."""

import numpy as np
import pytest
from PIL import Image

from scorediff.evaluation.pictures import (
    GAP,
    brighten,
    class_grid,
    denoising_strip,
    from_unit,
    image_grid,
    loss_curve,
    neighbours_picture,
    noise_level_plot,
    save_image,
    scatter_picture,
    smoothed,
)


def flat(values, channels=1, size=4):
    """Images of one grey level each."""
    values = np.asarray(values, np.uint8)
    return np.ones((1, size, size, channels), np.uint8) * values[:, None, None, None]


def levels(page, columns, rows, size):
    """The grey level in the middle of every cell, found from the lower right corner."""
    pixels, step = np.asarray(page)[..., 0], size + GAP
    height, width = pixels.shape
    ys = [height - GAP - step * (rows - 1 - r) - size // 2 for r in range(rows)]
    xs = [width - GAP - step * (columns - 1 - c) - size // 2 for c in range(columns)]
    return pixels[np.ix_(ys, xs)].tolist()


def test_ranges():
    assert brighten(np.array([0, 8, 16]), 16).tolist() == [0, 128, 255]
    assert from_unit(np.array([-2.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_runs_along_rows(channels):
    page = image_grid(flat([10, 20, 30, 40, 50], channels), columns=3, scale=5, top="abc")
    assert levels(page, 3, 2, 20) == [[10, 20, 30], [40, 50, 255]]


def test_enlargement_keeps_pixels_square_and_sharp():
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    page = np.asarray(image_grid(image, columns=1, scale=7))
    inside = page[GAP : GAP + 56, GAP : GAP + 56]
    np.testing.assert_array_equal(inside, np.kron(image[0], np.ones((7, 7, 1), np.uint8)))


def test_classes_stand_in_columns():
    labels = np.array([2, 0, 2, 0, 1, 2])
    page = class_grid(flat([22, 10, 23, 11, 5, 24]), labels, rows=2)  # class 1 has too few
    assert levels(page, 2, 2, 64) == [[10, 22], [11, 23]]
    with pytest.raises(ValueError, match="no class"):
        class_grid(flat([1]), np.array([0]), rows=2)


def test_strip_shows_samples_in_rows_and_the_ends_of_time():
    states = np.stack([flat([step, 100 + step]) for step in range(31)])
    page = denoising_strip(states, np.linspace(1, 0, 31), most=4)
    assert levels(page, 4, 2, 64) == [[0, 10, 20, 30], [100, 110, 120, 130]]
    with pytest.raises(ValueError, match="31 states but 2 times"):
        denoising_strip(states, [1, 0])


def test_samples_above_their_neighbours():
    page = neighbours_picture(flat([1, 2]), flat([101, 102]), [0.1, 0.2])
    assert levels(page, 2, 2, 64) == [[1, 2], [101, 102]]


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match="float64"):
        image_grid(np.zeros((1, 4, 4, 1)), columns=1)


def test_running_mean():
    values = np.random.default_rng(0).normal(size=500)
    found = smoothed(values)  # a window of 11
    assert found[100] == pytest.approx(values[95:106].mean())
    assert found[0] == pytest.approx(values[:6].mean())
    np.testing.assert_allclose(smoothed(np.ones(7)), 1.0)


def test_figures_open_again_and_leave_no_partial_files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [
        loss_curve(tmp_path / "loss.png", range(100), [float("nan"), *rng.uniform(1, 2, 99)]),
        scatter_picture(
            tmp_path / "new" / "mixture.png", rng.normal(size=(50, 2)), rng.normal(size=(9, 2))
        ),
        noise_level_plot(tmp_path / "error.png", [-2, 0, 2], {"raw": [1, 2, 3], "ema": [1, 1, 1]}),
        save_image(tmp_path / "grid.png", image_grid(flat([1]), columns=1)),
    ]
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert np.asarray(image.convert("L")).std() > 5  # something is drawn
    assert list(tmp_path.rglob(".*")) == []
