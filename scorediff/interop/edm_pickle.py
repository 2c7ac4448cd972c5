"""Network pickles of EDM (Karras et al., arXiv 2206.00364) and of its relatives.

Such a file pickles whole modules as persistent objects: a mapping of class name, state and the
Python source of the class. The source is passed over, never run; what remains is the class's name,
the arguments that it was constructed with, and the tensors of its modules.
"""

import io
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scorediff.errors import UserError
from scorediff.interop import torch_file
from scorediff.interop.plain import builders
from scorediff.interop.unpickle import Record, load

MODULES = "torch.nn.modules."  # torch's own modules are kept as their state, without their code
LIMIT = 100_000  # modules and tensors of one network
LONGEST = 1000  # characters of a module's name, which a module inside itself would exceed


class Network(NamedTuple):
    """A pickled network.

    class_name: "EDMPrecond", "SongUNet", ...
    arguments:  the constructor's named arguments; {} where the file does not keep them.
    positional: its other arguments, in order.
    tensors:    parameters and buffers under their torch names ("model.enc.8x8_conv.weight").
    parts:      the same two of each persistent module inside: name -> (class name, arguments).
    """

    class_name: str
    arguments: Mapping[str, Any]
    positional: tuple
    tensors: dict[str, np.ndarray]
    parts: dict[str, tuple[str, Mapping[str, Any]]]


def _persistent(meta: Mapping[str, Any]) -> Record:
    """The state of a persistent object; the source code that comes with it is left alone."""
    if meta["type"] != "class" or not isinstance(meta["class_name"], str):
        raise ValueError("a persistent object that is no instance of a class")
    record = Record(meta["class_name"])
    record.set_state(meta["state"])
    return record


def _storage(data: bytes) -> np.ndarray:
    """A storage that was saved as a torch file of its own."""
    found = torch_file.read_legacy(io.BytesIO(data), len(data), "a tensor inside")
    if not isinstance(found, np.ndarray):
        raise ValueError("a tensor's storage that is none")
    return found


EDM = builders(
    {
        "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
        "torch.storage._load_from_bytes": _storage,
        "dnnlib.util.EasyDict": lambda: Record("dnnlib.util.EasyDict"),
    }
)


def known(name: str) -> Any:
    """What a dotted name in a network pickle stands for."""
    if name.startswith(MODULES):
        return builders({name: lambda: Record(name)})[name]
    return EDM.get(name) or torch_file.known(name)


def read(path: str | Path) -> dict[str, Any]:
    """The parts of a network pickle: {"ema": Network, "dataset_kwargs": {...}, ...}.

    Raises UserError for a file that is damaged, or that refers to code beyond its own classes.
    """
    where = str(path)
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            parts = load(data, known, size=os.path.getsize(path), where=where)
    except ValueError:  # an empty file cannot be mapped
        raise UserError(f"{path} is empty") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if not isinstance(parts, dict):
        raise UserError(f"{path} holds a {type(parts).__name__}, not the parts of an EDM pickle")
    return {str(name): _part(value, f"{where}: {name}") for name, value in parts.items()}


def _part(value: Any, where: str) -> Any:
    """A module as a network; anything else as it is."""
    if not isinstance(value, Record) or "_modules" not in value:
        return value
    network = Network(value.of, _arguments(value), tuple(value.get("_init_args") or ()), {}, {})
    waiting = [("", value)]
    for _ in range(LIMIT):
        if not waiting:
            return network
        prefix, module = waiting.pop()
        _collect(network, prefix, module, where)
        children = module.get("_modules") or {}
        waiting += [(f"{prefix}{n}.", m) for n, m in reversed(children.items()) if m is not None]
        if len(prefix) > LONGEST or len(waiting) + len(network.tensors) > LIMIT:
            break
    raise UserError(f"{where} is no network: its modules are too many or too deep")


def _arguments(module: Record) -> Mapping[str, Any]:
    return dict(module.get("_init_kwargs") or {})


def _collect(network: Network, prefix: str, module: Any, where: str) -> None:
    """Adds what one module itself holds."""
    if not isinstance(module, Record):
        raise UserError(f"{where}: {prefix.rstrip('.')} is not a module")
    if prefix and "_init_kwargs" in module:
        network.parts[prefix.rstrip(".")] = (module.of, _arguments(module))
    temporary = module.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, tensor in (module.get(kind) or {}).items():
            if tensor is None or name in temporary:
                continue
            if not isinstance(tensor, np.ndarray):
                raise UserError(f"{where}: {prefix}{name} is not a tensor")
            network.tensors[f"{prefix}{name}"] = tensor
