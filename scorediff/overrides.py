"""Single fields of a config changed on the command line.

    --config.train.steps=1e3                    an int, written as one likes
    --config.denoiser.network.channels=(8,16)   a tuple, element types as in the signature
    --config.train.hooks[0].every=50            an element of a tuple or list
    --config.denoiser.process=VPCosine          a node: a class beside the present one, in its
                                                module or package, or any class in full
                                                (scorediff.diffusion.processes.VPCosine)

They apply from left to right, so later ones see a node that an earlier one has put in place. A new
node starts from its own defaults: what the old one had set differently is not carried over, because
an argument of the same name need not mean the same. Types come from the signature of the node that
owns the field, and from the present value where nothing is annotated.
"""

import ast
import copy
import dataclasses
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Union, get_args, get_origin

from ml_collections import ConfigDict, FieldReference

from scorediff.config import (
    BIND,
    CALL,
    blank,
    check_config,
    detached,
    from_json,
    is_node,
    kind_and_name,
    to_json,
)
from scorediff.errors import UserError
from scorediff.fields import (
    Field,
    accepts,
    asks_for_node,
    coerce,
    describe,
    fields,
    hint_of,
    members,
    nearest,
    says_nothing,
)
from scorediff.names import resolve

_PATH = re.compile(r"config((\.[A-Za-z_]\w*)(\[\d+\])*)+", re.ASCII)
_SEGMENT = re.compile(r"\.(\w+)|\[(\d+)\]", re.ASCII)
_NODE_NAME = re.compile(r"[A-Za-z_][\w.]*(:\w+)?", re.ASCII)
_ABSENT = object()  # in the signature, but its default is not something that a config can show
_BOOLS = {"true": True, "True": True, "1": True, "false": False, "False": False, "0": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
    """One field on the way down: where it is, what is there, what may be there, how to set it."""

    path: str
    value: Any
    hint: Any
    put: Callable[[Any], None]


def apply(
    config: ConfigDict, overrides: Sequence[str], *, packages: Sequence[str] = ()
) -> ConfigDict:
    """A locked copy of the config with "--config.path=value" overrides, checked as a whole.

    Raises UserError with the full path: unknown field, wrong type, name that does not resolve,
    node without an argument it needs.
    """
    changed = detached(copy.deepcopy(config))  # references stay linked, but among themselves
    for override in overrides:
        path, text = _split(override)
        place = _find(changed, path, packages)
        place.put(_value(place, text, packages))
    plain = from_json(to_json(changed))  # references resolved, everything known to be data
    check_config(plain, packages=packages)
    return plain


def _split(override: str) -> tuple[str, str]:
    path, equals, text = override.removeprefix("--").partition("=")
    if not equals:
        raise UserError(f"{path}: write --{path}=VALUE, with the equals sign")
    if not _PATH.fullmatch(path):
        raise UserError(f"{path}: not a path; write it like config.train.steps or config.hooks[0]")
    return path, text


def _find(config: ConfigDict, path: str, packages: Sequence[str]) -> _Place:
    place = _Place(path="config", value=config, hint=Any, put=lambda value: None)
    for name, index in _SEGMENT.findall(path.removeprefix("config")):
        try:
            place = _element(place, int(index)) if index else _field(place, name, packages)
        except _NoSuchField as error:
            raise UserError(_no_such_field(config, path, error)) from None
    return place


class _NoSuchField(Exception):
    def __init__(self, parent: str, name: str, choices: list[str]) -> None:
        self.parent, self.name, self.choices = parent, name, choices


def _no_such_field(config: ConfigDict, path: str, error: _NoSuchField) -> str:
    close, wrong = nearest(error.name, error.choices), f"{error.parent}.{error.name}"
    if close:
        meant = f"{error.parent}.{close}" + path[len(wrong) :]
        return f"{path}: no such field; did you mean {meant}?"
    by_name = {p.rsplit(".", 1)[1]: p for p in _paths(config, "config")}
    elsewhere = nearest(path.rsplit(".", 1)[1], by_name, cutoff=0.75)
    if elsewhere:
        return f"{path}: no such field; did you mean {by_name[elsewhere]}?"
    return f"{path}: no such field; {error.parent} has {', '.join(error.choices[:12])}"


def _paths(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, ConfigDict):
        for key, item in value.items():
            yield f"{path}.{key}"
            yield from _paths(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _paths(item, f"{path}[{index}]")


def _field(place: _Place, name: str, packages: Sequence[str]) -> _Place:
    if place.value is None:
        raise UserError(f"{place.path}.{name}: {place.path} is None; set {place.path}=NAME before")
    if place.value is _ABSENT:
        raise UserError(
            f"{place.path}.{name}: {place.path} is a default that a config cannot show; "
            f"set {place.path}=NAME before"
        )
    if not isinstance(place.value, ConfigDict):
        kind = type(place.value).__name__
        raise UserError(f"{place.path}.{name}: {place.path} is of type {kind} and has no fields")
    if is_node(place.value) and name in (CALL, BIND):
        raise UserError(f"{place.path}.{name}: write {place.path}=NAME to put another one there")
    return _member(place.value, name, place.path, packages)


def _member(group: ConfigDict, name: str, path: str, packages: Sequence[str]) -> _Place:
    known = _signature(group, path, packages) if is_node(group) else {}
    if name not in group and name not in known:
        raise _NoSuchField(
            path, name, [k for k in {**known, **dict(group)} if k not in (CALL, BIND)]
        )

    def put(value: Any) -> None:
        present = dict(group.items(preserve_field_references=True)).get(name)
        if isinstance(present, FieldReference):  # fields computed from this one follow
            present.set(value, type_safe=False)
            return
        if name in group:
            del group[name]  # a ConfigDict would insist on the present type
        group[name] = value

    value = group.get(name, _ABSENT)
    hint = known[name].hint if name in known else Any
    return _Place(path=f"{path}.{name}", value=value, hint=hint, put=put)


def _signature(node: ConfigDict, path: str, packages: Sequence[str]) -> dict[str, Field]:
    return fields(resolve(kind_and_name(node, path)[1], packages=packages, path=path))


def _element(place: _Place, index: int) -> _Place:
    items, path = place.value, f"{place.path}[{index}]"
    if not isinstance(items, list | tuple):
        raise UserError(f"{path}: {place.path} is neither a tuple nor a list")
    if index >= len(items):
        raise UserError(f"{path}: {place.path} has {len(items)} elements, counted from 0")

    def put(value: Any) -> None:
        place.put(type(items)((*items[:index], value, *items[index + 1 :])))

    return _Place(path=path, value=items[index], hint=_element_hint(place.hint, index), put=put)


def _element_hint(hint: Any, index: int) -> Any:
    for member in members(hint):
        inner = get_args(member)
        if get_origin(member) in (tuple, list, Sequence) and inner:
            return inner[0] if len(inner) == 1 or inner[-1] is Ellipsis else inner[index]
    return Any


def _value(place: _Place, text: str, packages: Sequence[str]) -> Any:
    """What the text means at this place: data where that fits, else the name of a node."""
    _check_replaceable(place)
    hint = _effective_hint(place)
    for reading in _readings(text):
        if accepts(hint, reading):
            return coerce(hint, reading)
    in_full = Any in members(hint) and ("." in text or ":" in text)
    by_name = _NODE_NAME.fullmatch(text) and (asks_for_node(hint) or in_full)
    if accepts(hint, text) and not is_node(place.value) and not (by_name and in_full):
        return text
    if by_name:
        return _node(place, text, packages)
    raise UserError(f"{place.path}: expected {describe(hint)}, got {text!r}")


def _check_replaceable(place: _Place) -> None:
    if isinstance(place.value, ConfigDict) and not is_node(place.value):
        example = next(iter(place.value), "NAME")
        raise UserError(
            f"{place.path}: is a group of fields; set one of them, like {place.path}.{example}"
        )
    if isinstance(place.value, list | tuple):
        nodes = [i for i, item in enumerate(place.value) if isinstance(item, ConfigDict)]
        if nodes:
            raise UserError(
                f"{place.path}: holds nodes; set one of them, like {place.path}[{nodes[0]}]=NAME"
            )


def _effective_hint(place: _Place) -> Any:
    """The annotation where it says something, made narrower or replaced by the present value."""
    if is_node(place.value):
        present = Callable | None
    else:
        present = Any if place.value is _ABSENT else hint_of(place.value)

    def narrower(hint: Any) -> Any:
        if hint in (Any, object):
            return present
        if says_nothing(hint):
            return Callable  # a protocol: what satisfies it is built by a node
        return present if hint in (tuple, list) and get_origin(present) is hint else hint

    return Union[tuple(map(narrower, members(place.hint)))]  # noqa: UP007 (made at run time)


def _readings(text: str) -> Iterator[Any]:
    """The values that a text can stand for, the most literal first; itself not among them."""
    if text in ("none", "None"):
        yield None
    number = _number(text)
    if number is not None:
        yield number
        if isinstance(number, float) and number.is_integer() and abs(number) <= 2**53:
            yield int(number)  # 1e3 where an int is meant
    if text in _BOOLS:
        yield _BOOLS[text]
    if text[:1] in ("(", "[") or "," in text:
        items = _literal(text)
        if isinstance(items, list | tuple):
            yield from (items, tuple(items), list(items))


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return None if math.isnan(number) else number
    return None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _node(place: _Place, text: str, packages: Sequence[str]) -> ConfigDict:
    """A node of that name with its defaults, of the kind that is there now."""
    target = resolve(_full_name(place, text, packages), packages=packages, path=place.path)
    if is_node(place.value):
        return blank(kind_and_name(place.value, place.path)[0], target)
    return blank(CALL if inspect.isclass(target) else BIND, target)


def _full_name(place: _Place, text: str, packages: Sequence[str]) -> str:
    if ":" in text:
        return text
    if "." in text:
        return ":".join(text.rsplit(".", 1))
    if is_node(place.value):
        return f"{_home(kind_and_name(place.value, place.path)[1], text, packages)}:{text}"
    classes = [m for m in members(place.hint) if inspect.isclass(m) and not says_nothing(m)]
    homes = [m.__module__ for m in classes]
    homes = [home for home in homes if home.split(".")[0] not in sys.stdlib_module_names]
    if not homes:
        example = "scorediff.diffusion.processes.VPLinear"
        raise UserError(f"{place.path}: give {text} in full, in the way of {example}")
    return f"{homes[0]}:{text}"


def _home(present: str, text: str, packages: Sequence[str]) -> str:
    """Where a short name belongs: the module of the present object, or the package around it."""
    resolve(present, packages=packages)  # imports the module, if a config may name it
    module = present.split(":")[0]
    homes = [module, module.rpartition(".")[0]]
    known = {home: [n for n in vars(sys.modules[home]) if n[0] != "_"] for home in homes if home}
    for home, names in known.items():
        if text in names:
            return home
    return next((home for home, names in known.items() if nearest(text, names)), module)
