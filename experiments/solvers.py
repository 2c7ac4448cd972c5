"""Instruments for solvers: order, compare and search.

python -m experiments.solvers order --bed=A --solvers=ddim,heun,unipc:order=2 --out=orders
python -m experiments.solvers compare --workdir=runs/digits --solvers=ddim,unipc --nfe=5,10,20
python -m experiments.solvers search --workdir=runs/digits --nfe=8 --out=best.json

order: convergence where the flow is known exactly. compare: distance from the exact flow on a
trained run. search: a table better than every hand-made one, for scorediff.solvers.found. Solvers
and spacings are written name:option=value.
"""

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from scorediff import commandline
from scorediff.errors import UserError


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from 1, separated by commas, in rising order."""
    try:
        found = sorted({int(float(part)) for part in text.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 1:
        raise UserError(f"{text}: expected whole numbers from 1, like 5,10,20")
    return tuple(found)


def order(argv: Sequence[str]) -> None:
    args, _ = commandline.parse("Measures convergence orders.", _order_flags, argv, needs=())
    import jax

    from scorediff.evaluation import solver_names as names
    from scorediff.evaluation import solver_order as orders
    from scorediff.evaluation.solver_bench import BEDS
    from scorediff.evaluation.solver_figures import error_plot

    if args.bed not in BEDS:
        raise UserError(f"--bed={args.bed}: the beds are {', '.join(BEDS)}")
    with jax.enable_x64(True):
        curves = list(
            orders.measure_orders(
                args.bed,
                names.parse_solvers(args.solvers),
                names.parse_spacings(args.spacings),
                names.parse_processes(args.processes),
                numbers(args.nfe),
            )
        )
    out = Path(args.out)
    print(orders.text_table(curves))
    orders.save_curves(out, curves)
    panels: dict[str, dict] = {}
    for curve in curves:
        panels.setdefault(curve.process, {})[curve.label] = (curve.nfe, curve.error)
    weak = {curve.kind for curve in curves} == {"weak"}
    ylabel = "weak error of mean and std" if weak else "error (RMS)"
    error_plot(out / "orders.png", panels, ylabel=ylabel)
    print(f"{out / 'orders.csv'}, orders.json, orders.png")


def _order_flags(parser: argparse.ArgumentParser) -> None:
    from_to = "from noise level 100 to 0.1"
    parser.add_argument("--bed", default="A", help=f"A: 2-D mixture, B: 16-D Gaussian; {from_to}")
    parser.add_argument("--solvers", default="ddim,heun,dpmpp_multistep:order=2,unipc:order=2")
    parser.add_argument("--spacings", default="logsnr")
    parser.add_argument("--processes", default="VPLinear")
    parser.add_argument("--nfe", default="8,16,32,64,128,256", help="budgets")
    parser.add_argument("--out", default="orders", help="a folder (orders)")


def compare(argv: Sequence[str]) -> None:
    args, overrides = commandline.parse(
        "Compares solvers on a trained run.",
        _compare_flags,
        argv,
        needs=("workdir",),
        takes=("config",),
    )
    from scorediff.evaluation import solver_compare
    from scorediff.evaluation.solver_names import parse_solvers, parse_spacings

    solvers, spacings = parse_solvers(args.solvers), parse_spacings(args.spacings)
    budgets = numbers(args.nfe)
    model = _trained(args, overrides)
    rows = solver_compare.compare(
        model, solvers, spacings, budgets, samples=args.samples, reference=args.reference
    )
    out = Path(args.out or args.workdir)
    print(solver_compare.text_table(rows))
    print(solver_compare.save_rows(out, rows, title=Path(args.workdir).name))


def _compare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--solvers", default="ddim,heun,dpmpp_multistep,unipc")
    parser.add_argument("--spacings", default="logsnr")
    parser.add_argument("--nfe", default="5,10,20", help="budgets of table rows (5,10,20)")
    parser.add_argument("--samples", type=_positive, default=128, help="noises (128)")
    parser.add_argument("--reference", type=_positive, default=200, help="its evaluations (200)")
    parser.add_argument("--out", help="a folder; default: the run's")


def search(argv: Sequence[str]) -> None:
    args, overrides = commandline.parse(
        "Searches a better table.", _search_flags, argv, needs=(), takes=("workdir", "config")
    )
    if bool(args.workdir) == bool(args.bed):
        raise UserError("search needs either --workdir=FOLDER or --bed=A")
    import jax

    from scorediff.evaluation import solver_search
    from scorediff.evaluation.solver_bench import Bench, reference_table
    from scorediff.evaluation.solver_names import parse_solvers, parse_spacings
    from scorediff.training.files import write_atomic

    solvers, spacings = parse_solvers(args.solvers), parse_spacings(args.spacings)
    if args.workdir:
        model, effort, batch = _trained(args, overrides), solver_search.FOR_RUNS, 32
        process = model.process
    else:
        model, effort, batch = _bed(args), solver_search.FOR_BEDS, 1024
        process = dataclasses.replace(model.process, t_min=model.process.t_min / 100 or 1e-5)
    with jax.enable_x64(not args.workdir):  # beds cost nothing, and networks compute in float32
        outcome = solver_search.search(
            Bench(model, rows=max(args.reference, args.nfe), batch=batch),
            reference_table(process, args.reference),
            solvers,
            spacings,
            args.nfe,
            effort=effort,
            start=_earlier(args, model.process),
            seed=args.seed,
        )
    write_atomic(Path(args.out), outcome.found.to_json())
    print(
        f"{args.nfe} rows, RMS on held-back noise: found {outcome.error:.5f}, best hand-made "
        f"{outcome.hand_made.error:.5f} ({outcome.hand_made}), {outcome.gain:.2f} times: {args.out}"
    )


def _search_flags(parser: argparse.ArgumentParser) -> None:
    from scorediff.evaluation.solver_bench import HAND_MADE, SPACINGS

    parser.add_argument("--bed", help="A or B, instead of a run")
    parser.add_argument("--process", default="VPLinear", help="of the bed (VPLinear)")
    parser.add_argument("--nfe", type=_positive, default=8, help="rows of the table (8)")
    parser.add_argument("--solvers", default=HAND_MADE, help="to beat")
    parser.add_argument("--spacings", default=SPACINGS, help="to beat")
    parser.add_argument("--reference", type=_positive, default=200, help="its evaluations (200)")
    parser.add_argument(
        "--start", metavar="FILE", help="an earlier table of so many rows to refine"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noises (0)")
    parser.add_argument("--out", default="best.json", help="a JSON file (best.json)")


def _positive(text: str) -> int:
    (number,) = numbers(text)
    return number


def _earlier(args: argparse.Namespace, process):
    from scorediff.solvers import Sampler
    from scorediff.solvers.found import found

    if args.start is None:
        return None
    solver = functools.partial(found, path=args.start)
    return Sampler(solver=solver, nfe=args.nfe).table(process)


def _bed(args: argparse.Namespace):
    from scorediff.evaluation.solver_bench import bed_model
    from scorediff.evaluation.solver_names import parse_processes

    (process,) = parse_processes(args.process).values()
    return bed_model(args.bed, process)


def _trained(args: argparse.Namespace, overrides: Sequence[str]):
    from scorediff import experiment
    from scorediff.evaluation.solver_bench import Model

    wired = experiment.Experiment.of_run(args.workdir, args.config, overrides, packages=args.trust)
    params, _ = experiment.load(wired, args.workdir)
    generator = wired.generator
    return Model(generator.denoise(params), wired.denoiser.process, wired.shape, generator.cond)


COMMANDS = {"order": order, "compare": compare, "search": search}


def main(argv: Sequence[str]) -> None:
    command, *rest = argv or [""]
    if command in ("-h", "--help"):
        print(__doc__)
    elif command not in COMMANDS:
        raise UserError(f"{command or 'nothing'!r} is none of {', '.join(COMMANDS)} (--help)")
    else:
        COMMANDS[command](rest)


if __name__ == "__main__":
    commandline.run(main)
