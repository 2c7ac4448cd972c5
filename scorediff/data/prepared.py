"""Finding what TFDS has prepared on disk, without importing TFDS unless it is there.

TFDS itself would try the network for minutes when a data set is missing, and then blame the file
format. Its layout is `data_dir/name[/config]/version/dataset_info.json`.
"""

import os
import re
from typing import Any

from etils import epath

from scorediff.data import builders
from scorediff.errors import StorageError, UserError
from scorediff.fields import nearest

INFO = "dataset_info.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_NAME = re.compile(r"\w[\w-]*(/\w[\w.+-]*)?")


def root(data_dir: str | None) -> epath.Path:
    """The folder of prepared data sets: `data_dir`, else TFDS_DATA_DIR, else TFDS's default."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return epath.Path(chosen).expanduser()


def load(name: str, data_dir: str | None = None, version: str | None = None) -> Any:
    """The (read-only) TFDS builder of a prepared data set, `name` or `name/config`.

    Raises:
      UserError: not prepared, or in a format without random access.
      StorageError: the folder is damaged.
    """
    where = root(data_dir)
    folder = find(name, where, version)
    import tensorflow_datasets as tfds  # a second, and only for what is there

    try:
        builder = tfds.builder_from_directory(folder)
        formats = {kind.value for kind in builder.info.available_file_formats()}
    except Exception as error:  # TFDS raises whatever its JSON, protobuf and path readers raise
        raise StorageError(
            f"{folder}: damaged data set ({one_line(error)}); delete it and prepare it again"
        ) from error
    if "array_record" not in formats:
        raise UserError(
            f"{folder}: prepared as {', '.join(sorted(formats))}, which has no random access; "
            f"delete it, and {_command(name, where)}"
        )
    return builder


def open_split(builder: Any, split: str) -> Any:
    """Random access to a split, or part of one; UserError if there is none of that name."""
    try:
        return builder.as_data_source(split, file_format="array_record")
    except ValueError as error:
        available = ", ".join(builder.info.splits)
        raise UserError(
            f"{builder.info.full_name}: split {split!r} cannot be read: it has {available}, and "
            f"parts of them such as 'train[:90%]' ({one_line(error)})"
        ) from error


def find(name: str, folder: epath.Path, version: str | None) -> epath.Path:
    """The folder of the wanted, or newest, prepared version; UserError if there is none."""
    if not _NAME.fullmatch(name):
        raise UserError(f"data set {name!r}: expected a name, or name/config")
    versions = _versions(folder / name)
    if not versions:
        raise _missing(name, folder)
    if version is None:
        return folder / name / max(versions, key=lambda v: [int(part) for part in v.split(".")])
    if version not in versions:
        raise UserError(f"{folder / name}: no version {version}, only {', '.join(versions)}")
    return folder / name / version


def names(folder: epath.Path) -> list[str]:
    """Every prepared `name` and `name/config` in a folder."""
    found = []
    for child in _folders(folder):
        found += [child.name] if _versions(child) else []
        found += [f"{child.name}/{config.name}" for config in _folders(child) if _versions(config)]
    return sorted(found)


def one_line(error: BaseException) -> str:
    """The last line of an exception's message: TFDS puts the reason there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


def _missing(name: str, folder: epath.Path) -> UserError:
    """What to say about a data set that is not there, nearest possibility first."""
    base = name.split("/")[0]
    there = names(folder)
    configs = [other for other in there if other.startswith(f"{name}/")]
    if configs:
        return UserError(f"data set {name!r} comes as {', '.join(configs)}: name one of them")
    close = None if base in builders.NAMES else nearest(name, [*there, *builders.NAMES])
    guess = f"; did you mean {close}?" if close else ""
    return UserError(
        f"data set {name!r} is not prepared in {folder}{guess}; {_command(name, folder)}"
    )


def _command(name: str, folder: epath.Path) -> str:
    """What to run to prepare a data set."""
    base = name.split("/")[0]
    if base in builders.NAMES:
        path = " --path=..." if base in builders.PATHS else ""
        return f"run: python -m experiments.prepare_data {base}{path} --data_dir={folder}"
    call = f"tfds.builder('{name}', data_dir='{folder}')"
    return (  # not `tfds build`, which needs apache_beam as well
        f"official TFDS data sets are prepared, where tensorflow-cpu is installed, by: python -c "
        f'"import tensorflow_datasets as tfds; '
        f"{call}.download_and_prepare(file_format='array_record')\""
    )


def _versions(folder: epath.Path) -> list[str]:
    found = [child for child in _folders(folder) if _VERSION.fullmatch(child.name)]
    return sorted(child.name for child in found if (child / INFO).exists())


def _folders(folder: epath.Path) -> list[epath.Path]:
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir())
