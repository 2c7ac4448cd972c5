"""Degrades real images and restores them with a trained run.

python -m experiments.restore --workdir=runs/digits --task=inpaint --method=pigdm --noise_std=0.05

Tasks: inpaint, random_pixels, grey, super_resolve, dense. Methods: pigdm, dps, dps_steps,
replacement, repaint, ddrm, sdedit. Options are written name:option=value, as super_resolve:factor=4
or repaint:jump=5:resamplings=5. Solver, grid and guidance are the config's. Draws restored.png and
adds to results.jsonl.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scorediff import commandline


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", required=True, help="such as inpaint or super_resolve:factor=2")
    parser.add_argument("--method", required=True, help="such as pigdm or ddrm:eta=1")
    parser.add_argument("--noise_std", type=float, default=0.0, help="of the measurement (0)")
    parser.add_argument("--given", default="own", help="an image's own class, or null (own)")
    parser.add_argument("--split", help="of the data set (test); sampled data have none")
    parser.add_argument("--n", type=int, default=8, help="how many images (8)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    parser.add_argument("--out", help="a PNG file; default: restored.png in the run folder")


def main(argv: Sequence[str]) -> None:
    args, overrides = commandline.parse(
        __doc__.splitlines()[0], add_flags, argv, needs=("workdir",), takes=("config",)
    )
    from scorediff.evaluation.report import record_command, write_report
    from scorediff.experiment import Experiment
    from scorediff.restoration import Request, restore_images

    request = Request(
        task=args.task,
        method=args.method,
        noise_std=args.noise_std,
        given=args.given,
        split=args.split,
        n=args.n,
        seed=args.seed,
    )
    wired = Experiment.of_run(args.workdir, args.config, overrides, packages=args.trust)
    out = Path(args.out or Path(args.workdir) / "restored.png")
    result, drawn = restore_images(wired, args.workdir, request, out)
    print(str(result).replace(" | ", "\n    "))
    record_command(args.workdir, ["python", "-m", "experiments.restore", *argv])
    print(f"report: {write_report(Path(args.workdir))}" + (f", picture: {out}" if drawn else ""))


if __name__ == "__main__":
    commandline.run(main)
