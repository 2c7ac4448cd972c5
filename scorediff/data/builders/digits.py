"""The optical handwritten digits of UCI, bundled with this package (source: ../digits.txt)."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

FILE = pathlib.Path(__file__).parent.parent / "digits.npz"
TEST_EVERY = 6  # index % 6 == 0 is the test split: the file has no split of its own


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """1,797 images 8x8x1 of grey levels 0..16 (not 0..255), 10 classes; 1,497 train, 300 test."""

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
            license="CC BY 4.0",
            citation="E. Alpaydin, C. Kaynak, Cascading Classifiers, Kybernetika 34, 1998",
        )

    def _split_generators(self, dl_manager):
        with np.load(FILE, allow_pickle=False) as file:
            images, labels = file["image"], file["label"]
        index = np.arange(len(images))
        test = index % TEST_EVERY == 0
        return {
            "train": self._generate_examples(images, labels, index[~test]),
            "test": self._generate_examples(images, labels, index[test]),
        }

    def _generate_examples(self, images, labels, index):
        for i in index:
            yield int(i), {"image": images[i], "label": int(labels[i])}
