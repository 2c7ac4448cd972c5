"""The likelihood of real examples under a trained run; what experiments.likelihood does."""

import dataclasses
from pathlib import Path

from scorediff.data.source import Source
from scorediff.diffusion.target import check_determined
from scorediff.errors import UserError, check_choice
from scorediff.evaluation.density import Density, Protocol, climb
from scorediff.evaluation.examples import Examples, read_examples
from scorediff.evaluation.protocol import grid_of, origin, solver_of
from scorediff.evaluation.result import Result, Spread, append_result, hash_json
from scorediff.experiment import Experiment, load
from scorediff.solvers import program as programs
from scorediff.solvers.dequantise import BitsPerDim

METHODS = ("ode", "elbo")


def split_of(source: Source, split: str | None) -> Source:
    """The source with another split; None: `test` where the source has splits, else all of it."""
    has = hasattr(source, "split")
    if split is not None and not has:
        raise UserError(f"--split={split}: a {type(source).__name__} source has no splits")
    return dataclasses.replace(source, split=split or "test") if has else source


def examples_of(experiment: Experiment, *, split: str | None, n: int) -> tuple[Examples, str, str]:
    """The first n examples of a split of the run's data set, in words, and a hash of which."""
    source, loss = split_of(experiment.pipeline.source, split), experiment.loss
    found = read_examples(source, loss.to_x0, loss.cond_keys, n=n, shape=experiment.shape)
    which = source.describe()
    name = " ".join(str(which[key]) for key in ("name", "split") if key in which)
    count = len(found.x0)
    return found, f"{count} examples of {name}", hash_json({**which, "first": count})


def likelihood(
    experiment: Experiment,
    workdir: str | Path,
    protocol: Protocol,
    *,
    split: str | None = None,
    n: int = 100,
    methods: tuple[str, ...] = (),
) -> list[Result]:
    """Measure the log-likelihood of a run's data by each of `methods`; adds to results.jsonl.

    methods: of METHODS; (): the ODE, and for whole numbers the bound too. Each example has its own
    condition, where the model takes one. Raises UserError for what has no likelihood.
    """
    for method in methods:
        check_choice("--methods", method, METHODS)
    examples, reference, reference_hash = examples_of(experiment, split=split, n=n)
    methods = methods or (METHODS if examples.levels else METHODS[:1])
    density = Density(
        denoiser=experiment.denoiser,
        protocol=protocol,
        batch_size=experiment.sampling.batch_size,
    )
    measurements = [_prepared(experiment, density, examples, method) for method in methods]
    params, step = load(experiment, workdir)
    results = []
    for measure, described, rules in measurements:
        bits = measure(params)
        result = Result(
            **origin(experiment.config, step),
            **described,
            rules={**rules, **_rules(bits)},
            numbers={
                "bits_per_dim": Spread.of([bits.mean]),
                "standard_error": Spread.of([bits.standard_error]),
            },
            samples=bits.examples,
            nfe=bits.nfe,
            guidance_scale=1.0,
            seeds=(protocol.seed,),
            reference=reference,
            reference_hash=reference_hash,
        )
        append_result(Path(workdir) / "results.jsonl", result)
        results.append(result)
    return results


def _prepared(experiment: Experiment, density: Density, examples: Examples, method: str):
    """(params -> BitsPerDim, its solver, its rules), checked before anything is loaded."""
    given = {"given": ", ".join(examples.cond) if examples.cond else "no condition"}
    if method == "elbo":
        density.check_elbo(examples)
        _check_own_ends(experiment)
        times = density.protocol.times
        described = {
            "solver": "elbo",
            "solver_args": {"times": times},
            "grid": f"a random logSNR in each of {times} equal parts",
        }
        return (lambda params: density.elbo(params, examples)), described, given
    _, solver = next(experiment.solvers())
    program = climb(experiment.sampling, solver, experiment.denoiser.process)
    density.check_ode(examples)
    target, process = experiment.denoiser.target, experiment.denoiser.process
    check_determined("config.denoiser.target", process, target, programs.times(program))
    described = {
        **solver_of(experiment.config.solver, program),
        "grid": grid_of(experiment.config, program),
    }
    rules = {**given, "divergence": density.protocol.trace(), **_ends(experiment)}
    return (lambda params: density.ode(params, program, examples)), described, rules


def _ends(experiment: Experiment) -> dict[str, str]:
    """Where the ODE starts and ends, where that is not the process's own."""
    return {name: str(experiment.config.sampling[name]) for name in ("t_start", "t_end")}


def _check_own_ends(experiment: Experiment) -> None:
    sampling = experiment.sampling
    if sampling.t_start is not None or sampling.t_end is not None:
        raise UserError(
            "elbo: the bound goes between the process's own t_min and t_max; leave "
            "config.sampling.t_start and t_end None, or take --methods=ode"
        )


def _rules(bits: BitsPerDim) -> dict[str, str]:
    offset = f"{bits.dequantisation}, offset {bits.offset:+.4f} bits per dimension"
    return {"likelihood": bits.method, "dequantisation": offset}
