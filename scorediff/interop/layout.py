"""Tables of names: how a file calls a network's parameters, read in both directions.

A table is a list of `Entry`: one module (or one bare parameter) of ours, the name or names that the
file has for it, and the form in which the file keeps its numbers. Reading and writing walk the
same table, and every parameter of ours and every tensor of the file must be met exactly once: a
checkpoint that lacks something or has more than the network is another network.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from scorediff.errors import UserError
from scorediff.types import Params

Tensors = Mapping[str, np.ndarray]  # name in the file -> array in the file's own layout
Shapes = Mapping[str, tuple[int, ...]]  # our path, "down0_0/conv_in/kernel" -> shape
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
SHOWN = 4  # names in a message


class Form(NamedTuple):
    """How a file keeps the kernel of one module: two functions, each the inverse of the other."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


def _inputs_last(a: np.ndarray) -> np.ndarray:
    """(out, in, *window) -> (*window, in, out)."""
    return a.transpose(*range(2, a.ndim), 1, 0)


def _outputs_first(a: np.ndarray) -> np.ndarray:
    """(*window, in, out) -> (out, in, *window)."""
    return a.transpose(a.ndim - 1, a.ndim - 2, *range(a.ndim - 2))


def pointwise(rank: int) -> Form:
    """A matrix that the file keeps as a convolution with a window of 1 in each of `rank` axes."""
    return Form(
        lambda a: a.reshape(a.shape[:2]).T,
        lambda a: a.T.reshape(*a.T.shape, *([1] * rank)),
    )


TORCH = Form(_inputs_last, _outputs_first)  # linear maps and convolutions of every rank
SAME = Form(lambda a: a, lambda a: a)  # flax's own layout
POINTWISE = pointwise(2)


class Entry(NamedTuple):
    """One module of ours, or one bare parameter, and what the file calls it.

    ours:   path of the module ("down0_0_residual/conv_in") or of a parameter ("cls_token").
    theirs: its name in the file without ".weight" and ".bias" (of a bare parameter: the whole
            name). Several names are parts that ours holds side by side along its last axis. A
            name with "{}" is one layer of many, which ours keeps stacked on axis 0.
    form:   of the kernel, or of the bare parameter; biases, norms and tables are the same on both
            sides unless `bias` says otherwise.
    leaves: what the file calls our leaves.
    first:  number of the first layer in "{}".
    """

    ours: str
    theirs: str | tuple[str, ...]
    form: Form = TORCH
    bias: Form = SAME
    leaves: Mapping[str, str] = LEAVES
    first: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


def within(ours: str, theirs: str, entries: Iterable[Entry]) -> list[Entry]:
    """The table of a block, for the place where that block sits: both sides get their prefix."""
    return [
        e._replace(ours=f"{ours}/{e.ours}", theirs=tuple(f"{theirs}.{name}" for name in e.names))
        for e in entries
    ]


