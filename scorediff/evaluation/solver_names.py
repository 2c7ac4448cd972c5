"""Solvers, spacings and processes as one types them: name, or name:option=value:option=value.

A name is looked up among the functions of `scorediff.solvers` that make a table of a grid, those of
`scorediff.solvers.spacing`, or the processes of `scorediff.diffusion`; a value is a number, true,
false, none, a word or a tuple like (3,2), checked against the signature. Nothing is evaluated.
"""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

from scorediff import diffusion, solvers
from scorediff.diffusion.process import Process
from scorediff.errors import UserError
from scorediff.fields import accepts, coerce, describe, fields, hint_at_nearest
from scorediff.solvers import spacing
from scorediff.solvers.grid import Grid, Spacing
from scorediff.solvers.sample import Solver
from scorediff.solvers.table import StepTable

_BETWEEN = re.compile(r",(?![^(]*\))")  # commas outside of parentheses
_WORDS = {"true": True, "false": False, "none": None}


def parse_solvers(text: str) -> dict[str, Solver]:
    """The solvers of a list like "ddim,dpmpp_multistep:order=3", by the text of each."""
    return parse("solver", text, known_solvers())


def parse_spacings(text: str) -> dict[str, Spacing]:
    """The spacings of a list like "logsnr,karras:rho=5", by the text of each."""
    return parse("spacing", text, known_spacings())


def parse_processes(text: str) -> dict[str, Process]:
    """The processes of a list like "VPLinear,EDM:t_max=60", by the text of each."""
    made = parse("process", text, known_processes())
    try:
        return {name: make() for name, make in made.items()}
    except (ValueError, TypeError) as error:
        raise UserError(f"--processes={text}: {error}") from None


@functools.cache
def known_solvers() -> Mapping[str, Callable]:
    """Every public function of `scorediff.solvers` that makes a table of a grid alone, by name."""
    found = {}
    for module in pkgutil.iter_modules(solvers.__path__):
        home = importlib.import_module(f"{solvers.__name__}.{module.name}")
        for name, value in vars(home).items():
            if name[0] != "_" and _is_solver(value) and value.__module__ == home.__name__:
                found[name] = value
    return dict(sorted(found.items()))


def _is_solver(value: Any) -> bool:
    if not inspect.isfunction(value):
        return False
    hints, required = (
        typing.get_type_hints(value),
        [k for k, f in fields(value).items() if f.required],
    )
    return hints.get("return") is StepTable and [hints.get(k) for k in required] == [Grid]


@functools.cache
def known_spacings() -> Mapping[str, Callable]:
    """The public functions of `scorediff.solvers.spacing`, by name."""
    return {
        name: value
        for name, value in vars(spacing).items()
        if inspect.isfunction(value) and value.__module__ == spacing.__name__ and name[0] != "_"
    }


@functools.cache
def known_processes() -> Mapping[str, Callable]:
    """The processes that `scorediff.diffusion` offers, by name."""
    return {
        name: value
        for name, value in vars(diffusion).items()
        if inspect.isclass(value) and issubclass(value, Process) and value is not Process
    }


def parse(kind: str, text: str, known: Mapping[str, Callable]) -> dict[str, Callable]:
    """The functions of `known` that a list names, options bound, by the text of each."""
    items = [item.strip() for item in _BETWEEN.split(text) if item.strip()]
    if not items:
        raise UserError(f"no {kind} is named; there is {', '.join(known)}")
    return {item: _named(kind, item, known) for item in items}


def _named(kind: str, item: str, known: Mapping[str, Callable]) -> Callable:
    name, *options = item.split(":")
    if name not in known:
        raise UserError(f"no {kind} is called {name!r}{hint_at_nearest(name, known)}")
    choices = {key: field for key, field in fields(known[name]).items() if not field.required}
    given = dict(_option(item, option, choices) for option in options)
    return functools.partial(known[name], **given) if given else known[name]


def _option(item: str, option: str, choices: Mapping[str, Any]) -> tuple[str, Any]:
    key, equals, text = option.partition("=")
    if not equals or key not in choices:
        raise UserError(f"{item}: no option {key!r}{hint_at_nearest(key, choices)}")
    value, hint = _value(text), choices[key].hint
    if not accepts(hint, value) or callable(value):
        raise UserError(f"{item}: {key} expects {describe(hint)}, got {text!r}")
    return key, coerce(hint, value)


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
