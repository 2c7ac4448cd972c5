"""python -m experiments.likelihood on tiny runs: what it says, stores and refuses."""

import shutil

import pytest

from experiments import likelihood
from scorediff.configfile import load_run
from scorediff.errors import UserError
from scorediff.evaluation.density import Protocol
from scorediff.evaluation.result import read_results
from scorediff.experiment import Experiment
from scorediff.likelihood import likelihood as measure
from tests.experiment.commands import STEPS

QUICK = ("--n=4", "--config.solver=heun", "--config.sampling.nfe=4")


@pytest.fixture
def workdir(points, tmp_path):
    return shutil.copytree(points, tmp_path / "run")


@pytest.fixture
def digits(undisturbed, data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    return shutil.copytree(undisturbed, tmp_path / "run")


def test_the_number_is_printed_and_stored_with_its_protocol(workdir, capsys):
    likelihood.main([f"--workdir={workdir}", *QUICK, "--divergence=exact", "--seed=3"])
    out = capsys.readouterr().out
    (result,) = read_results(workdir / "results.jsonl")
    assert (result.solver, result.nfe, result.rows, result.grid) == (
        "heun",
        4,
        4,
        "karras(rho=7.0)",
    )
    assert (result.step, result.ema, result.guidance_scale) == (4, "main", 1.0)
    assert (result.samples, result.seeds) == (4, (3,))
    assert result.rules["given"] == "label" and result.rules["divergence"] == "exact"
    assert result.rules["dequantisation"] == "none, offset +0.0000 bits per dimension"
    assert result.reference == "4 examples of GaussianMixture"
    assert set(result.numbers) == {"bits_per_dim", "standard_error"}
    assert str(result) in out and "guidance is off here" not in out
    assert "Bits per dimension" in (workdir / "report.html").read_text()
    assert "experiments.likelihood" in (workdir / "commands.txt").read_text()


@pytest.mark.slow
def test_whole_numbers_have_the_bound_too(digits, capsys):
    likelihood.main([f"--workdir={digits}", *QUICK, "--times=3", "--config.sampling.batch_size=4"])
    out = capsys.readouterr().out
    assert "guidance is off here (the config samples with 1.5)" in out
    ode, bound = read_results(digits / "results.jsonl")
    assert [ode.solver, bound.solver] == ["heun", "elbo"]
    assert (ode.nfe, ode.rows, bound.nfe, bound.rows) == (4, 4, 4, None)
    assert ode.rules["dequantisation"] == "uniform, offset +3.0875 bits per dimension"
    assert ode.rules["divergence"] == "hutchinson, 1 probes"
    assert bound.rules["dequantisation"] == "decoder, offset +0.0000 bits per dimension"
    for result in (ode, bound):
        assert (result.step, result.samples, result.guidance_scale) == (STEPS, 4, 1.0)
        assert result.reference == "4 examples of digits test"
        assert str(result) in out
    assert ode.reference_hash == bound.reference_hash


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split=tets"], "split 'tets' cannot be read"),
        (["--methods=elbo", "--config.sampling.t_end=0.1"], "process's own t_min and t_max"),
        (["--config.loss.to_x0.high=8.0"], "range 0 to 8"),
    ],
)
def test_what_does_not_fit_images_is_one_line(digits, options, message):
    with pytest.raises(UserError, match=message):
        likelihood.main([f"--workdir={digits}", *QUICK, *options])
    assert read_results(digits / "results.jsonl") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n=1"], "--n must be at least 2"),
        (["--split=test"], "a Sampled source has no splits"),
        (["--methods=bound"], "--methods must be one of ode, elbo, got 'bound'"),
        (["--methods=elbo"], "these data are real"),
        (["--config.solver=ancestral"], "cannot add ancestral noise"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_stores_nothing(workdir, options, message):
    with pytest.raises(UserError, match=message):
        likelihood.main([f"--workdir={workdir}", *QUICK, *options])
    assert read_results(workdir / "results.jsonl") == []


def test_a_run_without_a_data_set_says_so(workdir):
    config = load_run(workdir, None)
    with config.unlocked():
        del config.data.pipeline
    with pytest.raises(UserError, match=r"config\.data has no pipeline"):
        measure(Experiment(config=config), workdir, Protocol())
