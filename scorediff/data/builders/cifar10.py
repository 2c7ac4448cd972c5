"""CIFAR-10 from its binary distribution (Krizhevsky 2009), read without unpacking it."""

import pathlib
import tarfile
from collections.abc import Iterator

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from scorediff.data.builders.archives import Archive
from scorediff.errors import UserError

RECORD = 1 + 3 * 32 * 32  # label, then the red, green and blue planes
FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"{FOLDER}/data_batch_{i}.bin" for i in range(1, 6))
TEST = (f"{FOLDER}/test_batch.bin",)
LABELS = f"{FOLDER}/batches.meta.txt"


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """60,000 colour images 32x32 of 10 classes: 50,000 train, 10,000 test."""

    name = "cifar10"
    VERSION = tfds.core.Version("3.0.2")
    ARCHIVE = Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    )

    def __init__(self, *, data_dir: str, manual_dir: str | None = None):
        self._manual_dir = manual_dir
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            citation="A. Krizhevsky, Learning multiple layers of features from tiny images, 2009",
        )

    def _split_generators(self, dl_manager):
        folder = pathlib.Path(self.data_dir_root) / "downloads"
        archive = self.ARCHIVE.fetch(folder, manual_dir=self._manual_dir)
        members = read_members(archive, (*TRAIN, *TEST, LABELS))
        self.info.features["label"].names = members[LABELS].decode().split()
        return {
            "train": self._generate_examples("train_", [members[name] for name in TRAIN]),
            "test": self._generate_examples("test_", [members[name] for name in TEST]),
        }

    def _generate_examples(self, prefix: str, files: list[bytes]):
        for index, (image, label) in enumerate(parse(files)):
            example = {"id": f"{prefix}{index:05d}", "image": image, "label": label}
            yield index, example  # TFDS orders examples by a hash of this key


def read_members(archive: pathlib.Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Contents of these regular files of a tar.gz, in one pass and without touching the disk."""
    found = {}
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            if member.name in names and member.isreg():
                found[member.name] = tar.extractfile(member).read()
    for name in names:
        if name not in found:
            raise UserError(f"{archive}: holds no file {name}")
    return found


def parse(files: list[bytes]) -> Iterator[tuple[PIL.Image.Image, int]]:
    """(image, label) of every record of these files, in order."""
    for file in files:
        records = np.frombuffer(file, np.uint8).reshape(-1, RECORD)
        for record in records:
            pixels = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
            yield PIL.Image.fromarray(np.ascontiguousarray(pixels)), int(record[0])
