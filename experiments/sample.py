"""Samples a trained run.

python -m experiments.sample --workdir=runs/digits --n=100 --out=digits.npz

The config is the run's own; overrides try another solver, as --config.solver=heun.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scorediff import commandline


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n", type=int, default=100, help="how many samples (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    parser.add_argument("--out", help="an npz file; default: samples.npz in the run folder")


def main(argv: Sequence[str]) -> None:
    args, overrides = commandline.parse(
        __doc__.splitlines()[0], add_flags, argv, needs=("workdir",), takes=("config",)
    )
    from scorediff import experiment
    from scorediff.errors import UserError

    if args.n < 1:
        raise UserError(f"--n must be at least 1, got {args.n}")
    wired = experiment.Experiment.of_run(args.workdir, args.config, overrides, packages=args.trust)
    out = Path(args.out or Path(args.workdir) / "samples.npz")
    samples = experiment.sample(wired, args.workdir, n=args.n, seed=args.seed, out=out)
    print(f"{args.n} samples at {samples.spent()}: {out}")


if __name__ == "__main__":
    commandline.run(main)
