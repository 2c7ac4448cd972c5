"""Where the numbers of a run go.

metrics.jsonl is the truth. It holds nothing but what the run computes, so an interrupted run that
goes on writes the same bytes as one that never stopped; on the way back to a checkpoint, rows after
it are forgotten. What depends on the clock goes to timing.jsonl, skipped steps to incidents.jsonl,
and TensorBoard is a copy to look at. With several processes only the first writes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from scorediff.training.events import EventFile
from scorediff.training.files import JsonLines
from scorediff.training.workdir import Workdir


class MetricLog:
    """Writes the rows of one run folder. `fit` calls `rewind` with the step it starts from."""

    def __init__(self, workdir: Workdir):
        self._workdir = workdir
        self._metrics = JsonLines(workdir.metrics)
        self._timing = JsonLines(workdir.timing)
        self._incidents = JsonLines(workdir.incidents)
        self._events: EventFile | None = None
        self._writes = jax.process_index() == 0

    def rewind(self, step: int) -> None:
        """Forgets everything after `step`."""
        if self._writes:
            for file in (self._metrics, self._timing, self._incidents):
                file.rewind(step)
            self.close()
            self._events = EventFile(self._workdir.tensorboard, start=step + 1)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """One row of deterministic scalars, in the order given."""
        if self._writes:
            plain = {name: np.asarray(value).item() for name, value in values.items()}
            self._metrics.append({"step": step, **plain})
            self._open_events(step).scalars(step, plain)

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """One row of numbers that depend on the clock."""
        if self._writes:
            self._timing.append({"step": step, **values})
            self._open_events(step).scalars(step, {f"timing/{n}": v for n, v in values.items()})

    def incident(self, step: int, values: Mapping[str, Any]) -> None:
        """One row about a step that was skipped; values as text, which can say "nan"."""
        if self._writes:
            said = {name: str(np.asarray(value).item()) for name, value in values.items()}
            self._incidents.append({"step": step, **said})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An image for TensorBoard. image: uint8 [h, w, 3] or [h, w, 1]."""
        if self._writes:
            self._open_events(step).image(step, name, image)

    def close(self) -> None:
        """Closes TensorBoard's file; a later call of the other methods opens another."""
        if self._events is not None:
            events, self._events = self._events, None
            events.close()

    def _open_events(self, step: int) -> EventFile:
        if self._events is None:
            self._events = EventFile(self._workdir.tensorboard, start=step)
        return self._events
