"""Fetching an official archive: from a folder the user filled, or once over the network.

Whichever way a file came, its SHA-256 decides whether it is used.
"""

import dataclasses
import hashlib
import http.client
import os
import pathlib
import sys
import time
import urllib.request
from collections.abc import Iterator

from scorediff.errors import StorageError, UserError

TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive:
    """One file of an official distribution."""

    url: str
    sha256: str

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def fetch(self, folder: pathlib.Path, *, manual_dir: str | None = None) -> pathlib.Path:
        """Path of the verified file, in `manual_dir` or else in `folder`, downloaded if needed.

        Raises:
          UserError: no such manual_dir, a file with another hash, or no way to the network.
          StorageError: the download cannot be written.
        """
        for place in self._places(folder, manual_dir):
            if place.is_file():
                self._verify(place, "delete it, or get it again from")
                return place
        return self._download(folder)

    def _places(self, folder: pathlib.Path, manual_dir: str | None) -> list[pathlib.Path]:
        if manual_dir is None:
            return [folder / self.filename]
        manual = pathlib.Path(manual_dir).expanduser()
        if not manual.is_dir():
            raise UserError(f"--manual_dir={manual_dir}: no such folder")
        return [manual / self.filename, folder / self.filename]

    def _verify(self, path: pathlib.Path, advice: str) -> None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise UserError(
                f"{path}: damaged or another version (SHA-256 {found[:12]}..., expected "
                f"{self.sha256[:12]}...); {advice} {self.url}"
            )

    def _download(self, folder: pathlib.Path) -> pathlib.Path:
        partial = folder / f"{self.filename}.part-{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                for chunk in self._chunks():
                    file.write(chunk)
            self._verify(partial, "that is what came from")
            return partial.rename(folder / self.filename)
        except OSError as error:
            raise StorageError(f"{folder}: cannot write {self.filename}: {error}") from error
        finally:
            if partial.is_file():
                partial.unlink()

    def _chunks(self) -> Iterator[bytes]:
        try:
            with urllib.request.urlopen(self.url, timeout=TIMEOUT) as response:
                total = int(response.headers.get("Content-Length") or 0)
                yield from _reported(iter(lambda: response.read(CHUNK), b""), self.filename, total)
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            reason = getattr(error, "reason", None) or error
            raise UserError(
                f"cannot download {self.url} ({reason}); fetch it on another machine "
                f"and pass the folder it is in as --manual_dir"
            ) from error


def _reported(chunks: Iterator[bytes], name: str, total: int) -> Iterator[bytes]:
    """The chunks as they are, with a progress line on stderr every two seconds."""
    done, shown = 0, time.monotonic()
    print(f"downloading {name} ({total / 1e6:.1f} MB)", file=sys.stderr)
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        if time.monotonic() - shown > 2:
            shown = time.monotonic()
            print(f"  {done / 1e6:.1f} of {total / 1e6:.1f} MB", file=sys.stderr, flush=True)
