"""Converts between published checkpoints and run folders.

python -m experiments.convert google-ddpm-cifar10-32 runs/ddpm      a hub folder becomes a run
python -m experiments.convert DiT-XL-2-256x256.pt runs/dit --arguments=dit.json
python -m experiments.convert runs/digits digits-unet --to=UNet2DModel

Nothing in a file is ever run, and a file that lacks or has extra parameters is refused.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scorediff import commandline

RUN = "run"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a hub folder, a pipeline, a file, or a run folder")
    parser.add_argument("destination", help="a folder that is not there yet")
    parser.add_argument("--to", help="run (the default for a published model), or a class")
    parser.add_argument("--of", help="the class of a file whose config does not name it")
    parser.add_argument("--arguments", help="JSON: the constructor's arguments, for a bare file")
    parser.add_argument("--scheduler", help="JSON: a diffusers scheduler's config")
    parser.add_argument("--variant", help="of a hub folder, as fp16")
    parser.add_argument("--part", help="of a checkpoint with several, as ema")


def main(argv: Sequence[str]) -> None:
    args, _ = commandline.parse(__doc__.splitlines()[0], add_flags, argv, needs=())
    if (Path(args.source) / "checkpoints").is_dir():
        from_run(args)
    else:
        from_published(args)


def from_run(args: argparse.Namespace) -> None:
    from scorediff import conversion
    from scorediff.errors import UserError
    from scorediff.interop.formats import KNOWN

    if args.to in (None, RUN):
        raise UserError(f"--to is missing: name a class, one of {', '.join(sorted(KNOWN))}")
    network, params = conversion.read_run(args.source)
    say(conversion.publish(args.destination, args.to, network, params), args)


def from_published(args: argparse.Namespace) -> None:
    from scorediff import conversion
    from scorediff.interop import files, sources

    config = files.read_json(args.arguments) if args.arguments else None
    found = sources.read(
        args.source, variant=args.variant, config=config, name=args.of, part=args.part
    )
    scheduler = files.read_json(args.scheduler) if args.scheduler else found.scheduler
    print(f"found {found.model.format.name} in {args.source}")
    if found.left:
        print(f"not converted: {', '.join(found.left)}")
    if args.to in (None, RUN):
        say(conversion.write_run(args.destination, found.model, scheduler), args)
    else:
        model = found.model
        say(conversion.publish(args.destination, args.to, model.network, model.params), args)


def say(summary, args: argparse.Namespace) -> None:
    """What was written."""
    print(
        f"{summary.name}: {summary.parameters:,} parameters in {summary.tensors} arrays, "
        f"written to {args.destination}"
    )


if __name__ == "__main__":
    commandline.run(main)
