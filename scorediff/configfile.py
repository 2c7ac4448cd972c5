"""A config from a file: a Python file that makes one, or the JSON that a run has kept.

`configs/digits.py:tiny` runs that file, because the user has named it, and calls
`get_config("tiny")`. `runs/digits/config.json` is data: nothing of it is run.
"""

import importlib.util
import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scorediff.config import from_json
from scorediff.errors import UserError
from scorediff.fields import nearest
from scorediff.overrides import apply


def load_config(
    where: str, overrides: Sequence[str] = (), *, packages: Sequence[str] = ()
) -> ConfigDict:
    """The locked config at "path.py", "path.py:variant" or "path.json", with overrides applied.

    `get_config` gets the variant only where one is given; its ValueError means an unknown one.
    Whatever goes wrong in the user's file is a UserError that names the file and its line.
    """
    name, variant = _split(where)
    path = Path(name)
    _check_exists(path)
    if path.suffix == ".json":
        config = _from_saved(path, variant)
    elif path.suffix == ".py":
        config = _from_python(path, variant)
    else:
        raise UserError(f"{path}: a config is a .py file or a saved .json")
    return apply(config, overrides, packages=packages)


def _split(where: str) -> tuple[str, str | None]:
    name, colon, variant = where.rpartition(":")
    return (name, variant) if colon else (where, None)


def _check_exists(path: Path) -> None:
    if path.is_file():
        return
    folder = path.parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    files = [n for n in names if n.endswith((".py", ".json")) and not n.startswith("_")]
    close = nearest(path.name, files)
    raise UserError(
        f"{path}: no such file" + (f"; did you mean {folder / close}?" if close else "")
    )


def _from_saved(path: Path, variant: str | None) -> ConfigDict:
    if variant is not None:
        raise UserError(f"{path}: a saved config has no variants, so no {variant!r}")
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def _from_python(path: Path, variant: str | None) -> ConfigDict:
    get_config = getattr(_guarded(path, lambda: _executed(path)), "get_config", None)
    if not callable(get_config):
        raise UserError(f"{path}: has no function get_config")
    args = [] if variant is None else [variant]
    try:
        inspect.signature(get_config).bind(*args)
    except TypeError:
        problem = "needs a variant, like" if variant is None else "takes no variant, so no"
        raise UserError(f"{path}: get_config {problem} {path}:{variant or 'tiny'}") from None
    config = _guarded(path, lambda: get_config(*args))
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config gave a {type(config).__name__}, not a ConfigDict")
    return config


def _executed(path: Path) -> Any:
    found = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _guarded(path: Path, run: Callable[[], Any]) -> Any:
    """Runs the user's file; an exception becomes one line with the line of that file."""
    try:
        return run()
    except Exception as error:
        frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError):
            frames.append((error.filename or "", error.lineno))
        lines = [line for name, line in frames if Path(name).resolve() == path.resolve()]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        said = " ".join(str(error).split())
        kind = "" if isinstance(error, UserError | ValueError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {kind}{said}") from error


def load_run(
    workdir: str | Path,
    config: str | None,
    overrides: Sequence[str] = (),
    *,
    packages: Sequence[str] = (),
) -> ConfigDict:
    """The config of a run folder, or another one where it is given, with overrides applied."""
    saved = Path(workdir) / "config.json"
    if config is None and not saved.is_file():
        raise UserError(f"{workdir}: not a run folder, it has no config.json")
    return load_config(config or str(saved), overrides, packages=packages)
