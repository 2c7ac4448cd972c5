"""Pickles and files of torch.save written by hand, so that tests can hold what no library writes.

`put` gives a value's opcodes (protocol 2, and bytes as in protocol 3); `call` gives those of a
function's call, which a reader must not make.
"""

import struct
import zipfile

import numpy as np

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


class Code(bytes):
    """Opcodes that leave one value on the stack."""


def put(value):
    """The opcodes of a value: None, bool, int, str, bytes, tuple, list, dict, or `Code`."""
    if isinstance(value, Code):
        return value
    if value is None or isinstance(value, bool):
        return Code({None: b"N", True: b"\x88", False: b"\x89"}[value])
    if isinstance(value, int):
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return Code(b"\x8a" + bytes([len(data)]) + data)
    if isinstance(value, str):
        return Code(b"X" + struct.pack("<I", len(value.encode())) + value.encode())
    if isinstance(value, bytes):
        return Code(b"B" + struct.pack("<I", len(value)) + value)
    if isinstance(value, dict):
        pairs = b"".join(put(part) for item in value.items() for part in item)
        return Code(b"}(" + pairs + b"u")
    end = b"t" if isinstance(value, tuple) else b"l"
    return Code(b"(" + b"".join(map(put, value)) + end)


def name(dotted):
    """The opcode that names a function or class."""
    module, _, last = dotted.rpartition(".")
    return Code(f"c{module}\n{last}\n".encode())


def call(dotted, *arguments):
    """The call of a named function."""
    return Code(name(dotted) + put(tuple(arguments)) + b"R")


def instance(dotted, state):
    """An object of a class, with a state."""
    return Code(name(dotted) + b")\x81" + put(state) + b"b")


def pickled(value):
    return b"\x80\x02" + put(value) + b"."


def storage(key, count, kind="Float", view=None):
    """A storage that is kept outside the pickle, as old and new torch files name it."""
    parts = ("storage", name(f"torch.{kind}Storage"), key, "cpu", count)
    return Code(put((*parts, view)) + b"Q" if view != "zip" else put(parts) + b"Q")


def tensor(of, size, stride, offset=0):
    """A view of a storage."""
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", of, offset, size, stride, False, hooks)


def whole(key, array, kind="Float"):
    """A tensor that is all of a storage."""
    stride = tuple(s // array.itemsize for s in array.strides)
    return tensor(storage(key, array.size, kind, "zip"), array.shape, stride)


def zip_file(path, value, storages, *, root="archive", extra=()):
    """A file of torch.save in the zip format: a structure, and the bytes of its storages."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", pickled(value))
        archive.writestr(f"{root}/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"{root}/data/{key}", np.ascontiguousarray(array).tobytes())
        for member, data in extra:
            archive.writestr(member, data)
    return path


def legacy(value, storages, *, little=True):
    """The bytes of a file of torch.save before the zip format."""
    machine = {"protocol_version": 1001, "little_endian": little, "type_sizes": {}}
    parts = [MAGIC, pickled(1001), pickled(machine), pickled(value), pickled(list(storages))]
    for array in storages.values():
        parts += [struct.pack("<q", array.size), array.tobytes()]
    return b"".join(parts)
