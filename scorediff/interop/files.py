"""Folders and files of published checkpoints: tensors and configs in, tensors and configs out.

A folder is what the hub has: config.json beside NAME.safetensors, or shards that
NAME.safetensors.index.json lists, or a variant, NAME.fp16.safetensors. Nothing outside the folder
is read, whatever an index says.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  teaches NumPy the name bfloat16, which safetensors asks it for
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from scorediff.errors import StorageError, UserError
from scorediff.interop.layout import Tensors

Config = Mapping[str, Any]
STEMS = ("diffusion_pytorch_model", "model")  # diffusers, transformers


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object from a file; anything else is a UserError."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, not a {type(value).__name__}")
    return value


def read_safetensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of one .safetensors file."""
    try:
        with safe_open(str(path), framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except (SafetensorError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    except AttributeError as error:  # safetensors asks NumPy for a type by its name
        raise UserError(f"{path} has a type of numbers that is not read here: {error}") from None


def read_folder(folder: str | Path, variant: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a hub folder: one file or all its shards, of the variant if one is named."""
    folder = Path(folder)
    for stem in STEMS:
        index, single = _index_and_single(stem, variant)
        if (folder / index).is_file():
            return _read_shards(folder, folder / index)
        if (folder / single).is_file():
            return read_safetensors(folder / single)[0]
    present = sorted(p.name for p in folder.glob("*.safetensors")) if folder.is_dir() else []
    named = f"variant {variant}" if variant else "weights without a variant"
    has = f"; it has {', '.join(present)}" if present else ""
    raise UserError(f"{folder} has no safetensors {named} named {' or '.join(STEMS)}{has}")


def _index_and_single(stem: str, variant: str | None) -> tuple[str, str]:
    if variant is None:
        return f"{stem}.safetensors.index.json", f"{stem}.safetensors"
    return f"{stem}.safetensors.index.{variant}.json", f"{stem}.{variant}.safetensors"


def _read_shards(folder: Path, index: Path) -> dict[str, np.ndarray]:
    """Every tensor of the index from the file that it names, and nothing else."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index} has no weight_map")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise UserError(f"{index} names {name!r}, which is not a file of its own folder")
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(places.values())):
        shard = read_safetensors(folder / name)[0]
        odd = [tensor for tensor in shard if places.get(tensor) != name]
        if odd:
            raise UserError(f"{index} and {name} disagree about {', '.join(odd[:4])}")
        tensors |= shard
    lost = sorted(set(places) - set(tensors))
    if lost:
        raise UserError(f"{index} has {', '.join(lost[:4])}, which its shards have not")
    return tensors


def write_folder(
    folder: str | Path, config: Config, tensors: Tensors, *, stem: str = STEMS[0]
) -> None:
    """config.json and one STEM.safetensors; an existing folder must be empty."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; nothing is overwritten")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / f"{stem}.safetensors", tensors)
        text = json.dumps(dict(config), indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror}") from None


def write_safetensors(
    path: str | Path, tensors: Tensors, metadata: Mapping[str, str] | None = None
) -> None:
    """One .safetensors file, whole or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        save_file(whole, str(part), metadata={"format": "pt", **(metadata or {})})
        os.replace(part, path)
    except (SafetensorError, OSError) as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error}") from None
