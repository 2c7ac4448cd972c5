"""Adaptive solvers on the command line: samples, numbers and what is refused."""

import shutil

import numpy as np
import pytest

from experiments import evaluate, sample
from scorediff.errors import UserError
from scorediff.evaluation.result import read_results


@pytest.mark.slow
def test_samples_come_with_the_range_of_their_evaluations(points, tmp_path, capsys):
    out = tmp_path / "x.npz"
    options = [
        "--config.solver=dpm_adaptive",
        "--config.solver.atol=1e-3",
        "--config.solver.rtol=1e-3",
        "--n=8",
    ]
    sample.main([f"--workdir={points}", f"--out={out}", *options])
    assert "network evaluations each on average (" in capsys.readouterr().out
    with np.load(out) as drawn:
        assert drawn["x0"].shape == (8, 2) and np.isfinite(drawn["x0"]).all()


@pytest.mark.slow
def test_a_result_carries_tolerance_and_evaluations(points, tmp_path):
    workdir = shutil.copytree(points, tmp_path / "run")
    options = ["--config.solver=adaptive_ode", "--config.solver.rtol=1e-2"]
    evaluate.main([f"--workdir={workdir}", *options, "--config.solver.atol=1e-2"])
    result, *others = read_results(workdir / "results.jsonl")
    assert (result.solver, result.rows, result.grid) == ("adaptive_ode", None, "of its own steps")
    assert result.solver_args["rtol"] == result.solver_args["atol"] == 0.01
    assert not {"t_start", "t_end", "to_data", "cond"} & set(result.solver_args)
    assert result.nfe > 10 and result.rules["to_data"] == "True"
    assert [other.rows for other in others] == [5, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.solver.rtol=-1"], "rtol and atol must be at least 0"),
        (["--config.solver.t_end=0.1"], "t_end of an adaptive solver is that of the sampling"),
        (["--config.sampling.noise=brownian_path"], "no corrector and no noise"),
    ],
)
def test_what_makes_no_sense_is_one_line(points, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        sample.main([f"--workdir={points}", "--config.solver=adaptive_ode", *options])


def test_a_network_without_variances_is_refused(points):
    with pytest.raises(UserError, match="learned_variance=True"):
        sample.main([f"--workdir={points}", "--config.solver=learned_variance"])
