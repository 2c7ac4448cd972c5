"""Made data: what the classes mean is in the arrays, and example i is a function of (seed, i)."""

import numpy as np
import pytest

from scorediff.data.pipeline import Pipeline
from scorediff.data.source import Sampled
from scorediff.data.toy.synthetic import MovingShapes, SurfacePoints, Tones, VoxelBalls
from scorediff.errors import UserError

KINDS = {
    MovingShapes(frames=3, size=12): (3, 12, 12, 1),
    Tones(length=32, highest=6): (32, 1),
    SurfacePoints(points=20): (20, 3),
    VoxelBalls(size=9): (9, 9, 9, 1),
}
IDS = [type(kind).__name__ for kind in KINDS]


def drawn(kind, n=200, seed=0):
    return kind.sample_host(np.random.default_rng(seed), n)


@pytest.mark.parametrize(("kind", "shape"), KINDS.items(), ids=IDS)
def test_examples_are_a_function_of_seed_and_index_within_the_range(kind, shape):
    source = Sampled(distribution=kind, size=600, seed=3)
    one, again = source.open()[500], Sampled(distribution=kind, size=900, seed=3).open()[500]
    other = Sampled(distribution=kind, size=600, seed=4).open()[500]
    assert one["x0"].shape == shape and one["x0"].dtype == np.float32
    assert one["label"].dtype == np.int32
    np.testing.assert_array_equal(one["x0"], again["x0"])
    assert np.abs(one["x0"] - other["x0"]).max() > 0.01
    x0, label = drawn(kind)
    assert np.abs(x0).max() <= 1 + 1e-6 and 0.05 < x0.std() < 1
    assert set(label) == set(range(label.max() + 1)) and label.max() >= 1
    batch = Pipeline(source=source, batch_size=4).batch(0)
    assert batch["x0"].shape == (4, *shape)


def test_shapes_move_evenly_and_stay_inside():
    x0, label = drawn(MovingShapes(frames=5, size=24))
    ink = (x0[..., 0] + 1) / 2
    area = ink.sum(axis=(2, 3))
    # the soft edge's share of a pixel changes with the place, no more
    assert (np.ptp(area, axis=1) < 0.1 * area.mean(axis=1)).all()
    box = [np.ptp(np.nonzero(frame > 0.5)[0]) + 1 for frame in ink[:, 0]]
    fill = area[:, 0] / np.square(box)
    assert fill[label == 0].mean() == pytest.approx(np.pi / 4, abs=0.08)
    assert fill[label == 1].mean() == pytest.approx(1, abs=0.08)
    places = (ink.sum(axis=3) * np.arange(24)).sum(axis=2) / area  # the row of the centre
    speed = np.diff(places, axis=1)
    steady = np.isclose(np.abs(speed), np.abs(speed[:, :1]), atol=0.15).all(axis=1)
    assert steady.mean() > 0.6 and np.abs(speed).max() > 1  # the others bounced


def test_chords_have_as_many_tones_as_their_label_says():
    x0, label = drawn(Tones(length=48, highest=9))
    loud = np.abs(np.fft.rfft(x0[..., 0], axis=1)) / 24
    heard = loud > 1e-4
    np.testing.assert_array_equal(heard.sum(axis=1), label + 1)
    np.testing.assert_allclose(loud[heard], np.repeat(1 / (label + 1), label + 1), rtol=1e-4)
    assert heard[:, 1:10].any(axis=0).all() and not heard[:, 10:].any() and not heard[:, 0].any()


def test_points_lie_on_their_surface():
    x0, label = drawn(SurfacePoints(points=300), n=40)
    radius, half = np.linalg.norm(x0, axis=2), np.abs(x0).max(axis=2)
    assert np.ptp(radius[label == 0], axis=1).max() < 1e-6
    assert np.ptp(half[label == 1], axis=1).max() < 1e-6
    assert half[label == 1].min() >= 0.5 and np.ptp(half[label == 1]) > 0.3
    # uniform over the surface: a cube's second moment is (1 + 1/3 + 1/3) / 3 of half an edge's
    moment = (x0[label == 1] ** 2).mean(axis=(1, 2)) / half[label == 1][:, 0] ** 2
    assert moment.mean() == pytest.approx(5 / 9, abs=0.01)
    assert np.abs(x0.mean(axis=(0, 1))).max() < 0.03


def test_balls_are_round_and_as_many_as_the_label_says():
    x0, label = drawn(VoxelBalls(size=16), n=400)
    inside = x0[label == 0, ..., 0] > 0
    volume = inside.sum(axis=(1, 2, 3))
    widths = [np.ptp(np.nonzero(ball)[0]) + 1 for ball in inside]
    assert (volume / (np.pi / 6 * np.power(widths, 3))).mean() == pytest.approx(1, abs=0.15)
    two = (x0[label == 1, ..., 0] > 0).sum(axis=(1, 2, 3)).mean()
    assert 1.5 < two / volume.mean() <= 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MovingShapes(size=4), "MovingShapes.size must be at least 8, got 4"),
        (lambda: Tones(length=16, highest=8), "highest=8 must be below half of length=16"),
        (lambda: SurfacePoints(points=0), "SurfacePoints.points must be at least 1, got 0"),
        (lambda: VoxelBalls(size=3), "VoxelBalls.size must be at least 8, got 3"),
    ],
)
def test_sizes_that_hold_nothing_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
