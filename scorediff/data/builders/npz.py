"""Arrays in npz files, prepared as a data set: `image` uint8 [n, h, w, c] and `label` [n].

`path` is one file, whose split is `train`, or a folder with one file a split (train.npz, ...).
`label` may be missing. The order is that of the arrays.
"""

import pathlib
import zipfile

import numpy as np
import tensorflow_datasets as tfds

from scorediff.data.builders.image_folder import titled
from scorediff.errors import UserError

Arrays = dict[str, np.ndarray]


class Npz(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images of npz files."""

    name = "npz"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, path: str, data_dir: str, title: str | None = None):
        self._splits = read_splits(pathlib.Path(path).expanduser())
        super().__init__(data_dir=data_dir, config=titled(title, path, self.VERSION))

    def _info(self) -> tfds.core.DatasetInfo:
        arrays = list(self._splits.values())
        shape = arrays[0]["image"].shape[1:]
        features = {"image": tfds.features.Tensor(shape=shape, dtype=np.uint8)}
        if "label" in arrays[0]:
            classes = 1 + max(int(split["label"].max()) for split in arrays)
            features["label"] = tfds.features.ClassLabel(num_classes=classes)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label") if "label" in features else None,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(arrays) for name, arrays in self._splits.items()}

    def _generate_examples(self, arrays: Arrays):
        for index in range(len(arrays["image"])):
            example = {"image": arrays["image"][index]}
            if "label" in arrays:
                example["label"] = int(arrays["label"][index])
            yield index, example


def read_splits(path: pathlib.Path) -> dict[str, Arrays]:
    """split -> arrays, checked to agree with one another."""
    files = {file.stem: file for file in sorted(path.glob("*.npz"))}
    if path.is_file():
        files = {"train": path}
    if not files:
        raise UserError(f"{path}: no such npz file, nor a folder with npz files")
    splits = {split: read_arrays(file) for split, file in files.items()}
    kinds = {(arrays["image"].shape[1:], "label" in arrays) for arrays in splits.values()}
    if len(kinds) > 1:
        raise UserError(f"{path}: the splits differ in image shape, or only some have labels")
    return splits


def read_arrays(file: pathlib.Path) -> Arrays:
    """`image` and, if there, `label` of one file, checked."""
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {key: content[key] for key in ("image", "label") if key in content}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: not a readable npz file ({error})") from error
    _check(file, arrays.get("image"), arrays.get("label"))
    return arrays


def _check(file: pathlib.Path, image: np.ndarray | None, label: np.ndarray | None) -> None:
    if image is None or image.dtype != np.uint8 or image.ndim != 4 or not len(image):
        found = "is missing" if image is None else f"is {image.dtype} {image.shape}"
        raise UserError(f"{file}: `image` {found}, expected uint8 [n, h, w, c]")
    if label is None:
        return
    if label.dtype.kind not in "iu" or label.shape != image.shape[:1] or label.min() < 0:
        raise UserError(
            f"{file}: `label` is {label.dtype} {label.shape}, expected integers >= 0 [{len(image)}]"
        )
