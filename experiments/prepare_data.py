"""Prepares a data set for training: python -m experiments.prepare_data digits

Writes it under --data_dir in the format that every other command reads; a second time it does
nothing.
"""

import argparse
from collections.abc import Sequence

from scorediff import commandline
from scorediff.data import builders
from scorediff.errors import UserError
from scorediff.fields import hint_at_nearest


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help=", ".join(builders.NAMES))
    parser.add_argument(
        "--data_dir",
        help="where prepared data sets live; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets",
    )
    parser.add_argument(
        "--manual_dir", help="folder with the official archives, already downloaded"
    )
    parser.add_argument(
        "--path",
        help="image_folder: a folder of <split>/<class>/*.png|jpg, or of images; npz: a file with "
        "`image` uint8 [n, h, w, c] and perhaps `label`, or a folder of <split>.npz",
    )
    parser.add_argument(
        "--title", help="image_folder and npz become NAME/TITLE; default: the last part of --path"
    )


def main(argv: Sequence[str]) -> None:
    args, _ = commandline.parse(__doc__.splitlines()[0], add_flags, argv, needs=())
    if args.name not in builders.NAMES:
        hint = hint_at_nearest(args.name, builders.NAMES)
        raise UserError(f"no builder for {args.name!r}{hint}; --help lists them")
    from absl import logging  # TFDS takes a second, which --help and typos need not wait for

    from scorediff.data import prepared
    from scorediff.data.builders import preparing

    logging.set_verbosity(logging.ERROR)  # its warnings are about nothing the user did

    builder = builders.builder(
        args.name,
        data_dir=str(prepared.root(args.data_dir)),
        manual_dir=args.manual_dir,
        path=args.path,
        title=args.title,
    )
    if not preparing.prepare(builder):
        print("already prepared; delete its folder to prepare it anew")
    print(preparing.summary(builder))


if __name__ == "__main__":
    commandline.run(main)
