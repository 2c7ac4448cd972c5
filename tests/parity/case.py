"""A recorded case, what a replay of it says, and the checks that every class of networks gets."""

import json
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from scorediff.interop import files, formats
from scorediff.interop.formats import Published

Arrays = dict[str, np.ndarray]


class Result(NamedTuple):
    """One check: `error` is relative to the largest stored value where the check is of numbers."""

    fixture: str
    case: str
    check: str  # "float32", "float64", "round trip", "ids"
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # a NaN fails


class Case(NamedTuple):
    """One call: its arguments as the file has them (torch layout), and what it should give."""

    name: str
    call: str
    inputs: Arrays
    kwargs: Mapping[str, Any]
    outputs: Mapping[str, Mapping[str, Any]]  # name -> key, absmax, atol, atol64
    optional: bool


class Fixture(NamedTuple):
    """A folder of recorded cases of one model."""

    name: str
    folder: Path
    meta: Mapping[str, Any]
    arrays: Arrays

    @property
    def cases(self) -> list[Case]:
        def inputs(case):
            return {arg: self.arrays[entry["key"]] for arg, entry in case["inputs"].items()}

        return [
            Case(c["name"], c["call"], inputs(c), c["kwargs"], c["outputs"], c.get("optional"))
            for c in self.meta["cases"]
        ]


def fixture(folder: Path, root: Path) -> Fixture:
    """The fixture of a folder that has meta.json and io.npz."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    with np.load(folder / "io.npz", allow_pickle=False) as file:
        arrays = dict(file)
    return Fixture(str(folder.relative_to(root)), folder, meta, arrays)


Outputs = Callable[[Published, Case], Arrays]  # a model's answers in the file's layout
Load = Callable[[Fixture], Published]
Runner = Callable[[Fixture], Iterator[Result]]


def from_hub_folder(fixture: Fixture) -> Published:
    """The model of a folder in the hub's layout."""
    variants = ("fp16",) if list(fixture.folder.glob("*.fp16.safetensors")) else (None,)
    return formats.load(fixture.folder, variant=variants[0])


def compared(fixture: Fixture, case: Case, got: Mapping[str, Any], dtype: str) -> Result:
    """The worst output of a case against its tolerance, both over the largest stored value."""
    tolerance = {"float32": "atol", "float64": "atol64"}[dtype]
    worst = (0.0, 0.0, np.inf)
    for name, entry in case.outputs.items():
        want = fixture.arrays[entry["key"]]
        answer = np.asarray(got[name], np.float64)
        if answer.shape != want.shape:
            raise AssertionError(f"{fixture.name} {case.name} {name}: {answer.shape}, {want.shape}")
        error = np.abs(answer - want).max()
        error = np.inf if np.isnan(error) else error
        allowed = entry[tolerance]
        worst = max(worst, (error / allowed, error / entry["absmax"], allowed / entry["absmax"]))
    return Result(fixture.name, case.name, dtype, worst[1], worst[2])


def cast(case: Case, dtype: str) -> Case:
    """The case with its floating-point inputs in `dtype`; whole numbers stay."""
    inputs = {
        name: a.astype(dtype) if np.issubdtype(a.dtype, np.floating) else a
        for name, a in case.inputs.items()
    }
    return case._replace(inputs=inputs)


def forward(outputs: Outputs, load: Load = from_hub_folder) -> Runner:
    """The usual checks of a network: every case in float32 and float64, and the round trip."""

    def run(fixture: Fixture) -> Iterator[Result]:
        model = load(fixture)
        for dtype in ("float32", "float64"):
            with jax.enable_x64(dtype == "float64"):
                cast_model = model.with_dtype(dtype)
                for case in fixture.cases:
                    got = outputs(cast_model, cast(case, dtype))
                    yield compared(fixture, case, got, dtype)
        yield round_trip(fixture, model)

    return run


def round_trip(fixture: Fixture, model: Published, names: Arrays | None = None) -> Result:
    """The share of the file's tensors that do not come back bit for bit, and of those too many.

    names: the file's tensors where they are not in a hub folder.
    """
    theirs = names
    if theirs is None:
        variant = "fp16" if list(fixture.folder.glob("*.fp16.safetensors")) else None
        theirs = files.read_folder(fixture.folder, variant)
    theirs = dict(model.format.modern(theirs))
    ours = formats.to_tensors(model.format, model.network, model.params)
    buffers = model.format.buffers(model.network)
    ignored = [n for n in theirs if n not in ours]
    odd = [n for n in ignored if not _ignored(n, model)]
    odd += [n for n in ours if n not in theirs and n not in buffers]
    odd += [
        n
        for n in ours
        if n in theirs
        and n not in buffers
        and (ours[n].dtype != theirs[n].dtype or ours[n].tobytes() != theirs[n].tobytes())
    ]
    if odd:
        print(f"{fixture.name}: not bit for bit: {', '.join(odd[:6])}")
    return Result(fixture.name, "-", "round trip", float(len(odd)), 0.0)


def _ignored(name: str, model: Published) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in model.format.ignored)


def answer(model: Published, *args: Any, method: str | None = None, **kwargs: Any) -> Any:
    """The network's answer, compiled: (x, noise, cond) as it takes them."""
    apply = jax.jit(lambda p, a: model.network.apply({"params": p}, *a, method=method, **kwargs))
    return apply(model.params, args)


def nhwc(x: np.ndarray) -> np.ndarray:
    """[b, c, *space] -> [b, *space, c]."""
    return np.moveaxis(x, 1, -1)


def nchw(x: Any) -> np.ndarray:
    """[b, *space, c] -> [b, c, *space]."""
    return np.moveaxis(np.asarray(x), -1, 1)
