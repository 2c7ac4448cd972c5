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
from typing import Any

from scorediff.errors import UserError
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


def open_workdir(path: pathlib.Path | str, config_json: str) -> Workdir:
    """Creates the run folder, or enters one that belongs to the same config.

    UserError naming the fields if it belongs to another config, StorageError if it is not writable.
    """
    workdir = Workdir(pathlib.Path(path).absolute())
    check_writable(workdir.path)
    if workdir.config.exists():
        _check_same(workdir.config, json.loads(config_json))
    else:
        write_atomic(workdir.config, config_json)
    return workdir


def _check_same(path: pathlib.Path, config: Any) -> None:
    try:
        with storing(f"read {path}"):
            stored = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}); repair it or use another workdir"
        ) from error
    differ = list(_differences(stored, config, "config"))
    if differ:
        shown = "; ".join(differ[:3]) + ("; ..." if len(differ) > 3 else "")
        raise UserError(f"workdir {path.parent} belongs to another config ({shown})")


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
