"""Config nodes name what they build.

`spec(VPLinear, beta_max=15.0)` records a class or function and all its arguments, defaults too, in
an `ml_collections.ConfigDict`, checked against the real signature:

    {"call": "scorediff.diffusion.processes:VPLinear", "beta_max": 15.0, "beta_min": 0.1}

`build` calls it. `bind` records the same for a function that is called later, perhaps with more
arguments: `build` of it gives the function with those arguments filled in. Nodes nest, also inside
tuples, lists and groups of fields. There is no registry: the name is the Python name, and names
resolve only inside scorediff's parts, optax and packages that the user named, so that a saved or
downloaded config cannot call anything else.
"""

import dataclasses
import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference

from scorediff.errors import UserError
from scorediff.fields import (
    SIMPLE,
    Field,
    admits_node,
    check,
    coerce,
    describe,
    fields,
    hint_at_nearest,
    unnamed,
)
from scorediff.names import PACKAGES, is_function, name_of, resolve

CALL, BIND = "call", "bind"


def spec(target: Callable, /, **args: Any) -> ConfigDict:
    """A node that `build` turns into `target(**args)`.

    Arguments are numbers, text, None, tuples, lists, other nodes, functions (recorded as `bind`),
    dataclass instances (recorded as `spec` of their fields) and `FieldReference`s. A default that
    is none of those (an array, a closure) is left out of the record and stays the default.
    Raises UserError for an unknown, missing or wrongly typed argument.
    """
    return _node(CALL, target, args, complete=True)


def bind(target: Callable, /, **args: Any) -> ConfigDict:
    """A node that `build` turns into `functools.partial(target, **args)`; arguments may be missing.

    Where every argument has its default, the function itself is what is built, so that two builds
    of one config are equal and compile once.
    """
    return _node(BIND, target, args, complete=False)


def blank(kind: str, target: Callable) -> ConfigDict:
    """A node of `target` with its defaults only; required arguments are still to be given."""
    return _node(kind, target, {}, complete=False)


def is_node(value: Any) -> bool:
    """Whether a value of a config is a `spec` or a `bind`."""
    return isinstance(value, Mapping | ConfigDict) and (CALL in value or BIND in value)


def kind_and_name(node: Mapping | ConfigDict, path: str = "config") -> tuple[str, str]:
    """("call" or "bind", "module:Name") of a node; UserError if it is not a proper one."""
    kinds = [kind for kind in (CALL, BIND) if kind in node]
    if len(kinds) != 1 or not isinstance(node[kinds[0]], str):
        raise UserError(f"{path}: a node has either 'call' or 'bind', and that is a name")
    return kinds[0], node[kinds[0]]


def describe_node(node: Mapping | ConfigDict) -> tuple[str, dict[str, Any]]:
    """The short name of what a node builds, and its arguments as they are recorded."""
    name = kind_and_name(node)[1].rpartition(":")[2]
    return name, {key: node[key] for key in arguments(node)}


def words(value: Any) -> Any:
    """A node in words, such as "karras(rho=7.0)"; any other value as it is."""
    if not is_node(value):
        return value
    name, given = describe_node(value)
    inner = ", ".join(f"{key}={words(value)}" for key, value in given.items())
    return f"{name}({inner})" if inner else name


def _node(kind: str, target: Callable, args: Mapping[str, Any], *, complete: bool) -> ConfigDict:
    name = name_of(target)
    title, known = name.split(":")[1], fields(target)
    _check_names(title, known, args, complete=complete)
    if kind == CALL and unnamed(target):
        raise UserError(f"{title} takes {unnamed(target)[0]} by position; a config can only name")
    homes = {*PACKAGES, _package(name)}
    record = ConfigDict(_recorded_defaults(known, args, homes))
    for key, value in args.items():
        record[key] = _recorded_argument(f"{title}.{key}", known[key].hint, value)
    record[kind] = name
    return record


def _check_names(
    title: str, known: Mapping[str, Field], given: Sequence[str] | Mapping, *, complete: bool
) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"{title} has no field {name}{hint_at_nearest(name, known)}")
    for reserved in (CALL, BIND):
        if reserved in known:
            raise UserError(
                f"{title} cannot be in a config: its argument {reserved} is a key there"
            )
    missing = [name for name, field in known.items() if field.required and name not in given]
    if complete and missing:
        raise UserError(f"{title} needs {', '.join(missing)}")


