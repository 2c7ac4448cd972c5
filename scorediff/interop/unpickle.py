"""A reader of pickles that runs nothing: the opcodes are walked, and calls are those of a table.

A pickle is a program for a stack machine, and its power to do harm is one thing: it names any
function of any module and calls it. Here a name is looked up in a table of plain constructions
(`interop.plain`, or a reader's own); a name that is not there is refused, and no module is ever
imported for the sake of a file. `pickletools` splits the bytes into opcodes and does nothing else.

A damaged or hostile file ends in a UserError. What calls may make is bounded by the file's size, so
that a small file cannot ask for much memory; dictionary keys are plain, so that hashing one cannot
recurse without end.
"""

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from scorediff.errors import UserError

# What walking a damaged pickle can run into.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,  # of which UnicodeError is one
    struct.error,
)
MAX_OPCODES = 10_000_000  # a thousand times those of a large model's checkpoint
SLACK = 1 << 24  # bytes that calls may make beyond GROWTH times the file's size
GROWTH = 4
MARK = object()


@dataclass(frozen=True)
class Builder:
    """A function or class that a pickle may call: its name, and what is done instead."""

    name: str
    build: Callable


@dataclass(frozen=True)
class Name:
    """A function or class that may stand in a pickle as data, and is never called."""

    name: str


class Record(dict):
    """An instance of a class that is not here: its attributes, and the class's name as `of`."""

    def __init__(self, of: str):
        super().__init__()
        self.of = of

    def set_state(self, state: Any) -> None:
        """Attributes from an instance's state: a mapping, or a pair of it and of slots."""
        for part in state if isinstance(state, tuple) else (state,):
            if not isinstance(part, dict | None):
                raise TypeError(f"attributes from a {type(part).__name__}")
            self.update(part or {})


Known = Callable[[str], Any]  # dotted name -> Builder, plain data, or None where it is unknown


class Machine:
    """Walks one pickle; `run` gives what it holds.

    known:      what a dotted name stands for.
    persistent: what an object kept outside the pickle stands for, from its id.
    budget:     bytes that calls may make.
    """

    def __init__(
        self, known: Known, *, persistent: Callable | None, budget: int, where: str
    ) -> None:
        self.known, self.persistent, self.where = known, persistent, where
        self.budget = budget
        self.stack: list = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: Any) -> Any:
        """The object of the pickle that starts at the stream's position, which moves behind it."""
        try:
            for opcode, argument, _ in islice(pickletools.genops(stream), MAX_OPCODES):
                if opcode.name == "STOP":
                    return self.pop()
                self._step(opcode.name, argument)
        except DAMAGE as error:
            what = f"{type(error).__name__}: {str(error)[:200]}"
            raise UserError(f"{self.where} is damaged at byte {stream.tell()} ({what})") from None
        raise UserError(f"{self.where} is no checkpoint: its pickle has over {MAX_OPCODES} steps")

    def _step(self, opcode: str, argument: Any) -> None:
        if opcode in LITERALS:
            self.stack.append(argument)
        elif opcode in STEPS:
            STEPS[opcode](self, argument)
        else:
            raise UserError(f"{self.where} uses the pickle opcode {opcode}, which is not read here")

    # Pieces of the stack

    def pop(self, kind: type | tuple[type, ...] = object) -> Any:
        """The top of the stack, which must be of a kind."""
        value = self.stack.pop()
        if value is MARK or not isinstance(value, kind):
            raise TypeError(f"{type(value).__name__} in the wrong place")
        return value

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"{type(self.stack[-1]).__name__} in the wrong place")
        return self.stack[-1]

    def items(self) -> list:
        """Everything above the last mark."""
        for i in reversed(range(len(self.stack))):
            if self.stack[i] is MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise ValueError("no mark")

    # Names and calls

    def find(self, name: str) -> Any:
        """What a name stands for; an unknown one is refused."""
        found = self.known(name)
        if found is None:
            raise UserError(
                f"{self.where} refers to {name}, which is neither a tensor nor plain data: files "
                f"are read here without running code. Where you trust it, load it with the library "
                f"that wrote it and save its tensors as safetensors"
            )
        return found

    def call(self, function: Any, arguments: tuple) -> Any:
        """What a builder makes, within the budget."""
        if not isinstance(function, Builder):
            raise TypeError(f"{getattr(function, 'name', type(function).__name__)} is called")
        made = function.build(*arguments)
        self.spend(made, *arguments)
        return made

    def spend(self, *made: Any) -> None:
        """Counts what a call has read and made against the budget."""
        self.budget -= sum(map(_weight, made))
        if self.budget < 0:
            raise UserError(f"{self.where} asks for far more memory than a file of its size holds")

    def set_state(self) -> None:
        """The state goes to the object under it; a plain dict's attributes are no data."""
        state = self.pop()
        target = self.stack[-1]
        if hasattr(target, "set_state"):
            target.set_state(state)
        elif isinstance(target, np.ndarray):
            set_array(target, state)
            self.spend(target)
        elif type(target) is not dict:
            raise TypeError(f"{type(target).__name__} with a state")

    def set_items(self, items: list) -> None:
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[plain_key(key)] = value


