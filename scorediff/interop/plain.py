"""Names in pickles that stand for plain data: containers, NumPy arrays, namespaces, paths."""

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from scorediff.interop.unpickle import Builder, Name, Record, plain_dtype, plain_key

RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "numpy.core": "numpy._core"}
OBJECT = Name("builtins.object")


class DType:
    """A NumPy type as pickles build it: a code, and later its byte order."""

    def __init__(self, code: Any, align: bool = False, copy: bool = False):
        self.dtype = plain_dtype(code)

    def set_state(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _mapping(pairs: Any = ()) -> dict:
    pairs = pairs.items() if isinstance(pairs, dict) else pairs
    return {plain_key(key): value for key, value in pairs}


def _members(items: Any = ()) -> set:
    return {plain_key(item) for item in items}


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # the one that pickles of bytes use
        raise ValueError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


def _bytes(value: Any = b"") -> bytes:
    if not isinstance(value, bytes | list):
        raise TypeError(f"bytes of a {type(value).__name__}")
    return bytes(value)


def _scalar(dtype: DType, data: bytes | str) -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, plain_dtype(dtype), count=1)[0]


def _from_buffer(data: bytes, dtype: DType, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(data, plain_dtype(dtype)).reshape(shape, order=order)


def _reconstructed(cls: Builder, base: Any, state: Any) -> Any:
    """An instance by protocols 0 and 1: of a class that keeps its data in attributes, or a dict."""
    made = cls.build()
    if base != OBJECT:
        made.update(_mapping(state))
    return made


def builders(builds: Mapping[str, Callable]) -> dict[str, Builder]:
    """A table of what is done in place of each named function."""
    return {name: Builder(name, build) for name, build in builds.items()}


PLAIN: Mapping[str, Any] = {
    "builtins.object": OBJECT,
    **{f"builtins.{kind}": Name(kind) for kind in ("bool", "float", "int", "list", "str", "tuple")},
    **builders(
        {
            "argparse.Namespace": lambda: Record("argparse.Namespace"),
            "builtins.bytearray": _bytes,
            "builtins.bytes": _bytes,
            "builtins.complex": complex,
            "builtins.dict": _mapping,
            "builtins.frozenset": lambda items=(): frozenset(_members(items)),
            "builtins.set": _members,
            "collections.OrderedDict": _mapping,
            "collections.defaultdict": lambda factory=None: {},
            "copyreg._reconstructor": _reconstructed,
            "numpy._core.multiarray._reconstruct": lambda cls, shape, code: np.empty(0),
            "numpy._core.multiarray.scalar": _scalar,
            "numpy._core.numeric._frombuffer": _from_buffer,
            "numpy.dtype": DType,
            "pathlib.PosixPath": lambda *parts: str(PurePosixPath(*parts)),
            "_codecs.encode": _encoded,
        }
    ),
    "numpy.ndarray": Name("numpy.ndarray"),
}


def plain(name: str) -> Any:
    """What a dotted name stands for, or None where it is not plain data."""
    for old, new in RENAMED.items():
        if name.startswith(f"{old}."):
            name = new + name[len(old) :]
    return PLAIN.get(name)