def _recorded_defaults(known: Mapping[str, Field], given: Mapping, homes: set[str]) -> dict:
    found = {}
    for name, field in known.items():
        if name in given or field.required:
            continue
        try:
            found[name] = coerce(field.hint, _recorded(field.default, homes))
        except UserError:  # not representable: left to the signature
            continue
    return found


def _recorded_argument(where: str, hint: Any, value: Any) -> Any:
    reference = isinstance(value, FieldReference)
    plain = value.get() if reference else value
    try:
        recorded = _recorded(plain, None)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if is_node(recorded):
        if not admits_node(hint):
            raise UserError(f"{where}: expected {describe(hint)}, got a node")
    else:
        _check_data(where, hint, recorded)
    return value if reference else coerce(hint, recorded)


def _check_data(where: str, hint: Any, value: Any) -> None:
    """Checks what can be checked before anything is built."""
    if not _holds_node(value):
        check(where, hint, build(value))  # nothing is called: groups become dicts


def _recorded(value: Any, homes: set[str] | None) -> Any:
    """The value as a config holds it; `homes` are the packages that functions may come from."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return float(value) if isinstance(value, float) else int(value)
    if isinstance(value, list) or type(value) is tuple:
        return type(value)(_recorded(v, homes) for v in value)
    if isinstance(value, ConfigDict):
        return detached(value)
    if isinstance(value, Mapping):
        return ConfigDict({key: _recorded(item, homes) for key, item in value.items()})
    if isinstance(value, functools.partial) and not value.args:
        return _at_home(bind(value.func, **value.keywords), homes)
    if inspect.isclass(value) or is_function(value):
        return _at_home(bind(value), homes)
    if dataclasses.is_dataclass(value):
        given = {name: _recorded(getattr(value, name), homes) for name in fields(type(value))}
        return _at_home(spec(type(value), **given), homes)
    raise UserError(f"a config cannot hold a {type(value).__name__}")


def _at_home(node: ConfigDict, homes: set[str] | None) -> ConfigDict:
    package = _package(kind_and_name(node)[1])
    if homes is not None and package not in homes:
        raise UserError(f"{package} is outside {', '.join(sorted(homes))}")
    return node


def _package(name: str) -> str:
    return name.split(":")[0].split(".")[0]


def detached(value: Any) -> Any:
    """A copy in which no node is shared with another place; `FieldReference`s stay linked."""
    if isinstance(value, ConfigDict):
        copy = ConfigDict()
        for key, item in value.items(preserve_field_references=True):
            copy[key] = detached(item)
        return copy
    if isinstance(value, list | tuple):
        return type(value)(detached(item) for item in value)
    return value


def _holds_node(value: Any) -> bool:
    if isinstance(value, ConfigDict):
        return is_node(value) or any(_holds_node(v) for v in value.values())
    return isinstance(value, list | tuple) and any(map(_holds_node, value))


def build(node: Any, *, packages: Sequence[str] = (), path: str = "config") -> Any:
    """The object that a node describes; groups become dicts, tuples and lists keep their kind.

    `packages` are the user's own, beside scorediff and optax, that names may come from; `path` is
    where the node stands in the config, for messages. Raises UserError, also for a ValueError or
    TypeError out of a constructor, which is how classes refuse their arguments.
    """
    if is_node(node):
        return _build_node(node, packages, path)
    if isinstance(node, Mapping | ConfigDict):
        return {k: build(v, packages=packages, path=f"{path}.{k}") for k, v in node.items()}
    if isinstance(node, list | tuple):
        items = enumerate(node)
        return type(node)(build(v, packages=packages, path=f"{path}[{i}]") for i, v in items)
    return node


def _build_node(node: ConfigDict, packages: Sequence[str], path: str) -> Any:
    kind, name = kind_and_name(node, path)
    target, known = check_node(node, packages=packages, path=path)
    args = {}
    for key in arguments(node):
        args[key] = build(node[key], packages=packages, path=f"{path}.{key}")
        check(f"{path}.{key}", known[key].hint, args[key])
    if kind == BIND:
        same = all(_is_default(known[key], value) for key, value in args.items())
        return target if same else functools.partial(target, **args)
    try:
        return target(**args)
    except UserError as error:
        error.args = (f"{path}: {error}",)
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {name.split(':')[1]}: {' '.join(str(error).split())}") from error


def _is_default(field: Field, value: Any) -> bool:
    same = type(value) is type(field.default) and isinstance(value, SIMPLE)
    return value is field.default or (same and value == field.default)


def arguments(node: Mapping | ConfigDict) -> list[str]:
    """The names of the arguments that a node gives."""
    return [key for key in node if key not in (CALL, BIND)]


def check_node(
    node: ConfigDict, *, packages: Sequence[str] = (), path: str = "config"
) -> tuple[Callable, dict[str, Field]]:
    """Checks one node against its signature, not what is below it; gives target and fields."""
    kind, name = kind_and_name(node, path)
    target = resolve(name, packages=packages, path=path)
    known = fields(target)
    try:
        _check_names(name.split(":")[1], known, arguments(node), complete=kind == CALL)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return target, known


def check_config(value: Any, *, packages: Sequence[str] = (), path: str = "config") -> None:
    """Checks every node of a config as `build` will, without building anything."""
    known = check_node(value, packages=packages, path=path)[1] if is_node(value) else {}
    if isinstance(value, ConfigDict):
        for key, item in value.items():
            if key in known:
                _check_data(f"{path}.{key}", known[key].hint, item)
            check_config(item, packages=packages, path=f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_config(item, packages=packages, path=f"{path}[{index}]")


def to_json(config: ConfigDict) -> str:
    """Canonical text: keys sorted, tuples as {"tuple": [...]}, infinities as {"float": "inf"}.

    Equal configs give equal text, and `from_json` gives back exactly what went in. Raises UserError
    with the path of a NaN or of anything else that is not data.
    """
    return json.dumps(_plain(config, "config"), sort_keys=True, indent=2, allow_nan=False) + "\n"


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, Mapping | ConfigDict):
        plain = {_key(key, path): _plain(item, f"{path}.{key}") for key, item in value.items()}
        if set(plain) in ({"tuple"}, {"float"}):
            raise UserError(f"{path}: a group cannot have {next(iter(plain))!r} as its only field")
        return plain
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{path}: nan is not a value that a config can hold")
    if isinstance(value, float) and math.isinf(value):
        return {"float": "inf" if value > 0 else "-inf"}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise UserError(f"{path}: a config cannot hold a {type(value).__name__}; use spec or bind")


def _key(key: Any, path: str) -> str:
    if not isinstance(key, str) or not key.isidentifier() or key.startswith("__"):
        raise UserError(f"{path}: {key!r} is not the name of a field")
    return key


def from_json(text: str) -> ConfigDict:
    """The locked config that `to_json` wrote. Runs nothing and imports nothing."""
    try:
        config = _from_plain(json.loads(text, object_pairs_hook=_unique), "config")
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a saved config: {error or type(error).__name__}") from None
    if not isinstance(config, ConfigDict):
        raise UserError("not a saved config: it has to be a JSON object")
    return config


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice} is there twice")
    return found


def _from_plain(value: Any, path: str) -> Any:
    if isinstance(value, list):
        return [_from_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):  # json reads NaN, Infinity and 1e999
        raise UserError(f"{path}: {value} is not a value that a config can hold")
    if not isinstance(value, dict):
        return value
    if set(value) == {"tuple"} and isinstance(value["tuple"], list):
        return tuple(_from_plain(value["tuple"], path))
    if set(value) == {"float"} and value["float"] in ("inf", "-inf"):
        return float(value["float"])
    config = ConfigDict()
    for key, item in value.items():
        config[_key(key, path)] = _from_plain(item, f"{path}.{key}")
    return config.lock()


def differences(a: Any, b: Any, *, path: str = "config") -> list[str]:
    """Where two configs differ, as "config.train.steps: 100 != 200", one string a place."""
    same_kind = all(isinstance(v, ConfigDict) for v in (a, b))
    if same_kind and _identity(a) == _identity(b):
        pairs = [(f"{path}.{k}", _get(a, k), _get(b, k)) for k in sorted({*a, *b})]
    elif isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
        pairs = [(f"{path}[{i}]", *both) for i, both in enumerate(zip(a, b, strict=True))]
    else:
        return [] if _same(a, b) else [f"{path}: {_brief(a)} != {_brief(b)}"]
    return [line for where, x, y in pairs for line in differences(x, y, path=where)]


_ABSENT = object()


def _get(config: ConfigDict, key: str) -> Any:
    return config.get(key, _ABSENT)


def _identity(config: ConfigDict) -> tuple[str, str] | None:
    return kind_and_name(config) if is_node(config) else None


def _same(a: Any, b: Any) -> bool:
    both_numbers = all(type(v) in (int, float) for v in (a, b))
    return (both_numbers or type(a) is type(b)) and a == b


def _brief(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    if is_node(value):
        return kind_and_name(value)[1]
    return "a group" if isinstance(value, ConfigDict) else repr(value)