def _weight(value: Any) -> int:
    """About how many bytes a value holds by itself."""
    if isinstance(value, np.ndarray):
        return 64 if value.base is not None else 64 + value.nbytes
    if isinstance(value, str | bytes | bytearray):
        return 64 + len(value)
    return 64 + 64 * len(value) if isinstance(value, dict | list | set | tuple) else 64


def plain_key(key: Any) -> Any:
    """A key of a dictionary or member of a set: text, bytes, a name or a number of usual size."""
    if isinstance(key, str | bytes | bool | Name | None) or (
        isinstance(key, int) and abs(key) < 1 << 60
    ):
        return key
    if isinstance(key, Builder):
        return Name(key.name)
    raise TypeError(f"a key of type {type(key).__name__}")


def set_array(array: np.ndarray, state: Any) -> None:
    """An array's shape, type and bytes, in place, as NumPy's own pickles give them."""
    if array.size or array.base is not None:
        raise ValueError("an array that has its numbers already")
    _, shape, dtype, fortran, data = state
    dtype = plain_dtype(dtype)
    data = data.encode("latin1") if isinstance(data, str) else bytes(data)
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    array.__setstate__((1, values.shape, dtype, bool(fortran), data))


def plain_dtype(dtype: Any) -> np.dtype:
    """A NumPy type of numbers or text; objects are refused."""
    dtype = np.dtype(getattr(dtype, "dtype", dtype))
    if dtype.hasobject or dtype.kind not in "biufcSU":
        raise TypeError(f"an array of type {dtype}")
    return dtype


NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
TEXT = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
BYTES = {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
LITERALS = NUMBERS | TEXT | BYTES | {"BYTEARRAY8"}


def _push(make: Callable[[], Any]) -> Callable:
    return lambda m, argument: m.stack.append(make())


def _gather(make: Callable[[list], Any]) -> Callable:
    """Everything above the mark becomes one value."""
    return lambda m, argument: m.stack.append(make(m.items()))


def _tuple_of(count: int) -> Callable:
    def step(m: Machine, argument: Any) -> None:
        m.stack.append(tuple(reversed([m.pop() for _ in range(count)])))

    return step


def _dict(items: list) -> dict:
    return {plain_key(k): v for k, v in zip(items[::2], items[1::2], strict=True)}


def _append(m: Machine, argument: Any) -> None:
    value = m.pop()
    m.top(list).append(value)


def _appends(m: Machine, argument: Any) -> None:
    items = m.items()
    m.top(list).extend(items)


def _add_items(m: Machine, argument: Any) -> None:
    items = m.items()
    m.top(set).update(map(plain_key, items))


def _set_item(m: Machine, argument: Any) -> None:
    value, key = m.pop(), m.pop()
    m.set_items([key, value])


def _memoize(m: Machine, argument: Any) -> None:
    m.memo[len(m.memo) if argument is None else argument] = m.stack[-1]


def _global(m: Machine, argument: str) -> None:
    m.stack.append(m.find(".".join(argument.split(" ", 1))))


def _stack_global(m: Machine, argument: Any) -> None:
    name, module = m.pop(str), m.pop(str)
    m.stack.append(m.find(f"{module}.{name}"))


def _reduce(m: Machine, argument: Any) -> None:
    arguments, function = m.pop(tuple), m.pop()
    m.stack.append(m.call(function, arguments))


def _new_object_with_names(m: Machine, argument: Any) -> None:
    named = m.pop(dict)
    if named:
        raise ValueError(f"a constructor with the named arguments {', '.join(map(str, named))}")
    _reduce(m, argument)


def _persistent(m: Machine, argument: Any) -> None:
    if m.persistent is None:
        raise ValueError("an object that is kept outside the pickle")
    m.stack.append(m.persistent(m.pop()))


STEPS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": lambda m, argument: None,
    "FRAME": lambda m, argument: None,
    "MARK": _push(lambda: MARK),
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    "EMPTY_LIST": _push(list),
    "EMPTY_DICT": _push(dict),
    "EMPTY_TUPLE": _push(tuple),
    "EMPTY_SET": _push(set),
    "LIST": _gather(list),
    "TUPLE": _gather(tuple),
    "DICT": _gather(_dict),
    "FROZENSET": _gather(lambda items: frozenset(map(plain_key, items))),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "POP": lambda m, argument: m.stack.pop(),
    "POP_MARK": lambda m, argument: m.items(),
    "DUP": lambda m, argument: m.stack.append(m.stack[-1]),
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _add_items,
    "SETITEM": _set_item,
    "SETITEMS": lambda m, argument: m.set_items(m.items()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _memoize),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"), lambda m, argument: m.stack.append(m.memo[argument])
    ),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_object_with_names,
    "BUILD": lambda m, argument: m.set_state(),
    "BINPERSID": _persistent,
}


def load(
    stream: Any, known: Known, *, persistent: Callable | None = None, size: int, where: str
) -> Any:
    """The object of one pickle in a binary stream (`io.BytesIO` or a memory map).

    size: of the file in bytes, which bounds what the pickle's calls may make.
    Raises UserError for names beyond `known`, for damage and for demands beyond the file's size.
    """
    machine = Machine(known, persistent=persistent, budget=GROWTH * size + SLACK, where=where)
    return machine.run(stream)
