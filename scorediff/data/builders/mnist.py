"""MNIST and Fashion-MNIST from their IDX files (LeCun et al. 1998; Xiao et al. 2017)."""

import gzip
import pathlib
import struct

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from scorediff.data.builders.archives import Archive
from scorediff.errors import UserError

_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_KINDS = ("images-idx3", "labels-idx1")


def _archives(address: str, *hashes: str) -> dict[str, tuple[Archive, Archive]]:
    """(images, labels) of each split."""
    files = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in _KINDS]
    a, b, c, d = (Archive(url=address + f, sha256=h) for f, h in zip(files, hashes, strict=True))
    return {"train": (a, b), "test": (c, d)}


class MNIST(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Handwritten digits, 28x28x1: 60,000 train, 10,000 test."""

    name = "mnist"
    VERSION = tfds.core.Version("3.0.1")
    CLASSES = tuple("0123456789")
    HOMEPAGE = "http://yann.lecun.com/exdb/mnist/"
    ARCHIVES = _archives(
        _MNIST,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
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
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(names=list(self.CLASSES)),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE,
        )

    def _split_generators(self, dl_manager):
        folder = pathlib.Path(self.data_dir_root) / "downloads" / self.name
        return {
            split: self._generate_examples(
                *(archive.fetch(folder, manual_dir=self._manual_dir) for archive in archives)
            )
            for split, archives in self.ARCHIVES.items()
        }

    def _generate_examples(self, image_file: pathlib.Path, label_file: pathlib.Path):
        images, labels = read_idx(image_file), read_idx(label_file)
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise UserError(
                f"{image_file}: images {images.shape} do not go with labels {labels.shape}"
            )
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": PIL.Image.fromarray(image), "label": int(label)}


class FashionMNIST(MNIST, skip_registration=True):
    """Articles of clothing, 28x28x1: 60,000 train, 10,000 test."""

    name = "fashion_mnist"
    CLASSES = _FASHION_CLASSES
    HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"
    ARCHIVES = _archives(
        _FASHION,
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    )


def read_idx(path: pathlib.Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file: 0, 0, type 8, rank, big-endian sizes, bytes."""
    content = gzip.decompress(path.read_bytes())
    zeros, kind, rank = struct.unpack_from(">HBB", content)
    shape = struct.unpack_from(f">{rank}I", content, 4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if (zeros, kind) != (0, 8) or values.size != np.prod(shape):
        raise UserError(f"{path}: not an IDX file of {shape} bytes")
    return values.reshape(shape)
