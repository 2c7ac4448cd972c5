"""Guidance away from a second run, on the command line."""

import json
import shutil

import numpy as np
import pytest

from experiments import sample
from scorediff.configfile import load_run
from scorediff.errors import UserError
from scorediff.evaluation.protocol import rules_of
from scorediff.experiment import Experiment

AWAY = ("--config.sampling.guidance=autoguidance", "--config.sampling.guidance_scale=2")

pytestmark = pytest.mark.slow  # make test has the rule itself: tests/diffusion


def drawn(workdir, out, *options):
    sample.main([f"--workdir={workdir}", f"--out={out}", "--n=4", "--seed=1", *options])
    with np.load(out) as file:
        return file["x0"]


def test_away_from_itself_a_model_goes_nowhere(points, tmp_path, capsys):
    plain = drawn(points, tmp_path / "plain.npz")
    guided = drawn(points, tmp_path / "away.npz", *AWAY, f"--config.sampling.weak={points}")
    np.testing.assert_allclose(guided, plain, rtol=1e-4, atol=1e-5)
    said = capsys.readouterr().out.splitlines()
    assert "at 5 network evaluations each" in said[0] and "at 10 network" in said[1]


def test_a_result_names_the_weak_model_and_its_step(points):
    overrides = [*AWAY, f"--config.sampling.weak={points}"]
    experiment = Experiment(config=load_run(points, None, overrides))
    found = rules_of(experiment.config, experiment.weak)
    assert found["rules"]["weak"] == f"{points} at step 4, EMA main"
    assert found["guidance_convention"].startswith("x0 = weak + scale (model - weak)")


def test_a_model_of_something_else_is_refused(points, tmp_path):
    other = shutil.copytree(points, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["denoiser"]["process"]["t_min"] = 0.01
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.sampling\.weak: .* has denoiser.process EDM"):
        drawn(points, tmp_path / "x.npz", *AWAY, f"--config.sampling.weak={other}")
    with pytest.raises(UserError, match="not a run folder"):
        drawn(points, tmp_path / "x.npz", *AWAY, f"--config.sampling.weak={tmp_path}")


def test_it_cannot_do_without_another_model(points, tmp_path):
    with pytest.raises(UserError, match=r"guidance needs weak, .* config\.sampling\.weak"):
        drawn(points, tmp_path / "x.npz", *AWAY)
