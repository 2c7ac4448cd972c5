"""Trains a config: python -m experiments.train --config=configs/digits.py --workdir=runs/digits

The same command again goes on from the newest checkpoint.
"""

from collections.abc import Sequence

from scorediff import commandline


def main(argv: Sequence[str]) -> None:
    args, overrides = commandline.parse(__doc__.splitlines()[0], argv=argv)
    from scorediff import experiment
    from scorediff.configfile import load_config
    from scorediff.evaluation.report import record_command

    config = load_config(args.config, overrides, packages=args.trust)
    wired = experiment.Experiment(config=config, packages=tuple(args.trust))
    experiment.train(wired, args.workdir)
    record_command(args.workdir, ["python", "-m", "experiments.train", *argv])


if __name__ == "__main__":
    commandline.run(main)
