"""What a class or function can be given by name: the fields of a config node, and their types.

The signature is the schema. `fields` reads it; `accepts`, `coerce` and `describe` judge a value by
an annotation. What a config can hold is judged strictly (int, float, bool, str, None, tuple, list,
Literal, unions of them, classes); an annotation that says less than that accepts anything.
"""

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from scorediff.errors import UserError

MISSING = inspect.Parameter.empty
SIMPLE = (int, float, bool, str, type(None), tuple, list)
_ARRAY_PACKAGES = ("jax", "jaxlib", "numpy")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One named argument: its annotation (`Any` where there is none) and default, or `MISSING`."""

    hint: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is MISSING


def fields(target: Callable) -> dict[str, Field]:
    """The named arguments of a class or function, without Linen's own `parent` and `name`."""
    hints, hidden = _hints(target), _hidden(target)
    return {
        name: Field(hint=hints.get(name, Any), default=_default(target, parameter))
        for name, parameter in _parameters(target).items()
        if parameter.kind in _NAMED and name not in hidden
    }


def unnamed(target: Callable) -> list[str]:
    """Arguments that cannot be given by name (`*args` and positional-only ones)."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    parameters = _parameters(target).values()
    return [str(p) for p in parameters if p.kind in kinds and p.default is MISSING]


def _parameters(target: Callable) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except (ValueError, TypeError):  # written in C
        raise UserError(f"{target!r} does not say which arguments it takes") from None


def _hints(target: Callable) -> dict[str, Any]:
    is_plain_class = inspect.isclass(target) and not dataclasses.is_dataclass(target)
    source = target.__init__ if is_plain_class else target
    try:
        return typing.get_type_hints(source)
    except (NameError, TypeError, AttributeError):  # names that exist for the type checker only
        raw = getattr(source, "__annotations__", {})
        return {name: hint for name, hint in raw.items() if not isinstance(hint, str)}


def _hidden(target: Callable) -> tuple[str, ...]:
    bases = getattr(target, "__mro__", ())
    linen = any((b.__module__, b.__name__) == ("flax.linen.module", "Module") for b in bases)
    return ("parent", "name") if linen else ()


def _default(target: Callable, parameter: inspect.Parameter) -> Any:
    """The default; what a dataclass's factory makes stands in the place of the factory."""
    for field in dataclasses.fields(target) if dataclasses.is_dataclass(target) else ():
        if field.name == parameter.name and field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
    return parameter.default


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation: X | None -> (X, NoneType)."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return tuple(m for part in typing.get_args(hint) for m in members(part))
    if origin is typing.Annotated:
        return members(typing.get_args(hint)[0])
    return (type(None),) if hint is None else (hint,)


def accepts(hint: Any, value: Any) -> bool:
    """Whether a finished value (not a node) fits an annotation. Unknown annotations accept all."""
    return any(_accepts_one(member, value) for member in members(hint))


def _accepts_one(hint: Any, value: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    if origin in (int, float, complex):
        wider = {int: int, float: (int, float), complex: (int, float, complex)}[origin]
        return isinstance(value, wider) and not isinstance(value, bool)
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in typing.get_args(hint))
    if origin is Callable:
        return callable(value)
    if origin in (tuple, list, Sequence):
        return _accepts_sequence(origin, typing.get_args(hint), value)
    if says_nothing(origin):
        return True
    if _is_array(origin):
        return isinstance(value, origin) or not isinstance(value, str)  # whatever becomes an array
    return isinstance(value, origin)


def says_nothing(hint: Any) -> bool:
    """Any, object, a TypeVar, a protocol: an annotation that nothing could be checked against."""
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal:
        return False
    protocol = getattr(origin, "_is_protocol", False)
    return not inspect.isclass(origin) or protocol or origin in (object, Any)


def _accepts_sequence(kind: type, inner: tuple, value: Any) -> bool:
    if not isinstance(value, kind) or isinstance(value, str):
        return False
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        return len(inner) == len(value) and all(map(accepts, inner, value))
    return all(accepts(inner[0], v) for v in value) if inner else True


def coerce(hint: Any, value: Any) -> Any:
    """An int where only a float is meant becomes a float, so that equal configs are equal text."""
    numbers = [m for m in members(hint) if m in (int, float, complex)]
    if type(value) is int and numbers == [float]:
        return float(value)
    inner = typing.get_args(hint)
    if isinstance(value, tuple) and typing.get_origin(hint) is tuple and inner:
        inner = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(map(coerce, inner, value))
    return value


def admits_node(hint: Any) -> bool:
    """Whether something other than numbers, text, None and a Literal can stand there."""
    return any(not _is_data(m) for m in members(hint))


def asks_for_node(hint: Any) -> bool:
    """Whether a class, protocol or function is asked for: no data, no array, no sequence."""
    sequences = (tuple, list, Sequence)
    return any(
        not (_is_data(m) or _is_array(m) or m is Any or (typing.get_origin(m) or m) in sequences)
        for m in members(hint)
    )


def _is_data(hint: Any) -> bool:
    simple = (int, float, bool, complex, str, type(None))
    return hint in simple or typing.get_origin(hint) is typing.Literal


def _is_array(hint: Any) -> bool:
    return inspect.isclass(hint) and hint.__module__.split(".")[0] in _ARRAY_PACKAGES


def hint_of(value: Any) -> Any:
    """The annotation that a present value stands for: 3 -> int, (1, 2) -> tuple[int, ...]."""
    if isinstance(value, tuple | list) and value:
        inner = typing.Union[tuple(hint_of(v) for v in value)]  # noqa: UP007 (made at run time)
        return tuple[inner, ...] if isinstance(value, tuple) else list[inner]
    return type(value) if isinstance(value, SIMPLE) and value is not None else Any


def describe(hint: Any) -> str:
    """The annotation in words: 'int or None', 'tuple of int', "'sum' or 'mean'"."""
    return " or ".join(dict.fromkeys(_describe_one(m) for m in members(hint)))


def _describe_one(hint: Any) -> str:
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is type(None):
        return "None"
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if origin is Callable:
        return "function"
    if origin in (tuple, list, Sequence) and inner:
        several = [describe(h) for h in inner if h is not Ellipsis]
        word = origin.__name__.lower()
        return f"{word} of {several[0]}" if len(set(several)) == 1 else f"{word} {several}"
    if _is_array(origin):
        return "array"
    return getattr(origin, "__name__", str(origin))


def check(where: str, hint: Any, value: Any) -> None:
    """Raises the one-line error for a value that does not fit."""
    if not accepts(hint, value):
        raise UserError(f"{where}: expected {describe(hint)}, got {_shown(value)}")


def _shown(value: Any) -> str:
    data = isinstance(value, (*SIMPLE, Mapping))
    return repr(value) if data else getattr(value, "__name__", type(value).__name__)


def nearest(name: str, choices: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The choice a mistyped name most likely meant, or None; a cutoff of 1 asks for equality."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=cutoff)
    return close[0] if close else None


def hint_at_nearest(name: str, choices: Iterable[str]) -> str:
    """'; did you mean beta_max?', or what there is, or nothing where there is nothing."""
    choices = list(choices)
    close = nearest(name, choices)
    if close:
        return f"; did you mean {close}?"
    return f"; there is {', '.join(choices[:12])}" if choices else ""
