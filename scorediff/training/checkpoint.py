"""Saving and restoring the train state so that nothing saved is ever lost or silently wrong.

Orbax writes asynchronously and renames a finished step into place. What is added here: every step
carries fingerprints that are verified when it is read; a damaged step is put aside by name and the
one before it used; a failed write surfaces as one line at the next step; waiting has a limit.
"""

import contextlib
import logging as std_logging
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as policies

from scorediff.errors import DivergedError, StorageError, UserError
from scorediff.training import stored
from scorediff.training.files import reason_of
from scorediff.training.fingerprint import marks
from scorediff.training.state import TrainState

SAVE_LIMIT = 900.0  # seconds after which a save that does not end counts as failed
SPARE = 1_000_000  # bytes wanted on top of the arrays, for what describes them


class Checkpoints:
    """The checkpoints of one run.

    directory: holds <step>/ folders and, where a damaged one was found, quarantined-<step>-<n>/.
    keep_last, keep_every: older checkpoints are removed, except those of every `keep_every` steps.
    pipeline: what the data is a function of (name, split, seed, batch size, ...), as simple values;
      a checkpoint is only resumed with equal ones.
    """

    def __init__(
        self,
        directory: pathlib.Path | str,
        *,
        keep_last: int = 2,
        keep_every: int | None = None,
        pipeline: Mapping[str, Any] | None = None,
    ):
        if keep_last < 1 or (keep_every is not None and keep_every < 1):
            raise UserError(
                f"keep_last and keep_every must be at least 1, got {keep_last} and {keep_every}"
            )
        self.directory = pathlib.Path(directory).absolute()
        self._keep = (keep_last, keep_every)
        self._pipeline = dict(pipeline or {})
        self._manager: ocp.CheckpointManager | None = None  # opened by the first save
        self._saving: tuple[int, float] | None = None  # step and start of the save in flight
        self._last: tuple[int, Any] | None = None  # step and shapes of the last save

    def restore_latest(self, abstract: TrainState) -> TrainState | None:
        """The newest sound checkpoint, laid out as `abstract` says; None if nothing was ever saved.

        A damaged step is renamed, which one line says, and the step before it is used. UserError if
        the checkpoint is of another model or other data, StorageError if no sound one is left.
        """
        for step in reversed(stored.steps(self.directory)):
            path = self.directory / str(step)
            try:
                manifest = stored.read_manifest(path)
                stored.check_pipeline(manifest, self._pipeline, path)
                return stored.read_state(path, manifest, abstract)
            except stored.Damaged as damage:
                self._put_aside(path, damage)
        if any(self.directory.glob("quarantined-*")):
            raise StorageError(
                f"no sound checkpoint is left in {self.directory}, only damaged ones put aside; "
                "to start anew use another workdir"
            )
        return None

    def save(self, state: TrainState) -> None:
        """Starts saving `state` under its step, and returns once it may be donated.

        DivergedError if the parameters are not finite; StorageError if this save, or the one before
        it, fails.
        """
        self.wait()
        step = int(state.step)
        if step in stored.steps(self.directory):
            return
        seen = marks(state)
        for name, mark in seen.items():
            # The optimiser may hold infinities in good health (the best loss before the first).
            if not (mark.finite or name.startswith("opt_state/")):
                raise DivergedError(f"{name} is not finite at step {step}; this state is not saved")
        manifest = stored.manifest_of(state, seen, self._pipeline)
        with self._one_line(step):
            self._check_space(state)
            self._saving = (step, time.monotonic())
            self._open().save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(manifest)
                ),
            )
        self._last = (step, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state))

    def poll(self) -> None:
        """Raises StorageError if a save has failed or hangs; costs nothing while one runs."""
        if self._saving is None:
            return
        step, start = self._saving
        if not self._manager.is_saving_in_progress():
            self._settle(step)
        elif time.monotonic() - start > SAVE_LIMIT:
            raise StorageError(
                f"saving step {step} into {self.directory} takes over {SAVE_LIMIT} s"
            )

    def wait(self, *, limit: float = SAVE_LIMIT) -> None:
        """Waits up to `limit` seconds for the save in flight; StorageError if it fails or lasts."""
        deadline = time.monotonic() + limit
        while self._saving is not None:
            self.poll()
            if self._saving is not None and time.monotonic() > deadline:
                step = self._saving[0]
                raise StorageError(f"gave up waiting for the save of step {step} after {limit} s")
            time.sleep(0.005 if self._saving is not None else 0.0)

    def close(self) -> None:
        """Waits for the last save, reads it back and compares it with what was saved."""
        self.wait()
        if self._last is not None:
            step, shapes = self._last
            path = self.directory / str(step)
            try:
                stored.verify(path, shapes)
            except stored.Damaged as damage:
                self._put_aside(path, damage)
                raise StorageError(f"the last checkpoint, {path}, was damaged: {damage}") from None
            self._last = None
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            logging.get_absl_logger().addFilter(_not_said_by_orbax)
            sys.unraisablehook = _unraisable
            last, every = self._keep
            kept = [policies.LatestN(last)] + ([policies.EveryNSteps(every)] if every else [])
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
                lightweight_initialize=True,
                async_options=ocp.AsyncOptions(timeout_secs=int(SAVE_LIMIT)),
            )
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_names=("state", "meta")
            )
        return self._manager

    def _settle(self, step: int) -> None:
        with self._one_line(step):
            self._saving = None
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if step not in stored.steps(self.directory):
                raise StorageError("the folder was not finished")

    def _check_space(self, state: TrainState) -> None:
        needed = SPARE + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise StorageError(f"{needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free")

    def _put_aside(self, path: pathlib.Path, damage: stored.Damaged) -> None:
        number = 1 + len(list(self.directory.glob(f"quarantined-{path.name}-*")))
        target = path.with_name(f"quarantined-{path.name}-{number}")
        logging.error("checkpoint %s is damaged: %s; put aside as %s", path, damage, target.name)
        try:
            path.rename(target)
        except OSError as error:
            raise StorageError(f"cannot rename damaged {path}: {error.strerror}") from error

    @contextlib.contextmanager
    def _one_line(self, step: int) -> Iterator[None]:
        """Any failure of a save as a StorageError: the layers below raise almost any type."""
        try:
            yield
        except Exception as error:
            self._saving = None
            raise StorageError(
                f"step {step} could not be saved into {self.directory}: {reason_of(error)}"
            ) from error


def _not_said_by_orbax(record: std_logging.LogRecord) -> bool:
    """Its errors reach us as exceptions; logged as well, they bury the one line in tracebacks."""
    return record.levelno < std_logging.ERROR or "orbax" not in record.pathname


def _unraisable(found) -> None:
    """After a failed write, callbacks of tensorstore find Orbax's event loop closed: no news."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)
