"""Files of `torch.save` without torch: .pt, .pth, .ckpt, .bin, the zip format and the one before.

Both are a pickle of the structure, in which tensors are views (offset, size, stride) of storages,
and the storages' bytes beside it: members of the archive, or behind the pickle. Sizes are checked
against what the file holds before anything is allocated.
"""

import io
import math
import mmap
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from scorediff.errors import UserError
from scorediff.interop.plain import builders, plain
from scorediff.interop.unpickle import DAMAGE, Builder, Name, load

ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of torch's magic number
LEGACY_VERSION = 1001
CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
EXPANDED = 1 << 20  # elements of a tensor that repeats its storage's by strides of 0

DTYPES = {
    "float64": np.float64,
    "double": np.float64,
    "float32": np.float32,
    "float": np.float32,
    "float16": np.float16,
    "half": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "uint8": np.uint8,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "long": np.int64,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
}
STORAGES = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Byte": np.uint8,
    "Char": np.int8,
    "Short": np.int16,
    "Int": np.int32,
    "Long": np.int64,
    "Bool": np.bool_,
    "ComplexFloat": np.complex64,
    "ComplexDouble": np.complex128,
}


@dataclass(frozen=True)
class StorageType:
    """The class of a storage: what its numbers are."""

    dtype: np.dtype


