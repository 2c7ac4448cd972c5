"""The one place where a config becomes wired objects, and what one does with them.

A config has these fields; configs/digits.py is the one to read:

    name, seed
    data        shape of one x0, and a `Pipeline`
    denoiser    a `Denoiser`: network, process, target
    loss        what `DenoisingLoss` takes beside the denoiser
    optimizer   an optax transformation
    ema         averaged parameters by name
    train       a `Plan`: steps, how often what happens, how the work is laid out
    solver      a solver of `scorediff.solvers`; `compare` has more of them, by name
    sampling    a `Sampling`: grid, budget, guidance, which parameters
    evaluation  an evaluator; None: the run is sampled, not measured
"""

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from scorediff.config import build, to_json
from scorediff.configfile import load_run
from scorediff.data.pipeline import Pipeline
from scorediff.diffusion import Denoiser, DenoisingLoss
from scorediff.diffusion.target import check_determined
from scorediff.errors import UserError
from scorediff.evaluation import pictures
from scorediff.evaluation.evaluators import Evaluator, Run
from scorediff.evaluation.generate import Generator, Samples, Sampling, Weak, save_samples
from scorediff.evaluation.protocol import grid_of, origin, rules_of, solver_of
from scorediff.evaluation.result import Result, append_result
from scorediff.models.partition import partition_by_own_rules
from scorediff.solvers import program as programs
from scorediff.solvers.program import Program
from scorediff.training import mesh as meshes
from scorediff.training.checkpoint import Checkpoints
from scorediff.training.ema import EMAProfile
from scorediff.training.hooks import Every, Hook, LogMetrics
from scorediff.training.loop import fit
from scorediff.training.metrics import MetricLog
from scorediff.training.parallel import PMAP_AXIS, compile_step
from scorediff.training.plan import Plan
from scorediff.training.progress import Progress
from scorediff.training.state import TrainState
from scorediff.training.step import make_step
from scorediff.training.stored import read_params
from scorediff.training.workdir import Workdir, open_workdir
from scorediff.types import Cond, Key, Params

