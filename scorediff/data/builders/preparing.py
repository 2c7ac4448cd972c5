"""Running a builder: what is on disk afterwards is the whole data set or nothing of it.

TFDS writes into a folder `incomplete.*` beside the final one and renames it at the end.
"""

import contextlib
import io
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from scorediff.errors import StorageError


def prepare(builder: Any) -> bool:
    """Writes the data set as array_record; False if it was there already.

    Progress goes to stderr. Raises UserError as the builder does, StorageError for a disk that is
    full or cannot be written.
    """
    folder = pathlib.Path(builder.data_dir)
    if _is_prepared(folder):
        return False
    print(f"preparing {folder}", file=sys.stderr)
    start = time.monotonic()
    try:
        with _quiet(), _leaving_no_trace(folder):
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except OSError as error:
        if _is_prepared(folder):  # by another process, while this one was at it
            return False
        raise StorageError(f"{folder}: cannot be written ({error})") from error
    print(f"prepared in {time.monotonic() - start:.1f} s", file=sys.stderr)
    return True


def _is_prepared(folder: pathlib.Path) -> bool:
    return (folder / "dataset_info.json").exists()


def summary(builder: Any) -> str:
    """One line about a prepared data set: where, and how many examples each split has."""
    splits = ", ".join(
        f"{name} {split.num_examples:,}" for name, split in builder.info.splits.items()
    )
    return f"{builder.info.full_name}: {splits} examples in {builder.data_dir}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the announcements that TFDS prints, and with its bars on a terminal only."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _leaving_no_trace(folder: pathlib.Path) -> Iterator[None]:
    """After a failure, removes the empty parents of a folder that TFDS has already removed."""
    try:
        yield
    except BaseException:
        for parent in folder.parents[:2]:
            with contextlib.suppress(OSError):
                parent.rmdir()  # succeeds only on an empty folder
        raise
