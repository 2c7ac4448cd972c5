"""The run folder: one config, and everything that the run leaves behind.

config.json       the config, as the run was started with
metrics.jsonl     one row a logged step; deterministic, so two runs compare byte by byte
timing.jsonl      rates and wall-clock time
incidents.jsonl   steps that were skipped
tensorboard/      the same scalars and images for TensorBoard
checkpoints/      <step>/ each
samples/          sample grids by step
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from scorediff.config import from_json, to_json
from scorediff.errors import UserError
from scorediff.renewal import renewed
from scorediff.training.files import check_writable, storing, write_atomic


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The paths inside one run folder."""

    path: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> pathlib.Path:
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> pathlib.Path:
        return self.path / "timing.jsonl"

    @property
    def incidents(self) -> pathlib.Path:
        return self.path / "incidents.jsonl"

    @property
    def tensorboard(self) -> pathlib.Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> pathlib.Path:
        return self.path / "samples"


def open_workdir(
    path: pathlib.Path | str, config_json: str, *, packages: Sequence[str] = ()
) -> Workdir:
    """Creates the run folder, or enters one that belongs to the same config.

    An argument that its class has gained since counts as given by its default. `packages` are the
    user's own whose names count. UserError naming the fields if the folder belongs to another
    config, StorageError if it is not writable.
    """
    workdir = Workdir(pathlib.Path(path).absolute())
    check_writable(workdir.path)
    if workdir.config.exists():
        _check_same(workdir.config, _today(config_json, packages), packages)
    else:
        write_atomic(workdir.config, config_json)
    return workdir


def _check_same(path: pathlib.Path, config: Any, packages: Sequence[str]) -> None:
    try:
        with storing(f"read {path}"):
            stored = _today(path.read_text(encoding="utf-8"), packages)
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}; repair it or use another workdir") from error
    differ = list(_differences(stored, config, "config"))
    if differ:
        shown = "; ".join(differ[:3]) + ("; ..." if len(differ) > 3 else "")
        raise UserError(f"workdir {path.parent} belongs to another config ({shown})")


def _today(config_json: str, packages: Sequence[str]) -> Any:
    return json.loads(to_json(renewed(from_json(config_json), packages)))


def _differences(stored: Any, given: Any, name: str):
    """Yields "field: stored there, given here" for every leaf that differs, in order."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in sorted(stored.keys() | given.keys()):
            if key in stored and key in given:
                yield from _differences(stored[key], given[key], f"{name}.{key}")
            else:
                yield f"{name}.{key}: only {'there' if key in stored else 'here'}"
    elif stored != given or type(stored) is not type(given):
        yield f"{name}: {json.dumps(stored)} there, {json.dumps(given)} here"
