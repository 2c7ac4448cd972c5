"""Sources: exact distributions as data sets, prepared data sets, and what is wrong with them."""

import dataclasses
import time

import numpy as np
import pytest

from scorediff.data import builders, prepared
from scorediff.data.builders import preparing
from scorediff.data.pipeline import Pipeline, load_all
from scorediff.data.source import BLOCK, TFDS, Sampled
from scorediff.data.toy import pinwheel
from scorediff.errors import StorageError, UserError


def first_batch(stream):
    batches = stream.batches()
    try:
        return next(batches)
    finally:
        batches.close()


# --- sampled sources -----------------------------------------------------------------------------


def test_sampled_is_a_pure_function_of_seed_and_index():
    source = Sampled(distribution=pinwheel(), size=2 * BLOCK + 10, seed=3)
    whole = load_all(source)
    assert whole["x0"].shape == (2 * BLOCK + 10, 2)
    assert whole["x0"].dtype == np.float32 and whole["label"].dtype == np.int32
    chosen = [2 * BLOCK + 9, 0, BLOCK]
    for index, example in zip(chosen, source.open().__getitems__(chosen), strict=True):
        np.testing.assert_array_equal(example["x0"], whole["x0"][index])
    assert len(np.unique(whole["x0"], axis=0)) == len(whole["x0"])
    np.testing.assert_array_equal(
        load_all(dataclasses.replace(source, size=5))["x0"], whole["x0"][:5]
    )


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"size": 99}, {"distribution": pinwheel(swirl=2.0)}]
)
def test_sampled_describes_what_it_draws(change):
    source = Sampled(distribution=pinwheel(), size=100, seed=3)
    assert dataclasses.replace(source).describe() == source.describe()
    assert dataclasses.replace(source, **change).describe() != source.describe()


def test_sampled_checks_what_it_is_given():
    with pytest.raises(UserError, match="sample_host"):
        Sampled(distribution=3, size=1)
    with pytest.raises(UserError, match="size 0"):
        Sampled(distribution=pinwheel(), size=0)


# --- prepared data sets --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    preparing.prepare(builders.builder("digits", data_dir=str(folder)))
    rng = np.random.default_rng(0)
    np.savez(folder / "noise.npz", image=rng.integers(0, 256, (400, 32, 32, 3), np.uint8))
    noise = builders.builder("npz", data_dir=str(folder), path=str(folder / "noise.npz"))
    preparing.prepare(noise)
    return folder


def test_digits_stream(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    source = TFDS(name="digits")
    batch = first_batch(Pipeline(source=source, batch_size=32))
    assert batch["image"].shape == (32, 8, 8, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (32,) and batch["label"].dtype == np.int32
    assert source.describe()["examples"] == 1497


def test_parts_of_splits_are_cut_from_the_whole(data_dir):
    whole = load_all(TFDS(name="digits", data_dir=str(data_dir)))
    head, tail = (
        load_all(TFDS(name="digits", split=split, data_dir=str(data_dir)))
        for split in ("train[:1000]", "train[1000:]")
    )
    joined = np.concatenate([head["image"], tail["image"]])
    np.testing.assert_array_equal(joined, whole["image"])


def test_description_follows_the_content(data_dir, tmp_path):
    described = TFDS(name="npz/noise", data_dir=str(data_dir)).describe()
    with np.load(data_dir / "noise.npz") as file:
        image = file["image"].copy()
    for name, change in (("same", 0), ("other", 1)):
        image[0, 0, 0, 0] += np.uint8(change)
        np.savez(tmp_path / "noise.npz", image=image)
        folder = str(tmp_path / name)
        preparing.prepare(
            builders.builder("npz", data_dir=folder, path=str(tmp_path / "noise.npz"))
        )
        assert (TFDS(name="npz/noise", data_dir=folder).describe() == described) == (change == 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "cifar10"}, "python -m experiments.prepare_data cifar10 --data_dir="),
        ({"name": "image_folder/x"}, "prepare_data image_folder --path=... --data_dir="),
        ({"name": "digts"}, "did you mean digits?"),
        ({"name": "celeb_a"}, "tfds.builder('celeb_a', data_dir="),
        ({"name": "npz"}, "comes as npz/noise"),
        ({"name": "digits", "version": "9.0.0"}, "no version 9.0.0, only 1.0.0"),
        ({"name": "digits", "split": "tain"}, "split 'tain' cannot be read: it has train, test"),
        ({"name": "../digits"}, "expected a name"),
    ],
)
def test_what_is_not_there_is_said_at_once_in_one_line(options, message, data_dir):
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        TFDS(data_dir=str(data_dir), **options).open()
    assert time.monotonic() - start < 5
    assert message in str(caught.value) and "\n" not in str(caught.value)


def copy_of_noise(data_dir, tmp_path):
    """A data set of its own that a test may damage, and its record file."""
    builder = builders.builder("npz", data_dir=str(tmp_path), path=str(data_dir / "noise.npz"))
    preparing.prepare(builder)
    (records,) = (tmp_path / "npz" / "noise" / "1.0.0").glob("*.array_record*")
    return TFDS(name="npz/noise", data_dir=str(tmp_path)), records


def middle_byte_changed(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[: len(content) // 2], lambda content: b"", middle_byte_changed],
    ids=["truncated", "empty", "changed"],
)
@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_damaged_record_file_is_named(damage, cache_bytes, data_dir, tmp_path):
    source, records = copy_of_noise(data_dir, tmp_path)
    records.write_bytes(damage(records.read_bytes()))
    stream = Pipeline(source=source, batch_size=400, cache_bytes=cache_bytes)
    with pytest.raises(StorageError, match=rf"{records}: record \d+ cannot be read") as caught:
        first_batch(stream)
    assert "\n" not in str(caught.value)


def test_missing_record_file_and_damaged_description_are_named(data_dir, tmp_path):
    source, records = copy_of_noise(data_dir, tmp_path)
    records.rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=f"{records}: record 0 cannot be read"):
        load_all(source)
    (records.parent / prepared.INFO).write_text("{")
    with pytest.raises(StorageError, match=f"{records.parent}: damaged data set"):
        source.open()


def test_format_without_random_access_is_refused(data_dir, tmp_path):
    source, records = copy_of_noise(data_dir, tmp_path)
    info = records.parent / prepared.INFO
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"prepared as tfrecord.*prepare_data npz --path"):
        source.open()