class Link(NamedTuple):
    """One parameter of ours: the tensors that it is made of."""

    names: tuple[tuple[str, ...], ...]  # one row a stacked layer, or one row; one column a part
    form: Form
    stacked: bool

    def read(self, tensors: Tensors) -> np.ndarray:
        """Our array from the file's; ValueError where parts or layers are of unequal shapes."""
        layers = []
        for row in self.names:
            parts = [self.form.read(tensors[name]) for name in row]
            if len({part.shape for part in parts}) > 1:
                raise ValueError("parts of unequal shapes")
            layers.append(np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0])
        return np.stack(layers) if self.stacked else layers[0]

    def write(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """The file's arrays from ours."""
        layers = value if self.stacked else [value]
        return {
            name: np.ascontiguousarray(self.form.write(part))
            for row, layer in zip(self.names, layers, strict=True)
            for name, part in zip(row, np.split(layer, len(row), axis=-1), strict=True)
        }


def shapes_of(params: Params) -> Shapes:
    """Our parameters (arrays, or what `jax.eval_shape` gives) as path -> shape."""
    return {path: tuple(leaf.shape) for path, leaf in _flat(params).items()}


def links(entries: Sequence[Entry], shapes: Shapes) -> dict[str, Link]:
    """The link of each of our parameters; an entry whose module this network lacks is passed over.

    A parameter without an entry, or with two, is a mistake of the table: ValueError.
    """
    by_path: dict[str, Entry] = {}
    for entry in entries:
        if by_path.setdefault(entry.ours, entry) is not entry:
            raise ValueError(f"the table has {entry.ours} twice")
    found = {path: _link(path, shape, by_path) for path, shape in shapes.items()}
    lost = [path for path, link in found.items() if link is None]
    if lost:
        raise ValueError(f"the table has no entry for {', '.join(lost[:SHOWN])}")
    return found


def _link(path: str, shape: tuple[int, ...], entries: Mapping[str, Entry]) -> Link | None:
    module, _, leaf = path.rpartition("/")
    if path in entries:
        entry = entries[path]
        names, form = entry.names, entry.form
    elif module in entries and leaf in entries[module].leaves:
        entry = entries[module]
        names = tuple(f"{name}.{entry.leaves[leaf]}" for name in entry.names)
        form = entry.form if leaf == "kernel" else entry.bias if leaf == "bias" else SAME
    else:
        return None
    stacked = "{}" in names[0]
    layers = range(entry.first, entry.first + (shape[0] if stacked else 1))
    return Link(tuple(tuple(n.replace("{}", str(i)) for n in names) for i in layers), form, stacked)


def read(
    entries: Sequence[Entry],
    shapes: Shapes,
    tensors: Tensors,
    *,
    ignored: Sequence[str] = (),
    where: str = "the checkpoint",
) -> Params:
    """Our parameters from a file's tensors, in the file's number type.

    shapes:  of the network that the file's config describes (`shapes_of`).
    ignored: patterns (`*`) of tensors that are no parameters.
    Raises UserError with the first names and shapes where the two do not fit.
    """
    table = links(entries, shapes)
    wanted = {name for link in table.values() for row in link.names for name in row}
    extra = [
        name
        for name in tensors
        if name not in wanted and not any(fnmatch.fnmatchcase(name, p) for p in ignored)
    ]
    _refuse(where, "lacks", sorted(wanted - set(tensors)), tensors)
    _refuse(where, "has beyond the network of its config", sorted(extra), tensors)
    params = {}
    for path, link in table.items():
        params[path] = _checked(path, link, shapes[path], tensors, where)
    return traverse_util.unflatten_dict(params, sep="/")


def _refuse(where: str, what: str, names: Sequence[str], tensors: Tensors) -> None:
    if names:
        shown = [f"{n} {tensors[n].shape}" if n in tensors else n for n in names[:SHOWN]]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise UserError(f"{where} {what}: {', '.join(shown)}{more}")


def _checked(path: str, link: Link, shape: tuple[int, ...], tensors: Tensors, where: str):
    first = link.names[0][0]
    theirs = tensors[first].shape
    try:
        value = link.read(tensors)
    except ValueError:  # a transpose that the number of axes does not allow, or unequal parts
        value = None
    if not jnp.issubdtype(tensors[first].dtype, jnp.floating):
        raise UserError(f"{where}: {first} holds {tensors[first].dtype}, not real numbers")
    if value is None or value.shape != shape:
        raise UserError(
            f"{where}: {first} of shape {theirs} does not fit {path}, which has {shape} here"
        )
    return np.ascontiguousarray(value)


def write(entries: Sequence[Entry], params: Params) -> dict[str, np.ndarray]:
    """The file's tensors from our parameters: the inverse of `read`."""
    flat = {path: np.asarray(leaf) for path, leaf in _flat(params).items()}
    table = links(entries, {path: leaf.shape for path, leaf in flat.items()})
    return {n: a for path, link in table.items() for n, a in link.write(flat[path]).items()}


def _flat(params: Params) -> dict[str, jax.Array]:
    return traverse_util.flatten_dict(params, sep="/")
