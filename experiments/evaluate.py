"""Measures a trained run with each of its solvers, draws it and writes its report.

python -m experiments.evaluate --workdir=runs/digits

Adds to results.jsonl. The config is the run's own; overrides try another solver or guidance on it.
"""

from collections.abc import Sequence
from pathlib import Path

from scorediff import commandline


def main(argv: Sequence[str]) -> None:
    args, overrides = commandline.parse(
        __doc__.splitlines()[0], argv=argv, needs=("workdir",), takes=("config",)
    )
    from scorediff import experiment
    from scorediff.evaluation.report import record_command, write_report

    wired = experiment.Experiment.of_run(args.workdir, args.config, overrides, packages=args.trust)
    for result in experiment.evaluate(wired, args.workdir):
        print(str(result).replace(" | ", "\n    "))
    record_command(args.workdir, ["python", "-m", "experiments.evaluate", *argv])
    print(f"report: {write_report(Path(args.workdir))}")


if __name__ == "__main__":
    commandline.run(main)
