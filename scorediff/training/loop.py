"""The training loop.

Batch and randomness are functions of the step, so the loop starts from whatever step its state has.
Whichever way it ends (steps done, signal, divergence, full disk, bug), it waits for a save in
flight.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from absl import logging

from scorediff.errors import Preempted, StorageError, UserError
from scorediff.training.checkpoint import Checkpoints
from scorediff.training.hooks import Hook, SaveCheckpoint
from scorediff.training.metrics import MetricLog
from scorediff.training.progress import Progress
from scorediff.training.signals import StopRequest
from scorediff.training.state import TrainState
from scorediff.training.step import StepFn
from scorediff.training.watch import Watch
from scorediff.types import Batch, Key

EXIT_WAIT = 20.0  # seconds a failing run waits for the save in flight


def fit(
    step_fn: StepFn,
    state: TrainState,
    batches: Callable[[int], Iterator[Batch]],
    *,
    steps: int,
    root_key: Key,
    hooks: Sequence[Hook] = (),
    checkpoints: Checkpoints | None = None,
    save_every: int = 1000,
    log: MetricLog | None = None,
    patience: int = 10,
    progress: Progress | None = None,
) -> TrainState:
    """Trains until `steps` steps are done and returns the state, saved and verified.

    step_fn: a compiled step; uses up the state it is given.
    batches: start step -> iterator of host batches from that step on; closed at the end.
    hooks: run in order at multiples of their `every` and at the last step; the checkpoint last.
    patience: skipped steps in a row after which the run counts as diverged.

    DivergedError, StorageError; Preempted after SIGTERM, SIGUSR1 or Ctrl-C, with the state saved.
    """
    step = _first_step(state, steps)
    if checkpoints is not None:
        hooks = (*hooks, SaveCheckpoint(every=save_every, checkpoints=checkpoints))
    if log is not None:
        log.rewind(step)
    watch = Watch(patience=patience, log=log)
    with (
        _saves_settled(checkpoints),
        _closed_at_end(log, progress),
        contextlib.closing(batches(step)) as stream,
        StopRequest() as stop,
    ):
        while step < steps:
            if stop.name is not None:
                watch.drain()
                _preempt(state, step, stop.name, checkpoints)
            state, metrics = step_fn(state, _next(stream, step), root_key)
            step += 1
            watch.add(step, metrics)
            _run_hooks(hooks, step, steps, state, watch)
            if checkpoints is not None:
                checkpoints.poll()
            if progress is not None:
                progress.update(step, watch.latest)
    return state


def _first_step(state: TrainState, steps: int) -> int:
    step = int(state.step)
    if step > steps:
        raise UserError(f"the checkpoint is at step {step}, past the {steps} steps asked for")
    return step


def _run_hooks(
    hooks: Sequence[Hook], step: int, steps: int, state: TrainState, watch: Watch
) -> None:
    due = [hook for hook in hooks if step % hook.every == 0 or step == steps]
    metrics = watch.drain() if due or step == steps else {}
    for hook in due:
        hook(step, state, metrics)


def _next(stream: Iterator[Batch], step: int) -> Batch:
    batch = next(stream, None)
    if batch is None:
        raise UserError(f"the data ended before step {step + 1}; a training stream has to repeat")
    return batch


def _preempt(state: TrainState, step: int, signal: str, checkpoints: Checkpoints | None) -> None:
    if checkpoints is None:
        raise Preempted(f"stopped by {signal} after step {step}; this run keeps no checkpoints")
    checkpoints.save(state)
    checkpoints.wait()
    raise Preempted(f"stopped by {signal} after step {step}, saved; the same command goes on there")


@contextlib.contextmanager
def _saves_settled(checkpoints: Checkpoints | None) -> Iterator[None]:
    """Success: the last save is waited for and read back. Failure: a save in flight may finish."""
    try:
        yield
    except BaseException:
        if checkpoints is not None:
            try:
                checkpoints.wait(limit=EXIT_WAIT)
            except StorageError as error:
                logging.error("%s", error)
        raise
    if checkpoints is not None:
        checkpoints.close()


@contextlib.contextmanager
def _closed_at_end(log: MetricLog | None, progress: Progress | None) -> Iterator[None]:
    try:
        yield
    finally:
        if progress is not None:
            progress.close()
        if log is not None:
            with contextlib.suppress(StorageError):  # rows are written when they come, none is lost
                log.close()
