"""Says what a config costs before it is launched: python -m experiments.describe --config=FILE

Parameters, FLOPs, activation memory and compile time of the network and of a training step, as XLA
tells them for this machine's device; nothing is trained, and no data set has to be there.
"""

from collections.abc import Sequence

from scorediff import commandline


def main(argv: Sequence[str]) -> None:
    args, overrides = commandline.parse(__doc__.splitlines()[0], argv=argv, needs=("config",))
    from scorediff.configfile import load_config
    from scorediff.evaluation.describe import describe, without_data
    from scorediff.experiment import Experiment

    config = load_config(args.config, overrides, packages=args.trust)
    wired = Experiment(config=without_data(config), packages=tuple(args.trust))
    description = describe(
        wired.init_state,
        wired.step(),
        wired.denoiser,
        shape=wired.shape,
        null_cond=wired.loss.null_cond,
        batch_size=config.data.pipeline.batch_size,
    )
    print(description)


if __name__ == "__main__":
    commandline.run(main)
