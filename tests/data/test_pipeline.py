"""The stream as a pure function of (seed, step): seeking, sharing, epochs, damage."""

import dataclasses
import json
import threading
import time

import numpy as np
import pytest

from scorediff.data import pipeline, transforms
from scorediff.data.columns import one_pass, stack
from scorediff.data.pipeline import Pipeline, load_all
from scorediff.data.transforms import RandomFlip, to_uint8, to_unit_range
from scorediff.errors import UserError


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Example i: `id` i, and an image [2, 3, 1] of 10 (i % 25) + (0, 1, 2)."""

    size: int

    def open(self):
        return self

    def describe(self):
        return {"name": "numbers", "size": self.size}

    def __len__(self):
        return self.size

    def __getitems__(self, indices):
        image = np.tile(np.arange(3, dtype=np.uint8)[None, :, None], (2, 1, 1))
        return [{"id": i, "image": np.uint8(10 * (i % 25)) + image} for i in indices]


@dataclasses.dataclass(frozen=True)
class Brightness:
    """Adds a whole number below `most`."""

    most: int = 100

    def __call__(self, example, rng):
        return {**example, "image": example["image"] + np.uint8(rng.integers(self.most))}


AUGMENT = (RandomFlip(), Brightness())


def take(stream, count, **options):
    batches = stream.batches(**options)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
            assert a[key].dtype == b[key].dtype


# --- a pure function of (seed, step) -------------------------------------------------------------


@pytest.mark.parametrize("augment", [(), AUGMENT])
@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_stream_depends_on_seed_and_step_alone(augment, cache_bytes):
    plain = Pipeline(source=Numbers(23), batch_size=5, augment=augment, threads=0)
    expected = [plain.batch(step) for step in range(12)]
    other = Pipeline(
        source=Numbers(23), batch_size=5, augment=augment, threads=3, cache_bytes=cache_bytes
    )
    assert_same(take(other, 12), expected)
    assert_same(take(other, 5, start_step=7), expected[7:])
    reseeded = Pipeline(source=Numbers(23), batch_size=5, augment=augment, seed=1)
    assert not np.array_equal(reseeded.batch(0)["id"], expected[0]["id"])


@pytest.mark.parametrize("augment", [(), AUGMENT])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_of_all_processes_joined_are_the_global_batch(augment, count):
    stream = Pipeline(source=Numbers(23), batch_size=8, augment=augment, cache_bytes=0)
    parts = [
        take(stream, 6, start_step=2, process_index=i, process_count=count) for i in range(count)
    ]
    for step in range(6):
        whole = stream.batch(step + 2)
        for key in whole:
            joined = np.concatenate([part[step][key] for part in parts])
            np.testing.assert_array_equal(joined, whole[key])


@pytest.mark.parametrize("index, count", [(0, 3), (2, 2), (-1, 2)])
def test_batch_that_does_not_divide_is_refused(index, count):
    with pytest.raises(UserError, match="batch_size 8"):
        Pipeline(source=Numbers(23), batch_size=8).batches(process_index=index, process_count=count)


@pytest.mark.parametrize("largest", [pipeline.LARGEST_PERMUTATION, 0])
def test_epochs_are_different_permutations_without_a_dropped_tail(largest, monkeypatch):
    monkeypatch.setattr(pipeline, "LARGEST_PERMUTATION", largest)
    ids = {}
    for seed in (0, 1):
        stream = Pipeline(source=Numbers(23), batch_size=5, seed=seed)
        ids[seed] = np.concatenate([stream.batch(step)["id"] for step in range(23)])
    epochs = [tuple(epoch) for seed in ids for epoch in ids[seed].reshape(5, 23)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len(set(epochs)) == 10  # none repeats, nor is shared between neighbouring seeds


def test_without_shuffle_the_order_is_the_source_s():
    stream = Pipeline(source=Numbers(7), batch_size=4, shuffle=False)
    ids = np.concatenate([stream.batch(step)["id"] for step in range(4)])
    np.testing.assert_array_equal(ids, np.arange(16) % 7)


def test_permutations_are_uniform():
    """Each example comes first equally often: chi-squared over 2,000 epochs, 4 sigma."""
    stream = Pipeline(source=Numbers(8), batch_size=8)
    counts = np.bincount([stream.batch(epoch)["id"][0] for epoch in range(2000)], minlength=8)
    assert ((counts - 250) ** 2 / 250).sum() < 7 + 4 * np.sqrt(14)


# --- augmentation --------------------------------------------------------------------------------


def test_flip_mirrors_half_the_images_anew_each_epoch():
    stream = Pipeline(source=Numbers(20), batch_size=20, augment=(RandomFlip(),))
    flips = []
    for step in range(50):
        batch = stream.batch(step)
        order = np.argsort(batch["id"])
        offsets = batch["image"][order] - 10 * np.arange(20, dtype=np.uint8)[:, None, None, None]
        flipped = offsets[:, 0, 0, 0] == 2
        straight = np.tile(np.arange(3)[:, None], (2, 1, 1))
        for row, flip in zip(offsets, flipped, strict=True):
            np.testing.assert_array_equal(row, straight[:, ::-1] if flip else straight)
        flips.append(flipped)
    flips = np.array(flips)
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / np.sqrt(flips.size)
    assert len({tuple(epoch) for epoch in flips}) == 50
    never = Pipeline(source=Numbers(20), batch_size=20, augment=(RandomFlip(probability=0.0),))
    assert (never.batch(0)["image"][:, :, 0] % 10 == 0).all()


def test_flip_probability_is_checked():
    with pytest.raises(UserError, match=r"1\.5"):
        RandomFlip(probability=1.5)


# --- fingerprint ---------------------------------------------------------------------------------


BASE = {"source": Numbers(23), "batch_size": 5, "augment": (RandomFlip(),)}


@pytest.mark.parametrize(
    "change",
    [
        {"source": Numbers(24)},
        {"batch_size": 6},
        {"seed": 1},
        {"shuffle": False},
        {"augment": ()},
        {"augment": (RandomFlip(probability=0.25),)},
        {"augment": (Brightness(),)},
        {"augment": (Brightness(), RandomFlip())},
        {"keys": ("image",)},
    ],
)
def test_whatever_changes_the_stream_changes_the_fingerprint(change):
    original = Pipeline(**BASE).fingerprint()
    assert json.loads(json.dumps(original)) == original
    assert Pipeline(**{**BASE, **change}).fingerprint() != original


@pytest.mark.parametrize("change", [{"threads": 1}, {"cache_bytes": 0}])
def test_what_only_changes_the_speed_does_not(change):
    assert Pipeline(**{**BASE, **change}).fingerprint() == Pipeline(**BASE).fingerprint()


def test_augmentation_that_cannot_be_described_is_refused():
    with pytest.raises(UserError, match="expected a dataclass"):
        Pipeline(source=Numbers(3), batch_size=1, augment=(lambda example, rng: example,))


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"threads": -1}, {"seed": -1}])
def test_bad_numbers_are_named(bad):
    with pytest.raises(UserError, match=str(next(iter(bad.values())))):
        Pipeline(**{**BASE, **bad})


# --- threads -------------------------------------------------------------------------------------


def test_close_ends_the_threads():
    before = threading.active_count()
    batches = Pipeline(source=Numbers(23), batch_size=5, cache_bytes=0).batches()
    next(batches)
    assert threading.active_count() > before
    batches.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


# --- columns -------------------------------------------------------------------------------------


def test_columns_keep_what_a_device_can_hold():
    examples = [{"id": b"x", "label": 3, "image": np.zeros((2, 2), np.uint8)}] * 2
    columns = stack(examples)
    assert {key: column.dtype for key, column in columns.items()} == {
        "label": np.int32,
        "image": np.uint8,
    }
    assert list(stack(examples, ("label",))) == ["label"]


@pytest.mark.parametrize(
    "examples, keys, message",
    [
        ([{"a": 2**40}], None, "'a' holds integers beyond 32 bits"),
        ([{"a": 1}], ("b",), "no 'b', only a"),
        ([{"a": np.zeros(2)}, {"a": np.zeros(3)}], None, r"differs in shape.*\(2,\), \(3,\)"),
    ],
)
def test_columns_that_cannot_be_are_refused(examples, keys, message):
    with pytest.raises(UserError, match=message):
        stack(examples, keys)


def test_whole_split_in_order_at_once_and_in_batches():
    source = Numbers(1300)  # more than one chunk
    everything = load_all(source)
    np.testing.assert_array_equal(everything["id"], np.arange(1300))
    parts = list(one_pass(source, batch_size=512))
    assert [len(part["id"]) for part in parts] == [512, 512, 276]
    np.testing.assert_array_equal(np.concatenate([p["image"] for p in parts]), everything["image"])
    assert load_all(source, limit=10, keys=("id",)).keys() == {"id"}
    assert len(load_all(source, limit=10)["id"]) == 10


def test_scaling_is_exact_both_ways():
    pixels = np.arange(256, dtype=np.uint8)
    x0 = to_unit_range({"image": pixels})
    np.testing.assert_allclose(x0, pixels / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(to_uint8(x0), pixels)
    grey = np.arange(17, dtype=np.uint8)
    x0 = to_unit_range({"image": grey}, high=16.0)
    assert (float(x0[0]), float(x0[8]), float(x0[16])) == (-1.0, 0.0, 1.0)
    np.testing.assert_array_equal(to_uint8(x0, high=16.0), grey)
    np.testing.assert_array_equal(to_uint8(np.array([-9.0, 9.0]), high=16.0), [0, 16])
    with pytest.raises(UserError, match="low 3"):
        transforms.to_uint8(x0, low=3.0, high=3.0)
