"""Every config: its full variant builds and has the size it says, its tiny variant goes its way."""

import math
from pathlib import Path

import jax
import pytest

from scorediff.config import differences, from_json, to_json
from scorediff.configfile import load_config
from scorediff.errors import UserError
from scorediff.experiment import Experiment
from scorediff.training.mesh import UNOPTIMISED

CONFIGS = sorted(p for p in Path(__file__).parents[1].glob("configs/*.py") if p.stem[0] != "_")
IDS = [path.stem for path in CONFIGS]


@pytest.mark.parametrize("variant", ["full", "tiny"])
@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_everything_but_the_data_builds(path, variant):
    config = load_config(f"{path}:{variant}")
    assert differences(config, from_json(to_json(config))) == []
    experiment = Experiment(config=config)
    state = jax.eval_shape(experiment.init_state, jax.random.key(0))
    assert experiment.sampling.ema in state.ema
    for _, solver in experiment.solvers():
        table = experiment.sampling.program(solver, experiment.denoiser.process)
        assert 0 < table.nfe <= experiment.sampling.nfe
    assert config.evaluation is None or experiment.evaluator.samples > 1
    assert experiment.plan.steps > 0


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_an_unknown_variant_is_refused(path):
    with pytest.raises(UserError, match="huge"):
        load_config(f"{path}:huge")


def test_cifar10_is_of_paper_size():
    config = load_config(str(next(p for p in CONFIGS if p.stem == "cifar10_ddpmpp")))
    experiment = Experiment(config=config)
    params = jax.eval_shape(experiment.init_params, jax.random.key(0))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    # DDPM's network has 35.7 M with 2 blocks a level (arXiv 2006.11239); 4 blocks nearly double it
    assert 55e6 < count < 70e6
    assert config.train.steps * config.data.pipeline.batch_size == 1_300_000 * 128
    x = jax.ShapeDtypeStruct((4, *experiment.shape), "float32")
    t = jax.ShapeDtypeStruct((4,), "float32")
    y = jax.eval_shape(experiment.denoiser.predict, params, x, t)
    assert y.shape == x.shape


def stepped(name):
    """The tiny variant after two steps: experiment, states before and after, metrics."""
    config = load_config(str(next(p for p in CONFIGS if p.stem == name)) + ":tiny")
    experiment = Experiment(config=config)
    experiment.check_data()
    init = jax.jit(experiment.init_state, compiler_options=UNOPTIMISED)
    step = jax.jit(experiment.step(), compiler_options=UNOPTIMISED)
    before = state = init(jax.random.key(0))
    for k in range(2):  # the learning rate of the first step is 0
        state, metrics = step(state, experiment.pipeline.batch(k), jax.random.key(1))
    return experiment, before, state, metrics


@pytest.mark.slow  # the tests of the commands train tiny runs of the mixture and of the digits
@pytest.mark.parametrize("name", ["cifar10_ddpmpp", "gmm2d"])
def test_tiny_takes_a_step(name):
    _, before, state, metrics = stepped(name)
    moved = jax.tree.map(lambda a, b: abs(a - b).max() > 0, before.params, state.params)
    assert 0.3 < float(metrics["loss"]) < 3 and int(state.step) == 2
    assert any(bool(leaf) for leaf in jax.tree.leaves(moved))


@pytest.mark.slow
def test_gmm2d_tiny_is_measured_and_drawn(tmp_path):
    experiment, _, state, _ = stepped("gmm2d")
    _, solver = next(experiment.solvers())
    run = experiment.run(state.ema["main"], solver)
    measured = experiment.evaluator.measure(run)
    errors = [v.mean for k, v in measured.numbers.items() if k.startswith("score_error")]
    assert len(errors) == 9 and all(math.isfinite(error) and error > 0 for error in errors)
    experiment.evaluator.draw(run, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"mixture.png", "score_error.png"}
