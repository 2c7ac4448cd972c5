"""Builders against hand-made archives in the official formats and TFDS's own code and tables."""

import gzip
import hashlib
import http.server
import io
import pathlib
import struct
import tarfile
import threading
import urllib.error

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.folder_dataset import image_folder as official_folder

from scorediff.data import builders, prepared
from scorediff.data.builders import archives, cifar10, digits, image_folder, mnist, preparing
from scorediff.data.source import TFDS
from scorediff.errors import UserError

RNG = np.random.default_rng(0)


def prepare(name, data_dir, **options):
    builder = builders.builder(name, data_dir=str(data_dir), **options)
    assert preparing.prepare(builder)
    return builder


def read(name, data_dir, split="train"):
    examples = TFDS(name=name, data_dir=str(data_dir), split=split).open()
    return [examples[i] for i in range(len(examples))]


def hash_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- digits --------------------------------------------------------------------------------------


def test_digits_are_the_published_ones_split_by_every_sixth(tmp_path):
    prepare("digits", tmp_path)
    parts = {split: read("digits", tmp_path, split) for split in ("train", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 1497, "test": 300}
    both = parts["train"] + parts["test"]
    counts = np.bincount([example["label"] for example in both])
    # The class distribution that UCI states for the test part of the data set.
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert all(example["image"].dtype == np.uint8 for example in both)
    with np.load(digits.FILE) as file:
        images = file["image"]
    assert images.max() == 16
    kept = sorted(example["image"].tobytes() for example in parts["test"])
    assert kept == sorted(image.tobytes() for image in images[::6])
    first_row = [0, 0, 5, 13, 9, 1, 0, 0]  # of the first digit in UCI's optdigits.tes
    assert images[0, 0, :, 0].tolist() == first_row


# --- CIFAR-10 ------------------------------------------------------------------------------------


def fake_cifar10(folder, per_file=3):
    """An archive in the official layout: {id: (image, label)} and the file."""
    path = folder / "cifar-10-binary.tar.gz"
    names = ["airplane", "automobile", "bird", "cat", "deer"]
    names += ["dog", "frog", "horse", "ship", "truck"]
    expected, contents = {}, {"batches.meta.txt": "\n".join([*names, "", ""]).encode()}
    for file in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        contents[file] = b""
        for _ in range(per_file):
            image, label = RNG.integers(0, 256, (32, 32, 3), np.uint8), int(RNG.integers(10))
            planes = b"".join(image[..., channel].tobytes() for channel in range(3))
            contents[file] += bytes([label]) + planes
            split = "test" if file.startswith("test") else "train"
            number = sum(name.startswith(split) for name in expected)
            expected[f"{split}_{number:05d}"] = (image, label)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in reversed(contents.items()):  # the order in the archive is no matter
            add(tar, f"cifar-10-batches-bin/{name}", content)
        add(tar, "../outside.txt", b"x")
    return path, expected, names


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_cifar10_reads_the_binary_archive(tmp_path, monkeypatch):
    path, expected, names = fake_cifar10(tmp_path)
    archive = archives.Archive(url=cifar10.Cifar10.ARCHIVE.url, sha256=hash_of(path))
    monkeypatch.setattr(cifar10.Cifar10, "ARCHIVE", archive)
    builder = prepare("cifar10", tmp_path / "data", manual_dir=str(tmp_path))
    assert builder.info.features["label"].names == names
    for split, count in (("train", 15), ("test", 3)):
        examples = read("cifar10", tmp_path / "data", split)
        assert len(examples) == count
        for example in examples:
            image, label = expected[example["id"].decode()]
            np.testing.assert_array_equal(example["image"], image)
            assert example["label"] == label
    assert not (tmp_path / "outside.txt").exists()
    restored = prepared.load("cifar10", str(tmp_path / "data"))
    assert restored.info.features["label"].int2str(3) == "cat"


@pytest.mark.parametrize("name", ["cifar10", "mnist", "fashion_mnist"])
def test_names_versions_features_and_hashes_are_the_official_ones(name, tmp_path):
    official = tfds.builder_cls(name)(data_dir=str(tmp_path))
    ours = builders.builder(name, data_dir=str(tmp_path))
    assert (ours.name, str(ours.version)) == (official.name, str(official.version))
    assert ours.info.features.to_json() == official.info.features.to_json()
    if name != "cifar10":  # whose class names come from the archive
        assert ours.info.features["label"].names == official.info.features["label"].names
    hashes = {url: info.checksum for url, info in official.url_infos.items()}
    table = getattr(ours, "ARCHIVES", None) or {"all": (getattr(ours, "ARCHIVE", None),)}
    assert {a.url: a.sha256 for part in table.values() for a in part} == hashes


# --- MNIST ---------------------------------------------------------------------------------------


def fake_mnist(folder, count=4):
    """Four IDX files: {split: (images, labels)} and the files."""
    arrays, files = {}, []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = RNG.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        arrays[split] = (images, labels)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            path = folder / f"{prefix}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes()))
            files.append(path)
    return arrays, files


def trust(monkeypatch, builder, files):
    hashes = map(hash_of, files)
    monkeypatch.setattr(builder, "ARCHIVES", mnist._archives("http://nowhere.invalid/", *hashes))


@pytest.mark.parametrize(
    "name, builder", [("mnist", mnist.MNIST), ("fashion_mnist", mnist.FashionMNIST)]
)
def test_mnist_reads_idx_files(name, builder, tmp_path, monkeypatch):
    arrays, files = fake_mnist(tmp_path)
    trust(monkeypatch, builder, files)
    prepare(name, tmp_path / "data", manual_dir=str(tmp_path))
    for split, (images, labels) in arrays.items():
        found = {
            example["label"]: example["image"] for example in read(name, tmp_path / "data", split)
        }
        assert sorted(found) == labels.tolist()
        for image, label in zip(images, labels, strict=True):
            np.testing.assert_array_equal(found[int(label)][..., 0], image)


def test_idx_file_that_is_cut_short_is_named(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2, 28, 28) + b"x" * 1000))
    with pytest.raises(UserError, match=str(path)):
        mnist.read_idx(path)


