"""A number and how it came about are one object.

`Result` holds measured numbers together with all that a reader needs to judge or repeat them; there
is no way to print the one without the other. Results are appended to `results.jsonl`, a JSON line
each. This module imports neither JAX nor anything that does, so reading results is quick.
"""

import dataclasses
import hashlib
import json
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorediff.errors import StorageError
from scorediff.training.files import storing

GUIDANCE = "x0 = null + scale (conditional - null); scale 1 is off"
AWAY = "x0 = weak + scale (model - weak); scale 1 is off"
AT_REST = ("classifier_free", "independent", "True")  # rules that need no mention


def hash_json(value: Any) -> str:
    """A short hash of a JSON value that does not depend on the order of its fields."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One quantity measured n times (over seeds): mean, standard deviation (n - 1), range."""

    mean: float
    std: float | None  # None for a single measurement: its spread is unknown, not zero
    min: float
    max: float
    n: int

    def __post_init__(self):
        if self.n < 1 or (self.std is None) != (self.n == 1):
            raise ValueError(f"{self.n} measurements with standard deviation {self.std}")

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        values, n = [float(v) for v in values], len(values)
        mean = math.fsum(values) / n if n else math.nan
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None
        return cls(mean=mean, std=std, min=min(values), max=max(values), n=n)

    def __str__(self) -> str:
        if self.std is None or not 0 < self.std < math.inf:
            return f"{self.mean:.4g}" + ("" if self.std is None else f" ± {self.std:.2g}")
        decimals = 1 - math.floor(math.log10(self.std))  # two digits of the deviation,
        if self.mean and math.isfinite(self.mean):  # but no more than three of the mean
            decimals = min(decimals, 2 - math.floor(math.log10(abs(self.mean))))
        decimals = max(decimals, 0)
        return f"{self.mean:.{decimals}f} ± {self.std:.{decimals}f}"


def spreads(runs: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Numbers by name, measured once a seed, to the spread of each."""
    return {name: Spread.of([run[name] for run in runs]) for name in runs[0]}


@dataclass(frozen=True, kw_only=True)
class Result:
    """Measured numbers with their protocol (DESIGN idea 6)."""

    name: str  # of the config
    config_hash: str
    revision: str | None  # git commit, "+dirty" with uncommitted changes; None outside git
    step: int  # of the checkpoint
    ema: str  # the EMA profile sampled from, "none" for the raw parameters
    solver: str
    solver_args: Mapping[str, Any]
    grid: str  # the time grid in words, such as "karras(rho=7)"
    nfe: float  # network evaluations a sample, as counted: a guided pair is two
    rows: int | None = None  # of the solver's table: calls of the guided denoiser
    guidance_scale: float
    guidance_convention: str = GUIDANCE
    rules: Mapping[str, str] = dataclasses.field(default_factory=dict)  # sampling's other choices
    samples: int  # for each seed
    seeds: tuple[int, ...]
    reference: str  # what the samples are compared with, in words
    reference_hash: str  # of its statistics
    numbers: Mapping[str, Spread]
    floor: Mapping[str, Spread] = dataclasses.field(default_factory=dict)  # real against real

    def __post_init__(self):
        for field in ("step", "rows", "nfe"):
            if (getattr(self, field) or 0) < 0:
                raise ValueError(f"{field} must not be negative, got {getattr(self, field)}")
        if self.samples < 1 or not self.seeds:
            raise ValueError(f"nothing measured: {self.samples} samples, seeds {self.seeds}")
        object.__setattr__(self, "seeds", tuple(self.seeds))

    def protocol(self) -> str:
        """How the numbers came about, in one line."""
        arguments = ", ".join(f"{name}={value}" for name, value in self.solver_args.items())
        scale = "off" if self.guidance_scale == 1 else f"scale {self.guidance_scale:g}"
        return (
            f"{self.solver}({arguments}) on grid {self.grid}, {self._spent()}, guidance {scale} "
            f"[{self.guidance_convention}]{self._ruled()}, "
            f"{self.samples} samples x seeds {list(self.seeds)}, "
            f"step {self.step}, EMA {self.ema}, against {self.reference} "
            f"[{self.reference_hash}], config {self.name} [{self.config_hash}], "
            f"code {self.revision or 'without git'}"
        )

    def _ruled(self) -> str:
        """The rules that are not at rest, as text."""
        said = {k: v for k, v in self.rules.items() if v not in ("None", *AT_REST)}
        return "".join(f", {name} {value}" for name, value in said.items())

    def _spent(self) -> str:
        rows = "" if self.rows in (None, self.nfe) else f" in {self.rows} solver rows"
        return f"{self.nfe:g} NFE{rows}"

    def __str__(self) -> str:
        def shown(name: str) -> str:
            beside = f" (floor {self.floor[name]})" if name in self.floor else ""
            return f"{name} {self.numbers[name]}{beside}"

        return ", ".join(map(shown, self.numbers)) + " | " + self.protocol()

    def to_json(self) -> str:
        """One line of JSON; numbers that are not finite become null."""
        return json.dumps(_finite(dataclasses.asdict(self)), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Result":
        """The inverse of `to_json`; ValueError on anything else."""
        try:
            fields = json.loads(line)
            for name in ("numbers", "floor"):
                found = fields[name].items()
                fields[name] = {k: Spread(**_infinite(spread)) for k, spread in found}
            return cls(**fields)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a result: {error}") from None


def _finite(value: Any) -> Any:
    """JSON has no NaN; a measurement that failed must still be kept."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _infinite(spread: Mapping[str, Any]) -> dict[str, Any]:
    missing = {name: math.nan for name in ("mean", "min", "max") if spread[name] is None}
    if spread["std"] is None and spread["n"] > 1:
        missing["std"] = math.nan
    return {**spread, **missing}


def append_result(path: str | os.PathLike, result: Result) -> None:
    """Add one line to `path`, whole or not at all: a failed write is taken back.

    Raises:
        StorageError: if the disk refuses; earlier lines are untouched.
    """
    path = Path(path)
    with storing(f"add the result to {path}"), path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        torn = size > 0 and file.read(1) != b"\n"  # a crash in an earlier append
        data = (("\n" if torn else "") + result.to_json() + "\n").encode()
        try:
            if file.write(data) != len(data):
                raise OSError("the disk is full")
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def read_results(path: str | os.PathLike) -> list[Result]:
    """All results of a file, oldest first; [] if there is no file.

    A line cut off by a crash is left out when another follows it or when it is the last one.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(Result.from_json(line))
        except json.JSONDecodeError:
            continue  # torn
        except ValueError as error:
            raise StorageError(f"{path}, line {number}: {error}") from None
    return found


def git_revision(directory: str | os.PathLike | None = None) -> str | None:
    """The commit of the source checkout, with "+dirty" after it if files differ from it.

    None where the package is not a tracked file of a git checkout, as after `pip install`.
    """
    file = Path(__file__).resolve() if directory is None else Path(directory).resolve()
    folder = file.parent if directory is None else file

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        if directory is None:
            git("ls-files", "--error-unmatch", str(file))
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None
