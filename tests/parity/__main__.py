"""python -m tests.parity DIR [--only NAME]: every recorded case of a folder, passed or failed."""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the tolerances are those of a CPU

import jax

from tests.parity.replay import not_covered, replay

jax.config.update("jax_disable_most_optimizations", True)  # tiny networks: compiling is the cost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="fixtures whose name contains this")
    args = parser.parse_args()
    if not args.folder.is_dir():
        print(f"error: {args.folder} is not a folder")
        return 2
    passed = failed = 0
    for r in replay(args.folder, args.only):
        verdict = "ok  " if r.passed else "FAIL"
        numbers = f"error {r.error:.1e} of {r.tolerance:.1e}"
        print(f"{verdict} {r.fixture:28s} {r.case:18s} {r.check:10s} {numbers}", flush=True)
        passed, failed = passed + r.passed, failed + (not r.passed)
    for name, why in not_covered(args.folder, args.only):
        print(f"not covered: {name} ({why})")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
