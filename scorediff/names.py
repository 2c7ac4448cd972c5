"""Python names in configs: "module:Name", and which of them a config may use.

A saved or downloaded config is data. What it names is resolved only inside `PARTS` of scorediff,
optax and the packages that the user trusts by name, must be a public class or function at the top
of its module, and must itself be defined inside them, so that `scorediff.data.images:os` and the
like lead nowhere. `PARTS` leaves out whatever writes files, runs files or ends the process.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from scorediff.errors import UserError
from scorediff.fields import hint_at_nearest

PACKAGES = ("scorediff", "optax")
PARTS = (
    "scorediff.diffusion",
    "scorediff.models",
    "scorediff.solvers",
    "scorediff.data.pipeline",
    "scorediff.data.source",
    "scorediff.data.toy",
    "scorediff.data.transforms",
    "scorediff.evaluation.evaluators",
    "scorediff.evaluation.generate",
    "scorediff.training.ema",
    "scorediff.training.hooks",
    "scorediff.training.optimizers",
    "scorediff.training.plan",
)
_SPACINGS, _CLOCKED = ("uniform", "quadratic", "logsnr", "karras"), ("euler", "heun")
# Names in configs of older runs, which must stay readable.
MOVED = {
    **{f"scorediff.solvers.grid:{n}": f"scorediff.solvers.spacing:{n}" for n in _SPACINGS},
    **{f"scorediff.solvers.clock:{n}": f"scorediff.solvers.runge_kutta:{n}" for n in _CLOCKED},
    "scorediff.solvers.clock:euler_maruyama": "scorediff.solvers.reverse_sde:euler_maruyama",
}
_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*:[A-Za-z]\w*", re.ASCII)


def name_of(target: Callable) -> str:
    """ "module:Name" under which a saved config finds a class or function again.

    Its own module, or where that is private (`optax._src.alias`) the outermost one exporting it.
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(name, str)):
        raise UserError(f"{target!r} is neither a class nor a function")
    parts = module.split(".")
    outer = [".".join(parts[: i + 1]) for i in range(len(parts))]
    for candidate in [module, *outer]:
        exported = vars(sys.modules[candidate]).get(name) if candidate in sys.modules else None
        if exported is target and _NAME.fullmatch(f"{candidate}:{name}"):
            return f"{candidate}:{name}"
    raise UserError(
        f"{module}.{name} has no public name at the top of an importable module, "
        "so a saved config could not find it again"
    )


def resolve(name: str, *, packages: Sequence[str] = (), path: str = "config") -> Callable:
    """The class or function called "module:Name", if a config may name it.

    The module and the module that defines the object must both lie inside scorediff, optax or
    `packages`; private and nested names are refused. Raises UserError.
    """
    name = MOVED.get(name, name)
    if not _NAME.fullmatch(name):
        raise UserError(f"{path}: {name!r} is not the public name of anything (module:Name)")
    module_name, attribute = name.split(":")
    _check_inside(module_name, name, packages, path)
    module = _imported(module_name, path)
    found = vars(module).get(attribute)
    if found is None:
        near = hint_at_nearest(attribute, public_names(module_name))
        raise UserError(f"{path}: {module_name} has no {attribute}{near}")
    if not (inspect.isclass(found) or is_function(found)):
        raise UserError(f"{path}: {name} is neither a class nor a function")
    _check_inside(found.__module__, name, packages, path)
    if found.__qualname__ != attribute:
        raise UserError(f"{path}: {name} is another name of {found.__qualname__}; use that")
    return found


def _check_inside(module: str, name: str, packages: Sequence[str], path: str) -> None:
    if not _within(module, (*PACKAGES, *packages)):
        raise UserError(
            f"{path}: {name} is outside {', '.join((*PACKAGES, *packages))}; "
            f"if you trust it, add --trust={module.split('.')[0]}"
        )
    if _within(module, PACKAGES[:1]) and not _within(module, PARTS):
        raise UserError(f"{path}: {name} is not a part that a config may name (scorediff.names)")


def _within(module: str, packages: Sequence[str]) -> bool:
    return any(module == p or module.startswith(f"{p}.") for p in packages)


def _imported(module: str, path: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{path}: cannot import {module}: {error}") from error


def public_names(module: str) -> list[str]:
    """What an imported module offers to configs, for messages: its package's classes, functions."""
    package = module.split(".")[0]
    homes = PARTS if package == "scorediff" else (package,)
    return sorted(
        name
        for name, value in vars(sys.modules[module]).items()
        if not name.startswith("_") and (inspect.isclass(value) or is_function(value))
        if _within(value.__module__ or "", homes)
    )


def is_function(value: Any) -> bool:
    """Whether it is a Python function, as it is or under decorators (jit, wraps)."""
    return callable(value) and inspect.isfunction(inspect.unwrap(value))
