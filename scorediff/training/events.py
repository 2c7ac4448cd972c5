"""TensorBoard event files, written at once and by the calling thread.

tensorboardX's own SummaryWriter hands events to a thread through a short queue; when the disk is
full that thread dies and the queue blocks the training for ever. So only its file format is used.
"""

import pathlib
import time

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from scorediff.training.files import storing


class EventFile:
    """One event file. TensorBoard hides what older files in the folder say from `start` on."""

    def __init__(self, directory: pathlib.Path, *, start: int):
        self._directory = directory
        with storing(f"write into {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
            # The suffix keeps two files of the same second apart.
            self._writer = EventsWriter(str(directory / "events"), f".{start:09d}")
        self._write(Event(step=start, session_log=SessionLog(status=SessionLog.START)))
        self._flush()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Several named numbers of one step."""
        for name, value in values.items():
            self._add(step, summary.scalar(name, value))
        self._flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """image: uint8 [h, w, 3] or [h, w, 1]."""
        self._add(step, summary.image(name, image, dataformats="HWC"))
        self._flush()

    def close(self) -> None:
        """Everything was flushed when it was written."""
        with storing(f"write into {self._directory}"):
            self._writer.close()

    def _add(self, step: int, content: summary.Summary) -> None:
        self._write(Event(step=step, wall_time=time.time(), summary=content))

    def _write(self, event: Event) -> None:
        with storing(f"write into {self._directory}"):
            self._writer.write_event(event)

    def _flush(self) -> None:
        with storing(f"write into {self._directory}"):
            self._writer.flush()
