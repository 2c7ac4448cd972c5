"""Replay every run of a folder: python -m tests.solver_vectors DIR [--only FAMILY]

Prints, per family and sampler, the runs, the worst relative difference and the NFE mismatches;
the last line is `N passed, N failed`. Exits with 1 if any failed.
"""

import argparse
import importlib
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import jax
import numpy as np

from tests.solver_vectors.replay import TOLERANCE, Recorded, Replayed, difference, read

FAMILIES = (
    "dpm_solver",
    "unipc",
    "k_diffusion",
    "edm",
    "guided_diffusion",
    "flow",
    "diffusers",
    "score_sde",
)
# The official code computes exp(small) - 1 there, which cancels (README of the vectors, section 8).
LOOSE = {"discretization": "edm", "schedule": "vp"}


def sampler_of(run: dict) -> str:
    """What a run is listed under."""
    names = ("scheduler", "lib", "sde", "variant", "alg", "method", "predictor", "sampler", "kind")
    return " ".join(str(run[name]) for name in names if name in run)


def tolerance(run: dict) -> float:
    return 1e-6 if LOOSE.items() <= run.get("kw", {}).items() else TOLERANCE


def attempt(module: ModuleType, run: dict, file: Recorded) -> Replayed:
    """Our result; NaN, said in one line, where a run cannot be replayed at all."""
    try:
        return module.replay(run, file)
    except Exception as error:  # one odd run must not hide the others
        print(f"{file.name}: {sampler_of(run)} {run['row']}: {type(error).__name__}: {error}")
        return Replayed(np.full_like(file.final(run), np.nan), -1)


def check(family: str, folder: Path) -> tuple[int, int]:
    """Replay one family; returns how many runs passed and failed."""
    module, file = importlib.import_module(f"tests.solver_vectors.{family}"), read(folder, family)
    rows = defaultdict(lambda: [0, 0.0, 0, 0])  # runs, worst difference, NFE mismatches, failures
    for run in file.meta["runs"]:
        ours = attempt(module, run, file)
        worst = difference(ours.x, file.final(run))
        row = rows[sampler_of(run)]
        wrong_nfe = ours.nfe != run["nfe"]
        row[0] += 1
        row[1] = max(row[1], worst)
        row[2] += wrong_nfe
        row[3] += wrong_nfe or not worst <= tolerance(run)
    for name, (runs, worst, nfe, failed) in sorted(rows.items()):
        mark = "" if not failed else f"  {failed} FAILED"
        print(f"{family:17s} {name:58s} {runs:5d} runs  worst {worst:8.1e}  NFE {nfe}{mark}")
    failed = sum(row[3] for row in rows.values())
    return len(file.meta["runs"]) - failed, failed


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=FAMILIES, help="one family")
    args = parser.parse_args(argv)
    present = [f for f in FAMILIES if (args.folder / f"{f}.npz").exists()]
    if not present or not (args.folder / "testbed.npz").exists():
        print(f"error: {args.folder} has no recorded runs (testbed.npz and {FAMILIES[0]}.npz, ...)")
        return 2
    with jax.enable_x64(True):
        counts = [check(f, args.folder) for f in present if args.only in (None, f)]
    passed, failed = (sum(column) for column in zip(*counts, strict=True))
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
