"""Images of a run's data set, degraded and restored by its model; what experiments.restore does."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from scorediff.diffusion.target import check_determined
from scorediff.errors import UserError, check_choice
from scorediff.evaluation import pictures
from scorediff.evaluation.examples import Examples
from scorediff.evaluation.inverse_tasks import parse_task
from scorediff.evaluation.protocol import grid_of, origin, rules_of, solver_of
from scorediff.evaluation.restoration import (
    Restored,
    Restorer,
    Setting,
    parse_method,
    prepare,
    restore,
)
from scorediff.evaluation.result import Result, Spread, append_result
from scorediff.experiment import Experiment, load
from scorediff.likelihood import examples_of
from scorediff.solvers.grid import Grid

Given = Literal["own", "null"]
SHOWN = 12  # images in the picture at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be restored, and how.

    task, method: as they are typed, name:option=value. noise_std: of the measurement, in units of
    x0. given: each image's own condition, or the null condition. n: how many images of `split`.
    """

    task: str
    method: str
    noise_std: float = 0.0
    given: Given = "own"
    split: str | None = None
    n: int = 8
    seed: int = 0

    def __post_init__(self):
        check_choice("--given", self.given, get_args(Given))
        if self.n < 1:
            raise UserError(f"--n must be at least 1, got {self.n}")


def restore_images(experiment: Experiment, workdir: str | Path, request: Request, out: Path):
    """Degrade and restore images of a run's data set; draws `out` and adds to results.jsonl.

    Returns the result, and whether there is a picture: data that are no images have none.
    """
    method = parse_method(request.method)
    setting = _setting(experiment, request)
    restorer = _prepared(experiment, method, setting)
    examples, reference, reference_hash = examples_of(experiment, split=request.split, n=request.n)
    examples = _given(experiment, examples, request.given)
    params, step = load(experiment, workdir)
    restored = restore(setting, restorer, params, examples, seed=request.seed)
    result = Result(
        **origin(experiment.config, step),
        **_described(experiment, request, restorer, examples),
        numbers={name: Spread.of([value]) for name, value in restored.numbers().items()},
        nfe=restored.nfe,
        samples=len(restored.original),
        seeds=(request.seed,),
        reference=reference,
        reference_hash=reference_hash,
    )
    append_result(Path(workdir) / "results.jsonl", result)
    return result, _draw(restored, out)


def _setting(experiment: Experiment, request: Request) -> Setting:
    _, solver = next(experiment.solvers())
    return Setting(
        generator=experiment.generator,
        solver=solver,
        operator=parse_task(request.task)(experiment.shape),
        noise_std=request.noise_std,
    )


def _prepared(experiment: Experiment, method: Callable, setting: Setting) -> Restorer:
    restorer = prepare(method, setting)
    target, process = experiment.denoiser.target, experiment.denoiser.process
    check_determined("config.denoiser.target", process, target, restorer.times)
    return restorer


def _given(experiment: Experiment, examples: Examples, given: Given) -> Examples:
    """The examples with their own condition, or with the null condition in its place."""
    if given == "own" or examples.cond is None:
        return examples
    if experiment.sampling.guidance_scale != 1:
        raise UserError("--given=null: guidance needs a condition; set guidance_scale=1")
    missing = sorted(set(examples.cond) - set(experiment.loss.null_cond))
    if missing:
        raise UserError(f"--given=null: config.loss.null_cond lacks {', '.join(missing)}")
    null = experiment.loss.null_cond
    cond = {key: np.full_like(leaf, null[key]) for key, leaf in examples.cond.items()}
    return examples._replace(cond=cond)


def _described(
    experiment: Experiment, request: Request, restorer: Restorer, examples: Examples
) -> dict:
    """Solver, grid, guidance, and what was asked for, as fields of a `Result`."""
    config, program = experiment.config, restorer.program
    described = rules_of(config, experiment.weak) | {"grid": grid_of(config, program)}
    if isinstance(program, Grid):
        described |= {"solver": request.method, "solver_args": {}, "rows": restorer.rows}
    else:
        described |= solver_of(config.solver, program)
    own = ", ".join(examples.cond) if examples.cond else "no condition"
    described["rules"] |= {
        "task": request.task,
        "method": request.method,
        "noise_std": f"{request.noise_std:g}",
        "given": own if request.given == "own" else "null condition",
    }
    return described


def _draw(restored: Restored, out: Path) -> bool:
    """Write the picture: originals above what was measured above what was restored."""
    shape = restored.original.shape[1:]
    if len(shape) != 3 or shape[2] not in (1, 3):
        return False
    rows = [getattr(restored, row)[:SHOWN] for row in ("original", "measured", "restored")]
    images = pictures.from_unit(np.concatenate(rows))
    left = ["original", "measured", "restored"]
    page = pictures.image_grid(images, columns=len(rows[0]), left=left)
    pictures.save_image(out, page)
    return True
