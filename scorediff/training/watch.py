"""Looking at the steps' metrics without making the device wait.

Steps are dispatched ahead of the device. Their metrics are kept in order and read once they are
there; only when the queue is full does the host wait, for the oldest step. So every skipped step is
found and named, and the host never runs further ahead than the queue is long.
"""

import collections
from collections.abc import Mapping
from typing import Any

import jax

from scorediff.errors import DivergedError, UserError
from scorediff.training.metrics import MetricLog
from scorediff.types import Metrics

AHEAD = 8  # steps


class Watch:
    """Reads metrics in order, records skipped steps, and stops a run that does not recover.

    patience: DivergedError after this many skipped steps in a row.
    """

    def __init__(self, *, patience: int = 10, log: MetricLog | None = None):
        if patience < 1:
            raise UserError(f"patience must be at least 1, got {patience}")
        self.latest: Mapping[str, Any] = {}  # metrics of the newest step read, host scalars
        self._patience = patience
        self._log = log
        self._queue: collections.deque[tuple[int, Metrics]] = collections.deque()

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of step number `step`, and reads those that are ready."""
        self._queue.append((step, metrics))
        while self._queue and (len(self._queue) > AHEAD or self._queue[0][1]["loss"].is_ready()):
            self._read()

    def drain(self) -> Mapping[str, Any]:
        """Waits for all steps and returns the newest one's metrics."""
        while self._queue:
            self._read()
        return self.latest

    def _read(self) -> None:
        step, metrics = self._queue.popleft()
        self.latest = jax.device_get(metrics)
        in_row = int(self.latest["skipped_in_row"])
        if in_row and self._log is not None:
            names = ("loss", "grad_norm", "skipped_in_row")
            self._log.incident(step, {name: self.latest[name] for name in names})
        if in_row >= self._patience:
            raise DivergedError(
                f"loss or gradient not finite in steps {step - in_row + 1} to {step}; stopped, the "
                "checkpoints before are sound: lower the learning rate or clip the gradients"
            )