FIELDS = {
    *("name", "seed", "data", "denoiser", "loss", "optimizer", "ema", "train"),
    *("solver", "compare", "sampling", "evaluation"),
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The objects of a config, built when they are first asked for: sampling opens no data set."""

    config: ConfigDict
    packages: Sequence[str] = ()

    def __post_init__(self):
        wrong = FIELDS ^ set(self.config)
        if wrong:
            raise UserError(f"config: fields missing or unknown: {', '.join(sorted(wrong))}")

    @classmethod
    def of_run(
        cls,
        workdir: str | Path,
        config: str | None = None,
        overrides: Sequence[str] = (),
        *,
        packages: Sequence[str] = (),
    ) -> Self:
        """That of a run folder, or of another config where one is given; see `load_run`."""
        found = load_run(workdir, config, overrides, packages=packages)
        return cls(config=found, packages=tuple(packages))

    def _build(self, *path: str) -> Any:
        node = functools.reduce(lambda node, key: node[key], path, self.config)
        return build(node, packages=self.packages, path=".".join(("config", *path)))

    @functools.cached_property
    def denoiser(self) -> Denoiser:
        return self._build("denoiser")

    @functools.cached_property
    def loss(self) -> DenoisingLoss:
        return self._build("loss")(denoiser=self.denoiser)

    @functools.cached_property
    def pipeline(self) -> Pipeline:
        if "pipeline" not in self.config.data:
            raise UserError(
                "config.data has no pipeline, so this run has no data set, as one that was "
                "converted; give --config=FILE, a config that has one"
            )
        return self._build("data", "pipeline")

    @functools.cached_property
    def plan(self) -> Plan:
        return self._build("train")

    @functools.cached_property
    def sampling(self) -> Sampling:
        return self._build("sampling")

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        if self.config.evaluation is None:
            raise UserError(
                "config.evaluation is None, so nothing says how samples are measured: name "
                "an evaluator, or leave config.train.sample_every and evaluate_every None"
            )
        return self._build("evaluation")

    @functools.cached_property
    def ema(self) -> dict[str, EMAProfile]:
        return self._build("ema")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one x0."""
        return tuple(self.config.data.shape)

    def solvers(self) -> Iterator[tuple[ConfigDict, Callable]]:
        """The nodes and solvers to measure, the config's own first."""
        yield self.config.solver, self._build("solver")
        for name in self.config.compare:
            yield self.config.compare[name], self._build("compare", name)

    @functools.cached_property
    def generator(self) -> Generator:
        return Generator(
            denoiser=self.denoiser,
            shape=self.shape,
            null_cond=self.loss.null_cond,
            sampling=self.sampling,
            weak=self.weak,
        )

    @functools.cached_property
    def weak(self) -> Weak | None:
        """The model that guidance moves away from: what its own run samples from."""
        folder = self.sampling.weak
        if folder is None:
            return None
        other = Experiment.of_run(folder, packages=self.packages)
        for name in ("shape", "denoiser.process", "loss.null_cond"):
            mine, theirs = (operator.attrgetter(name)(one) for one in (self, other))
            if mine != theirs:
                raise UserError(f"config.sampling.weak: {folder} has {name} {theirs}, not {mine}")
        params, step = load(other, folder)
        return Weak(other.denoiser, params, f"{folder} at step {step}, EMA {other.sampling.ema}")

    def init_params(self, key: Key) -> Params:
        """Initial parameters of the network."""
        null: Cond = {k: jnp.full((1,), v) for k, v in self.loss.null_cond.items()} or None
        return self.denoiser.init(key, jnp.zeros((1, *self.shape)), null)

    def init_state(self, key: Key) -> TrainState:
        """The train state before the first step."""
        return TrainState.create(self.init_params(key), self._build("optimizer"), self.ema)

    def abstract_state(self, mesh: Mesh) -> TrainState:
        """What init_state gives, in shapes, laid out on the mesh by the network's own rules."""
        partition = functools.partial(partition_by_own_rules, self.denoiser.network)
        return meshes.abstract_state(self.init_state, mesh, partition)

    def step(self):
        """The train step, not compiled."""
        return make_step(
            self.loss,
            self._build("optimizer"),
            self.ema,
            accumulate=self.plan.accumulate,
            axis_name=PMAP_AXIS if self.plan.mode == "pmap" else None,
        )

    def run(self, params: Params, solver: Callable) -> Run:
        """Parameters with one solver, ready to be sampled and measured."""
        return Run(self.generator, params, self.program(solver))

    def program(self, solver: Callable) -> Program:
        """What a solver runs, at whose times the model's predictions determine x0_hat."""
        process, target = self.denoiser.process, self.denoiser.target
        program = self.sampling.program(solver, process)
        check_determined("config.denoiser.target", process, target, programs.times(program))
        self.generator.check(program)
        return program

    def check_data(self) -> None:
        """UserError where the data set's examples do not fit the config's shape."""
        batch = self.pipeline.batch(0)
        found = jax.eval_shape(self.loss.to_x0, batch).shape[1:]
        if found != self.shape:
            raise UserError(f"config.data.shape is {self.shape}, but the data set has {found}")
        missing = [key for key in self.loss.cond_keys if key not in batch]
        if missing:
            raise UserError(f"config.loss.cond_keys: the data set has no {', '.join(missing)}")

    def check_sampling(self) -> None:
        """UserError where the model cannot be sampled as the config says, found before training."""
        ema = self.sampling.ema
        if ema is not None and ema not in self.ema:
            kept = ", ".join(self.ema) or "none"
            raise UserError(f"config.sampling.ema: no average is called {ema!r}; there is {kept}")
        _ = self.generator
        if self.config.evaluation is not None or self.plan.sample_every or self.plan.evaluate_every:
            _ = self.evaluator
        for _, solver in self.solvers():
            self.program(solver)


def train(experiment: Experiment, workdir: str | Path) -> None:
    """Train to the end of the plan, going on from the newest checkpoint of the run folder."""
    plan = experiment.plan
    experiment.check_data()
    experiment.check_sampling()
    mesh = meshes.make_mesh(fsdp=plan.fsdp, tensor=plan.tensor)
    abstract = experiment.abstract_state(mesh)
    step = compile_step(experiment.step(), mesh, abstract, mode=plan.mode)
    # last, so that a wrong config leaves no folder
    folder = open_workdir(workdir, to_json(experiment.config), packages=experiment.packages)
    checkpoints = Checkpoints(
        folder.checkpoints,
        keep_last=plan.keep_last,
        keep_every=plan.keep_every,
        pipeline=experiment.pipeline.fingerprint(),
    )
    init_key, root_key = jax.random.split(jax.random.key(experiment.config.seed))
    state = checkpoints.restore_latest(abstract)
    if state is None:
        state = meshes.initialise(experiment.init_state, init_key, abstract)
    else:
        print(f"going on from step {int(state.step)} of {folder.path}")
    log = MetricLog(folder)
    fit(
        step,
        state,
        _batches(experiment.pipeline),
        steps=plan.steps,
        root_key=root_key,
        hooks=_hooks(experiment, folder, log),
        checkpoints=checkpoints,
        save_every=plan.save_every,
        log=log,
        patience=plan.patience,
        progress=Progress(plan.steps),
    )
    pictures.draw_loss(folder)


def _batches(pipeline: Pipeline):
    return functools.partial(
        pipeline.batches, process_index=jax.process_index(), process_count=jax.process_count()
    )


def _hooks(experiment: Experiment, folder: Workdir, log: MetricLog) -> list[Hook]:
    plan, ema = experiment.plan, experiment.sampling.ema
    _, solver = next(experiment.solvers())

    def run(state: TrainState) -> Run:
        return experiment.run(state.params if ema is None else state.ema[ema], solver)

    def draw(step: int, state: TrainState, metrics) -> None:
        path = folder.samples / f"step_{step:08d}.png"
        experiment.evaluator.picture(run(state), path)
        log.image(step, "samples", np.asarray(Image.open(path).convert("RGB")))

    def measure(step: int, state: TrainState, metrics) -> None:
        numbers = experiment.evaluator.measure(run(state)).numbers
        log.scalars(step, {f"evaluation/{name}": n.mean for name, n in numbers.items()})

    hooks: list[Hook] = [LogMetrics(every=plan.log_every, log=log)]
    if plan.sample_every is not None:
        hooks.append(Every(every=plan.sample_every, action=draw))
    if plan.evaluate_every is not None:
        hooks.append(Every(every=plan.evaluate_every, action=measure))
    return hooks


def load(experiment: Experiment, workdir: str | Path) -> tuple[Params, int]:
    """The parameters that the config samples from, and their step."""
    mesh = meshes.make_mesh()
    abstract = meshes.lay_out(jax.eval_shape(experiment.init_params, jax.random.key(0)), mesh)
    checkpoints = Path(workdir) / "checkpoints"
    return read_params(checkpoints, abstract, profile=experiment.sampling.ema)


def sample(experiment: Experiment, workdir: str | Path, *, n: int, seed: int, out: Path) -> Samples:
    """Draw n samples of a trained run into the npz file `out`."""
    params, _ = load(experiment, workdir)
    _, solver = next(experiment.solvers())
    run = experiment.run(params, solver)
    samples = run.draw(n, seed)
    save_samples(out, samples)
    return samples


def evaluate(experiment: Experiment, workdir: str | Path) -> list[Result]:
    """Measure a trained run with each of its solvers; adds to results.jsonl and draws."""
    params, step = load(experiment, workdir)
    folder = Workdir(Path(workdir).absolute())
    results = []
    for node, solver in experiment.solvers():
        run = experiment.run(params, solver)
        result = Result(
            **origin(experiment.config, step),
            **solver_of(node, run.program),
            **rules_of(experiment.config, experiment.weak),
            grid=grid_of(experiment.config, run.program),
            **experiment.evaluator.measure(run)._asdict(),
        )
        append_result(folder.path / "results.jsonl", result)
        results.append(result)
        if len(results) == 1:
            experiment.evaluator.draw(run, folder.path)
    return results