def _whole(*values: Any) -> None:
    if not all(isinstance(v, int) and 0 <= v < 1 << 62 for v in values):
        raise ValueError("a size that is none")


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *rest: Any):
    """A view of a storage, within its bounds."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or not storage.flags.c_contiguous:
        raise ValueError("a tensor without a storage of its own")
    if len(size) != len(stride):
        raise ValueError(f"a tensor with {len(size)} sizes and {len(stride)} strides")
    _whole(offset, *size, *stride)
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if count and (last >= len(storage) or count > max(len(storage), EXPANDED)):
        raise ValueError(f"a tensor of {list(size)} in a storage of {len(storage)} elements")
    if not count:
        return np.zeros(size, storage.dtype)
    strides = [s * storage.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _typed_tensor(storage, offset, size, stride, requires_grad, hooks, dtype, *rest: Any):
    """A view of a storage of bytes."""
    if not isinstance(dtype, np.dtype):
        raise TypeError("a tensor without a type")
    return _tensor(storage.view(dtype), offset, size, stride)


def _from_type(function: Builder, cls: Any, arguments: tuple, state: Any):
    """A tensor of a subclass, of which only the numbers are kept."""
    if not isinstance(function, Builder):
        raise TypeError("a tensor from something that makes none")
    return function.build(*arguments)


def _device(kind: str, index: int | None = None) -> str:
    if not isinstance(kind, str) or not isinstance(index, int | None):
        raise TypeError("a device that is none")
    return kind if index is None else f"{kind}:{index}"


TENSORS: Mapping[str, Any] = {
    **{f"torch.{name}": np.dtype(dtype) for name, dtype in DTYPES.items()},
    **{f"torch.{name}Storage": StorageType(np.dtype(dtype)) for name, dtype in STORAGES.items()},
    "torch.storage.UntypedStorage": StorageType(np.dtype(np.uint8)),
    "torch.Tensor": Name("torch.Tensor"),
    "torch.nn.parameter.Parameter": Name("torch.nn.parameter.Parameter"),
    # A key in the checkpoints of Stable Diffusion 1.
    CALLBACK: Name(CALLBACK),
    **builders(
        {
            "torch.Size": tuple,
            "torch.device": _device,
            "torch._tensor._rebuild_from_type_v2": _from_type,
            "torch._utils._rebuild_tensor": _tensor,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_tensor_v3": _typed_tensor,
            "torch._utils._rebuild_parameter": lambda data, *rest: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
            "torch._utils._rebuild_device_tensor_from_numpy": lambda data, *rest: data,
        }
    ),
}


def known(name: str) -> Any:
    """What a dotted name in a torch file stands for."""
    found = TENSORS.get(name)
    return plain(name) if found is None else found


def read(path: str | Path) -> Any:
    """What a file of `torch.save` holds: mappings, lists, numbers, and NumPy arrays for tensors.

    Arrays are read-only and may share memory. A namespace is a mapping of its attributes. Raises
    UserError for a file that is damaged, of another kind, or that refers to code.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(LEGACY))
            if start.startswith(ZIP):
                return _read_zip(path)
            if start == LEGACY:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    return read_legacy(data, os.path.getsize(path), str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    raise UserError(f"{path} is not a file of torch.save")


# The zip format


def _read_zip(path: str | Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, os.path.getsize(path), str(path))
    # zipfile raises a RuntimeError at a password, and one of its kinds at a version that it lacks
    except (zipfile.BadZipFile, zlib.error, RuntimeError, *DAMAGE) as error:
        raise UserError(f"{path} is a damaged archive: {error}") from None


def _read_archive(archive: zipfile.ZipFile, size: int, where: str) -> Any:
    root = _root(archive, size, where)
    names = set(archive.namelist())
    order = f"{root}/byteorder"
    if order in names and archive.read(order) != b"little":
        raise UserError(f"{where} was written on a machine of another byte order")
    storages: dict[str, bytes] = {}

    def storage(identity: Any) -> np.ndarray:
        dtype, key, count = _identity(identity)
        if key not in storages:
            member = f"{root}/data/{key}"
            if member not in names:
                raise UserError(f"{where} lacks the storage {key!r}")
            storages[key] = archive.read(member)
        data = storages[key]
        if len(data) != count * dtype.itemsize:
            raise UserError(f"{where}: storage {key} has {len(data)} bytes, not {count} {dtype}")
        return np.frombuffer(data, dtype)

    data = archive.read(f"{root}/data.pkl")
    return load(io.BytesIO(data), known, persistent=storage, size=size, where=where)


def _root(archive: zipfile.ZipFile, size: int, where: str) -> str:
    """The one folder of the archive; its members must be plain, inside it, and within the file."""
    names = archive.namelist()
    roots = {name.partition("/")[0] for name in names}
    for info in archive.infolist():
        parts = info.filename.split("/")
        if len(parts) < 2 or "\\" in info.filename or {"", ".", ".."} & set(parts):
            raise UserError(f"{where} has a member outside its folder: {info.filename!r}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{where} is compressed, which torch.save never does")
    if len(roots) != 1 or len(set(names)) != len(names):
        raise UserError(f"{where} is an archive, but not one of torch.save")
    if sum(info.file_size for info in archive.infolist()) > size:
        raise UserError(f"{where} is damaged: its members are larger than the file")
    (root,) = roots
    if f"{root}/data.pkl" not in names:
        raise UserError(f"{where} is an archive, but not one of torch.save: no data.pkl")
    return root


def _identity(identity: Any) -> tuple[np.dtype, str, int]:
    """Type, key and element count from ("storage", type, key, location, count, ...)."""
    kind, storage_type, key, _, count, *_ = identity
    if kind != "storage" or not isinstance(storage_type, StorageType) or not isinstance(key, str):
        raise ValueError("a persistent object that is no storage")
    _whole(count)
    return storage_type.dtype, key, count


# The format before torch 1.6, which also holds each tensor inside of other pickles


def read_legacy(stream: Any, size: int, where: str) -> Any:
    """The object of a legacy file in a binary stream that starts with its magic number.

    After three pickles of preamble, one of the structure and one of the storages' keys come, for
    each key, its element count and its bytes. Storages are made when the structure names them, and
    filled afterwards.
    """

    def next_pickle(persistent=None) -> Any:
        return load(stream, known, persistent=persistent, size=size, where=where)

    _, version, machine = next_pickle(), next_pickle(), next_pickle()
    if version != LEGACY_VERSION or not isinstance(machine, dict):
        raise UserError(f"{where} is not of version {LEGACY_VERSION} of the format of torch.save")
    if not machine.get("little_endian", True):
        raise UserError(f"{where} was written on a machine of another byte order")
    storages = _Storages(size, where)
    found = next_pickle(storages.make)
    storages.fill(stream, next_pickle())
    return found


class _Storages:
    """Storages that a structure names before their bytes are read."""

    def __init__(self, size: int, where: str):
        self.room, self.where = size, where
        self.arrays: dict[str, np.ndarray] = {}

    def make(self, identity: Any) -> np.ndarray:
        """The storage of an id, or the part of it that is named as a view (offset, count)."""
        dtype, key, count = _identity(identity)
        if key not in self.arrays:
            self.room -= count * dtype.itemsize
            if self.room < 0:
                raise UserError(f"{self.where} is damaged: its storages are larger than the file")
            self.arrays[key] = np.zeros(count, dtype)
        whole, view = self.arrays[key], identity[5] if len(identity) > 5 else None
        if whole.dtype != dtype or len(whole) != count:
            raise ValueError(f"storage {key} is of two kinds")
        if view is None:
            return whole
        _, offset, length = view
        _whole(offset, length)
        return whole[offset : offset + length]

    def fill(self, stream: Any, keys: Any) -> None:
        """Element count and bytes of each key, in the order in which the file lists them."""
        listed = keys if isinstance(keys, list) else []
        if not all(isinstance(k, str) for k in listed) or sorted(listed) != sorted(self.arrays):
            raise UserError(f"{self.where} is damaged: it lists other storages than it names")
        for key in listed:
            array = self.arrays[key]
            count, data = stream.read(8), stream.read(array.nbytes)
            if int.from_bytes(count, "little") != len(array) or len(data) != array.nbytes:
                raise UserError(f"{self.where} is damaged: storage {key} is not whole")
            array.view(np.uint8)[:] = np.frombuffer(data, np.uint8)


def state_dict(checkpoint: Any, key: str | None = None, *, where: str) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name: of its part `key` ("ema", "state_dict"), or all of it.

    Raises UserError, with the parts that do hold tensors, where that part does not.
    """
    parts = checkpoint if isinstance(checkpoint, Mapping) else {}
    found = checkpoint if key is None else parts.get(key)
    if _is_state_dict(found):
        return dict(found)
    has = [str(name) for name, part in parts.items() if _is_state_dict(part)]
    there = f"; these parts have: {', '.join(has)}" if has else ""
    part = "itself" if key is None else f"under {key!r}"
    raise UserError(f"{where} has no mapping of names to tensors {part}{there}")


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in value.items())
    )
