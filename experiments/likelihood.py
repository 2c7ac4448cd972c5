"""Measures the likelihood of real examples under a trained run, in bits per dimension.

python -m experiments.likelihood --workdir=runs/digits --config.solver=heun --split=test

The density of the probability-flow ODE, with the ODE solver, grid and budget of the config, and for
whole numbers such as pixels the variational bound. Guidance is off: a guided field is not the score
of a density that was learned. Adds to results.jsonl.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scorediff import commandline


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", help="of the data set (test); sampled data have none")
    parser.add_argument("--n", type=int, default=100, help="how many examples (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    parser.add_argument("--methods", help="ode, elbo or both; default: what the data allow")
    parser.add_argument("--dequantisation", default="uniform", help="uniform or decoder (uniform)")
    parser.add_argument("--divergence", default="hutchinson", help="exact or hutchinson")
    parser.add_argument("--probes", type=int, default=1, help="random vectors of hutchinson (1)")
    parser.add_argument("--times", type=int, default=16, help="noise levels of elbo (16)")


def main(argv: Sequence[str]) -> None:
    args, overrides = commandline.parse(
        __doc__.splitlines()[0], add_flags, argv, needs=("workdir",), takes=("config",)
    )
    from scorediff.errors import UserError
    from scorediff.evaluation.density import Protocol
    from scorediff.evaluation.report import record_command, write_report
    from scorediff.experiment import Experiment
    from scorediff.likelihood import likelihood

    if args.n < 2:
        raise UserError(f"--n must be at least 2, which a standard error needs; got {args.n}")
    protocol = Protocol(
        dequantisation=args.dequantisation,
        divergence=args.divergence,
        probes=args.probes,
        times=args.times,
        seed=args.seed,
    )
    methods = tuple(args.methods.split(",")) if args.methods else ()
    wired = Experiment.of_run(args.workdir, args.config, overrides, packages=args.trust)
    if wired.sampling.guidance_scale != 1:
        print(f"guidance is off here (the config samples with {wired.sampling.guidance_scale:g})")
    for result in likelihood(
        wired, args.workdir, protocol, split=args.split, n=args.n, methods=methods
    ):
        print(result)
    record_command(args.workdir, ["python", "-m", "experiments.likelihood", *argv])
    print(f"report: {write_report(Path(args.workdir))}")


if __name__ == "__main__":
    commandline.run(main)