# --- fetching ------------------------------------------------------------------------------------


def test_archive_with_another_hash_is_refused_and_leaves_nothing(tmp_path):
    path, *_ = fake_cifar10(tmp_path)
    builder = builders.builder("cifar10", data_dir=str(tmp_path / "d"), manual_dir=str(tmp_path))
    with pytest.raises(UserError, match=f"{path}: damaged or another version"):
        preparing.prepare(builder)
    assert not (tmp_path / "d" / "cifar10").exists()


@pytest.fixture
def server(tmp_path):
    """The address of a server of one file's bytes, and those bytes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"content")

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/file.gz"
        server.shutdown()


def test_download_is_verified_and_kept(server, tmp_path, monkeypatch):
    archive = archives.Archive(url=server, sha256=hashlib.sha256(b"content").hexdigest())
    path = archive.fetch(tmp_path / "downloads")
    assert path.read_bytes() == b"content"
    monkeypatch.setattr("urllib.request.urlopen", None)  # not asked again
    assert archive.fetch(tmp_path / "downloads") == path


def test_download_with_another_hash_leaves_no_file(server, tmp_path):
    with pytest.raises(UserError, match="damaged or another version"):
        archives.Archive(url=server, sha256="0" * 64).fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_network_one_line_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(UserError, match=r"cifar-10-binary.*no network.*--manual_dir") as caught:
        preparing.prepare(builders.builder("cifar10", data_dir=str(tmp_path / "d")))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "d" / "cifar10").exists()


# --- image folders -------------------------------------------------------------------------------


def fake_folder(root, counts):
    """Writes root/<split>/<class>/*.png and gives {path: pixels}."""
    pixels = {}
    for (split, label), count in counts.items():
        folder = root / split / label
        folder.mkdir(parents=True)
        for i in range(count):
            image = RNG.integers(0, 256, (5, 4, 3), np.uint8)
            path = folder / f"{i}.{'PNG' if i % 2 else 'png'}"
            PIL.Image.fromarray(image).save(path)
            pixels[str(path)] = image
        (folder / "notes.txt").write_text("not an image")
    return pixels


def official_order(root, monkeypatch):
    """What `tfds.ImageFolder` makes of a folder, its two uses of TensorFlow replaced."""

    def folders(path):
        return [child.name for child in pathlib.Path(path).iterdir() if child.is_dir()]

    def images(path):
        return [str(child) for child in pathlib.Path(path).iterdir() if child.suffix != ".txt"]

    monkeypatch.setattr(official_folder, "_list_folders", folders)
    monkeypatch.setattr(official_folder, "_list_img_paths", images)
    splits, labels = official_folder._get_split_label_images(str(root))
    return {s: [(e.image_path, e.label) for e in files] for s, files in splits.items()}, labels


def test_image_folder_is_what_tfds_image_folder_gives(tmp_path, monkeypatch):
    root = tmp_path / "pets"
    counts = {("train", "dog"): 7, ("train", "cat"): 5, ("test", "cat"): 3, ("test", "emu"): 2}
    pixels = fake_folder(root, counts)
    splits, labels = official_order(root, monkeypatch)
    builder = prepare("image_folder", tmp_path / "data", path=str(root))
    assert builder.info.features["label"].names == labels == ["cat", "dog", "emu"]
    for split, files in splits.items():
        examples = read("image_folder/pets", tmp_path / "data", split)
        found = [(e["image/filename"].decode(), labels[e["label"]]) for e in examples]
        assert found == files
        for example in examples:
            expected = pixels[example["image/filename"].decode()]
            np.testing.assert_array_equal(example["image"], expected)


def test_folder_without_classes_has_no_labels(tmp_path):
    root = tmp_path / "plain"
    root.mkdir()
    for i in range(3):
        PIL.Image.new("RGB", (2, 2), (i, 0, 0)).save(root / f"{i}.png")
    prepare("image_folder", tmp_path / "data", path=str(root), title="reds")
    examples = read("image_folder/reds", tmp_path / "data")
    assert sorted(example["image"][0, 0, 0] for example in examples) == [0, 1, 2]
    assert set(examples[0]) == {"image", "image/filename"}


def test_every_8_bit_mode_becomes_rgb(tmp_path):
    grey = PIL.Image.fromarray(np.array([[0, 100], [200, 255]], np.uint8))
    rgba = PIL.Image.new("RGBA", (2, 2), (1, 2, 3, 0))
    palette = PIL.Image.new("RGB", (2, 2), (9, 8, 7)).convert("P", palette=PIL.Image.ADAPTIVE)
    for name, image, pixel in [("g", grey, 100), ("a", rgba, (1, 2, 3)), ("p", palette, (9, 8, 7))]:
        path = tmp_path / f"{name}.png"
        image.save(path)
        found = np.asarray(image_folder.encoded(path))
        assert found.shape == (2, 2, 3)
        np.testing.assert_array_equal(found[0, 1], np.broadcast_to(pixel, 3))


def test_16_bit_image_is_refused(tmp_path):
    PIL.Image.fromarray(np.array([[60000]], np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png: more than 8 bits"):
        image_folder.encoded(tmp_path / "deep.png")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[::-1]])
def test_broken_image_is_named_and_nothing_is_left(damage, tmp_path):
    root = tmp_path / "pets"
    fake_folder(root, {("train", "cat"): 4})
    broken = root / "train" / "cat" / "2.png"
    broken.write_bytes(damage(broken.read_bytes()))
    builder = builders.builder("image_folder", data_dir=str(tmp_path / "d"), path=str(root))
    with pytest.raises(UserError, match=f"{broken}: not a readable image"):
        preparing.prepare(builder)
    assert not (tmp_path / "d" / "image_folder").exists()


@pytest.mark.parametrize("path", ["", "train", "missing", "train/cat/0.png"])
def test_folder_that_is_laid_out_otherwise_is_refused(path, tmp_path):
    fake_folder(tmp_path / "pets", {("train", "cat"): 2})
    root = tmp_path if path == "" else tmp_path / "pets" / path
    if path == "train":  # <class>/*.png without a split: ambiguous, so not guessed
        root = tmp_path / "pets" / "train"
    with pytest.raises(UserError, match=r"no images for split|no such folder"):
        builders.builder("image_folder", data_dir=str(tmp_path / "d"), path=str(root))


# --- npz -----------------------------------------------------------------------------------------


def test_npz_round_trip_keeps_order_and_pixels(tmp_path):
    arrays = {
        split: {
            "image": RNG.integers(0, 256, (n, 3, 4, 2), np.uint8),
            "label": RNG.integers(0, 5, n),
        }
        for split, n in (("train", 6), ("valid", 3))
    }
    (tmp_path / "shapes").mkdir()
    for split, content in arrays.items():
        np.savez(tmp_path / "shapes" / f"{split}.npz", **content)
    prepare("npz", tmp_path / "data", path=str(tmp_path / "shapes"))
    for split, content in arrays.items():
        examples = read("npz/shapes", tmp_path / "data", split)
        np.testing.assert_array_equal([e["image"] for e in examples], content["image"])
        assert [e["label"] for e in examples] == content["label"].tolist()


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"images": np.zeros((2, 3, 3, 1), np.uint8)}, "`image` is missing"),
        ({"image": np.zeros((2, 3, 3, 1), np.float32)}, "`image` is float32"),
        ({"image": np.zeros((2, 3, 3), np.uint8)}, r"`image` is uint8 \(2, 3, 3\)"),
        ({"image": np.zeros((2, 3, 3, 1), np.uint8), "label": np.zeros(3, int)}, "`label` is"),
        ({"image": np.array([{}], object)}, "not a readable npz file"),
    ],
)
def test_npz_with_other_arrays_is_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=f"{tmp_path}/x.npz: {message}"):
        builders.builder("npz", data_dir=str(tmp_path), path=str(tmp_path / "x.npz"))


def test_npz_without_labels_and_with_a_broken_file(tmp_path):
    np.savez(tmp_path / "x.npz", image=np.zeros((2, 3, 3, 1), np.uint8))
    prepare("npz", tmp_path / "data", path=str(tmp_path / "x.npz"))
    assert list(read("npz/x", tmp_path / "data")[0]) == ["image"]
    (tmp_path / "y.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:80])
    with pytest.raises(UserError, match=r"y\.npz: not a readable npz file"):
        builders.builder("npz", data_dir=str(tmp_path), path=str(tmp_path / "y.npz"))


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options",
    [
        ("npz", {}),
        ("digits", {"path": "x"}),
        ("digits", {"manual_dir": "x"}),
        ("mnist", {"title": "x"}),
    ],
)
def test_arguments_that_a_builder_does_not_take(name, options, tmp_path):
    with pytest.raises(UserError, match=name):
        builders.builder(name, data_dir=str(tmp_path), **options)
