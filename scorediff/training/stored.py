"""One checkpoint on disk: its manifest, and reading it so that damage and mistakes are told apart.

The libraries restore a flipped bit without a word (measured: 59 of 60 flips). So every checkpoint
carries a manifest with name, shape, type and fingerprint of each array, itself under a digest:

    manifest fails its digest, an array its fingerprint, a file is missing   ->  Damaged
    manifest is sound and describes other arrays than were asked for         ->  UserError

Layout of DIRECTORY/<step>/: `state` (Orbax arrays), `meta` (the manifest as JSON). Nothing here
writes, and nothing is unpickled.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from scorediff.errors import StorageError, UserError
from scorediff.training.files import reason_of
from scorediff.training.fingerprint import Mark, leaf_names, marks
from scorediff.training.state import TrainState
from scorediff.types import Params

FORMAT = 1


class Damaged(Exception):
    """This checkpoint is not what was saved; the message says what is wrong with it."""


def steps(directory: pathlib.Path | str) -> list[int]:
    """The steps with a finished checkpoint, ascending."""
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        return []
    names = (path.name for path in directory.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def manifest_of(
    state: TrainState, seen: Mapping[str, Mark], pipeline: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest to store with `state`. seen: marks(state)."""
    leaves = {
        name: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "fingerprint": seen[name].fingerprint,
        }
        for name, leaf in zip(leaf_names(state), jax.tree.leaves(state), strict=True)
    }
    body = {"format": FORMAT, "leaves": leaves, "pipeline": json.loads(json.dumps(dict(pipeline)))}
    return {"body": body, "digest": _digest(body)}


def read_manifest(path: pathlib.Path) -> dict:
    """The manifest of the checkpoint at `path`; Damaged unless it is exactly what was saved."""
    try:
        stored = json.loads((path / "meta" / "metadata").read_bytes())
        body = stored["body"]
        sound = stored["digest"] == _digest(body)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise Damaged("its manifest is missing or unreadable") from error
    if not sound:
        raise Damaged("its manifest was changed")
    if body["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {body['format']}, this code reads {FORMAT}")
    return body


def check_pipeline(manifest: dict, pipeline: Mapping[str, Any], path: pathlib.Path) -> None:
    """UserError naming the fields in which the data differs from what the checkpoint saw."""
    stored, current = manifest["pipeline"], json.loads(json.dumps(dict(pipeline)))
    fields = sorted(stored.keys() | current.keys())
    differ = [name for name in fields if stored.get(name) != current.get(name)]
    if differ:
        said = "; ".join(f"{f}: {stored.get(f)!r} then, {current.get(f)!r} now" for f in differ)
        raise UserError(f"{path} was trained on other data ({said}); use another workdir")


def read_state(path: pathlib.Path, manifest: dict, abstract: TrainState) -> TrainState:
    """The state at `path` laid out as `abstract` says, bitwise what was saved."""
    check_structure(manifest, abstract, path)
    return _read_verified(path, manifest, ocp.args.StandardRestore(abstract))


def verify(path: pathlib.Path, abstract: TrainState) -> None:
    """Reads the whole checkpoint into the host's memory; Damaged unless it is what was saved."""
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=how)
    _read_verified(path, read_manifest(path), args)


def read_params(
    directory: pathlib.Path | str,
    abstract_params: Params,
    *,
    profile: str | None = None,
    step: int | None = None,
) -> tuple[Params, int]:
    """The parameters of a checkpoint, without its optimiser state, and their step.

    abstract_params: shapes, types and shardings wanted (jax.ShapeDtypeStruct).
    profile: name of an EMA profile; None reads the raw parameters.
    step: which checkpoint; None takes the newest.

    A damaged newest checkpoint is left where it is, with one line, and the one before it is read.
    UserError if there is none, no such profile, or it is of another model; StorageError if what was
    asked for, or everything, is damaged.
    """
    part = {"params": abstract_params} if profile is None else {"ema": {profile: abstract_params}}
    for path in _candidates(pathlib.Path(directory).absolute(), step):
        try:
            manifest = read_manifest(path)
            _check_profile(manifest, profile, path)
            check_structure(manifest, part, path, whole=False)
            found = _read_verified(path, manifest, _partial(part))
        except Damaged as damage:
            logging.error("checkpoint %s is damaged: %s; not used", path, damage)
            continue
        return (found["params"] if profile is None else found["ema"][profile]), int(path.name)
    raise StorageError(f"no sound checkpoint in {directory}, only damaged ones")


def check_structure(manifest: dict, wanted: Any, path: pathlib.Path, *, whole: bool = True) -> None:
    """UserError naming the first array that differs in presence, shape or type.

    whole: the checkpoint must hold nothing besides `wanted`.
    """
    stored = {name: _describe(v["shape"], v["dtype"]) for name, v in manifest["leaves"].items()}
    leaves = zip(leaf_names(wanted), jax.tree.leaves(wanted), strict=True)
    asked = {name: _describe(leaf.shape, leaf.dtype) for name, leaf in leaves}
    names = [*asked, *(name for name in stored if whole and name not in asked)]
    for name in sorted(names, key=lambda n: not n.startswith("params/")):
        there, here = stored.get(name, "absent"), asked.get(name, "absent")
        if there != here:
            raise UserError(
                f"checkpoint {path} is of another model: {name} is {there} in the checkpoint "
                f"and {here} in this model"
            )


def _read_verified(path: pathlib.Path, manifest: dict, args: Any) -> Any:
    handler = (
        ocp.StandardCheckpointHandler()
        if isinstance(args, ocp.args.StandardRestore)
        else ocp.PyTreeCheckpointHandler()
    )
    try:
        with ocp.Checkpointer(handler) as reader:
            found = reader.restore(path / "state", args=args)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # trouble of this machine, not of the checkpoint
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise Damaged("files of it are missing") from error
        raise StorageError(f"cannot read {path}: {reason_of(error)}") from error
    except Exception as error:
        # Damaged bytes surface as almost any type of error in the layers below.
        raise Damaged(f"it cannot be read ({reason_of(error)})") from error
    _check_fingerprints(manifest, found)
    return found


def _check_fingerprints(manifest: dict, found: Any) -> None:
    for name, mark in marks(found).items():
        if manifest["leaves"][name]["fingerprint"] != mark.fingerprint:
            raise Damaged(f"the values of {name} are not those that were saved")


def _partial(part: Any) -> ocp.args.PyTreeRestore:
    how = ocp.checkpoint_utils.construct_restore_args(part)
    return ocp.args.PyTreeRestore(item=part, restore_args=how, partial_restore=True)


def _candidates(directory: pathlib.Path, step: int | None) -> list[pathlib.Path]:
    """The folders to try, the newest first."""
    found = steps(directory)
    if not found:
        raise UserError(f"no checkpoint in {directory}; train first, or check the path")
    if step is not None and step not in found:
        raise UserError(f"no checkpoint of step {step} in {directory}; there are {found}")
    return [directory / str(n) for n in (reversed(found) if step is None else [step])]


def _check_profile(manifest: dict, profile: str | None, path: pathlib.Path) -> None:
    there = sorted({n.split("/")[1] for n in manifest["leaves"] if n.startswith("ema/")})
    if profile is not None and profile not in there:
        raise UserError(f"checkpoint {path} has no EMA profile {profile!r}; it has {there}")


def _describe(shape: Any, dtype: Any) -> str:
    return f"{dtype}{list(shape)}"


def _digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
