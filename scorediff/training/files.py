"""Writing that a kill cannot tear, and disk trouble told in one line."""

import contextlib
import errno
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator

from scorediff.errors import StorageError

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)


@contextlib.contextmanager
def storing(what: str) -> Iterator[None]:
    """Turns an OSError inside into a StorageError "cannot <what>: <reason>"."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {what}: {error.strerror or error}") from error


def reason_of(error: Exception) -> str:
    """Why the disk refused, in a few words, out of the long text that a library made of it."""
    text = str(error).strip() or type(error).__name__
    known = (os.strerror(code) for code in REFUSALS)
    return next((reason for reason in known if reason in text), text.splitlines()[0][:160])


def write_atomic(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file whole or not at all: a temporary neighbour, synced, then renamed.

    Text is UTF-8; missing folders are made. StorageError if the disk refuses.
    """
    data = content.encode() if isinstance(content, str) else content
    with storing(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            pathlib.Path(temporary).unlink(missing_ok=True)
            raise


def check_writable(directory: pathlib.Path) -> None:
    """Creates the directory and writes a file in it; StorageError where that fails."""
    with storing(f"write into {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".probe.") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())


class JsonLines:
    """A file of JSON objects with a "step" each, one a line, that only grows.

    Every line is handed to the system at once, so a killed process loses at most the line that it
    was writing. Numbers that are not finite become null, which JSON can hold.
    """

    def __init__(self, path: pathlib.Path):
        self.path = pathlib.Path(path)

    def append(self, row: dict) -> None:
        """Adds one row; StorageError on a full or read-only disk."""
        line = json.dumps(_finite(row), allow_nan=False) + "\n"
        with storing(f"write {self.path}"), open(self.path, "a", encoding="utf-8") as file:
            file.write(line)

    def rows(self) -> list[dict]:
        """All whole rows."""
        return [json.loads(line) for line in self._whole_lines()]

    def rewind(self, step: int) -> None:
        """Forgets the rows after `step`, and a torn last line."""
        if self.path.exists():
            kept = [line for line in self._whole_lines() if json.loads(line)["step"] <= step]
            write_atomic(self.path, "".join(kept))

    def _whole_lines(self) -> list[str]:
        if not self.path.exists():
            return []
        with open(self.path, encoding="utf-8", newline="") as file:
            return [line for line in file if line.endswith("\n")]


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value
