"""A line on stderr that says how far training is: step, loss, rate, time left."""

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

WIDTH = 24
TERMINAL_SECONDS, FILE_SECONDS = 0.1, 10.0


class Progress:
    """Rewrites one line on a terminal; adds one every ten seconds to anything else."""

    def __init__(self, total: int, *, stream: TextIO | None = None):
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._first: tuple[int, float] | None = None
        self._shown = float("-inf")

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """step: steps done. metrics: the newest known; may be empty."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)  # from here, so that compiling does not count as slowness
            self._shown = now if not self._terminal else self._shown
        pause = TERMINAL_SECONDS if self._terminal else FILE_SECONDS
        if now - self._shown >= pause or step == self._total:
            self._shown = now
            self._write(self.line(step, metrics, now))

    def line(self, step: int, metrics: Mapping[str, Any], now: float) -> str:
        """The text for one moment."""
        first, start = self._first or (step, now)
        rate = (step - first) / (now - start) if now > start else 0.0
        left = _clock((self._total - step) / rate) if rate else "?"
        loss = f"loss {float(metrics['loss']):.4f}  " if "loss" in metrics else ""
        filled = WIDTH * step // max(self._total, 1)
        bar = "#" * filled + "." * (WIDTH - filled)
        return f"[{bar}] {step}/{self._total}  {loss}{rate:.1f} steps/s  {left} left"

    def close(self) -> None:
        """Leaves the terminal's cursor on a fresh line."""
        if self._terminal and self._first is not None:
            self._stream.write("\n")
            self._stream.flush()

    def _write(self, text: str) -> None:
        self._stream.write(f"\r{text}\x1b[K" if self._terminal else f"{text}\n")
        self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
