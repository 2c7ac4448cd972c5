"""What happens every so many steps: logging, checkpoints, samples, evaluation, all in one way.

A hook has `every` and is called with the number of steps done, the state, and that step's metrics.
It runs at every multiple of `every` and at the last step. It may read the state during the call
only: the next step takes the state over.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from scorediff.errors import UserError
from scorediff.training.checkpoint import Checkpoints
from scorediff.training.metrics import MetricLog
from scorediff.training.state import TrainState

Action = Callable[[int, TrainState, Mapping[str, Any]], None]


class Hook(Protocol):
    """(steps done, state, metrics of this step as host scalars) -> None, every `every` steps."""

    every: int

    def __call__(self, step: int, state: TrainState, metrics: Mapping[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every:
    """Any function as a hook."""

    every: int
    action: Action

    def __post_init__(self):
        _check_every(self.every, "Every")

    def __call__(self, step: int, state: TrainState, metrics: Mapping[str, Any]) -> None:
        self.action(step, state, metrics)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveCheckpoint:
    """Starts an asynchronous save. `fit` runs it after all other hooks of the step."""

    every: int
    checkpoints: Checkpoints

    def __post_init__(self):
        _check_every(self.every, "SaveCheckpoint")

    def __call__(self, step: int, state: TrainState, metrics: Mapping[str, Any]) -> None:
        self.checkpoints.save(state)


class LogMetrics:
    """Writes the step's metrics, and the rate since the last time."""

    def __init__(self, *, every: int, log: MetricLog):
        _check_every(every, "LogMetrics")
        self.every = every
        self._log = log
        self._before: tuple[int, float] | None = None

    def __call__(self, step: int, state: TrainState, metrics: Mapping[str, Any]) -> None:
        self._log.scalars(step, metrics)
        now = time.monotonic()
        if self._before is not None:
            steps, seconds = step - self._before[0], now - self._before[1]
            rate = steps / seconds if seconds > 0 else 0.0
            self._log.timing(step, {"steps_per_s": rate, "seconds": seconds})
        self._before = (step, now)


def _check_every(every: int, owner: str) -> None:
    if every < 1:
        raise UserError(f"{owner}: every must be at least 1, got {every}")
