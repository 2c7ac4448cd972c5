"""Data sets that can be prepared without TensorFlow.

Each builder is an ordinary TFDS builder that writes array_record. Those that share a name with an
official builder give the same features, keys, splits, example order and pixels, so that what they
write can be read by either. TFDS encodes images without TensorFlow only from PIL images or bytes,
never from arrays: `features.Image` is given the former, `features.Tensor` the latter.

The modules are named as text, because importing TFDS costs a second and listing names should not.
"""

import importlib
from typing import Any

from scorediff.errors import UserError

ARCHIVES = {
    "cifar10": "scorediff.data.builders.cifar10:Cifar10",
    "fashion_mnist": "scorediff.data.builders.mnist:FashionMNIST",
    "mnist": "scorediff.data.builders.mnist:MNIST",
}
PATHS = {
    "image_folder": "scorediff.data.builders.image_folder:ImageFolder",
    "npz": "scorediff.data.builders.npz:Npz",
}
BUNDLED = {"digits": "scorediff.data.builders.digits:Digits"}
NAMES = tuple(sorted({**ARCHIVES, **PATHS, **BUNDLED}))


def builder(
    name: str,
    *,
    data_dir: str,
    manual_dir: str | None = None,
    path: str | None = None,
    title: str | None = None,
) -> Any:
    """The TFDS builder of that name.

    Args:
      name: one of `NAMES`.
      data_dir: folder that holds prepared data sets.
      manual_dir: folder with archives already downloaded (cifar10, mnist, fashion_mnist).
      path: what to prepare (image_folder: a folder; npz: a file, or a folder of one file a split).
      title: image_folder and npz are prepared as `name/title`; default: the last part of `path`.

    Raises:
      UserError: an argument that this builder does not take, or lacks.
    """
    if (path is None) == (name in PATHS):
        raise UserError(f"{name}: --path is {'needed' if path is None else 'not used'} here")
    if title is not None and name not in PATHS:
        raise UserError(f"{name}: a title is not used here, only for {' and '.join(PATHS)}")
    if manual_dir is not None and name not in ARCHIVES:
        raise UserError(f"{name}: --manual_dir is not used here, only for {', '.join(ARCHIVES)}")
    if name in PATHS:
        return _load(PATHS[name])(path=path, title=title, data_dir=data_dir)
    if name in ARCHIVES:
        return _load(ARCHIVES[name])(manual_dir=manual_dir, data_dir=data_dir)
    return _load(BUNDLED[name])(data_dir=data_dir)


def _load(address: str) -> Any:
    module, qualname = address.split(":")
    return getattr(importlib.import_module(module), qualname)
