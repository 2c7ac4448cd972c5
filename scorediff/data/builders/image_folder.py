"""A folder of images, prepared as a data set with what `tfds.ImageFolder` gives.

    root/<split>/<class>/*.png|jpg|jpeg     features image, image/filename, label
    root/*.png|jpg|jpeg                     features image, image/filename; one split, `train`

The order is that of `tfds.ImageFolder`: sorted, then shuffled by `random.Random(split)`. Every file
is decoded once while preparing, so a broken one is found now and not in the middle of a training.
"""

import pathlib
import random
import re

import PIL.Image
import tensorflow_datasets as tfds

from scorediff.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png")
File = tuple[pathlib.Path, str | None]  # and its class


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images of a folder, as RGB."""

    name = "image_folder"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, path: str, data_dir: str, title: str | None = None):
        self._splits = list_images(pathlib.Path(path).expanduser())
        super().__init__(data_dir=data_dir, config=titled(title, path, self.VERSION))

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/filename": tfds.features.Text(),
        }
        classes = {label for files in self._splits.values() for _, label in files} - {None}
        if classes:
            features["label"] = tfds.features.ClassLabel(names=sorted(classes))
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label") if classes else None,
            disable_shuffling=True,  # the order is ours
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(files) for split, files in self._splits.items()}

    def _generate_examples(self, files: list[File]):
        for index, (path, label) in enumerate(files):
            example = {"image": encoded(path), "image/filename": str(path)}
            yield index, example if label is None else {**example, "label": label}


def titled(title: str | None, path: str, version: tfds.core.Version) -> tfds.core.BuilderConfig:
    """The part of the name after the slash: `title`, or the last part of `path`."""
    title = title or pathlib.Path(path).expanduser().resolve().stem
    if not re.fullmatch(r"\w[\w.-]*", title) or re.fullmatch(r"\d+\.\d+\.\d+", title):
        raise UserError(f"{title!r} cannot name a data set: use letters, digits, _, - and .")
    return tfds.core.BuilderConfig(name=title, version=version, description=title)


def list_images(root: pathlib.Path) -> dict[str, list[File]]:
    """split -> [(file, class)], in the order of `tfds.ImageFolder`."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    splits = {split.name: _classes(split) for split in _folders(root)}
    if not splits:
        splits = {"train": [(path, None) for path in _images(root)]}
    for split, files in splits.items():
        if not files:
            raise UserError(
                f"{root}: no images for split {split!r}; expected "
                f"{root}/<split>/<class>/*.png|jpg or {root}/*.png|jpg"
            )
        random.Random(split).shuffle(files)
    return splits


def _classes(split: pathlib.Path) -> list[File]:
    return [(path, label.name) for label in _folders(split) for path in _images(label)]


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def encoded(path: pathlib.Path) -> bytes | PIL.Image.Image:
    """The file's own bytes if it is RGB, else the image converted to RGB (as TFDS decodes it)."""
    try:
        with PIL.Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error}); repair or remove it") from error
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{path}: more than 8 bits a channel ({image.mode}); convert it to 8 bits")
    return path.read_bytes() if image.mode == "RGB" else image.convert("RGB")
