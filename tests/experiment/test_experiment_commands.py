"""train, evaluate and sample as a newcomer runs them, and what they leave in the run folder."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from scorediff.evaluation.result import read_results
from tests.experiment.commands import STEPS, rows, run


@pytest.fixture(scope="module")
def evaluated(undisturbed, data_dir, tmp_path_factory):
    """A copy of the run, moved and measured; what the command said."""
    workdir = shutil.copytree(undisturbed, tmp_path_factory.mktemp("moved") / "run")
    fewer = "--config.evaluation.train.split=train[:400]"
    code, out, errors = run("evaluate", f"--workdir={workdir}", fewer, data_dir=data_dir)
    assert (code, errors) == (0, [])
    return workdir, out


def test_training_leaves_its_config_metrics_checkpoints_and_loss_curve(undisturbed):
    assert json.loads((undisturbed / "config.json").read_text())["train"]["steps"] == STEPS
    found = rows(undisturbed / "metrics.jsonl")
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    assert found[-1]["loss"] < found[0]["loss"]
    assert sorted(p.name for p in (undisturbed / "checkpoints").iterdir()) == ["10", "8"]
    assert [p.name for p in sorted((undisturbed / "samples").iterdir())] == [
        "step_00000006.png",
        "step_00000010.png",
    ]
    assert Image.open(undisturbed / "loss.png").size > (100, 100)


def test_pictures_have_the_sizes_they_should(evaluated):
    workdir, _ = evaluated
    width, height = Image.open(workdir / "samples.png").size
    assert width > height > 0  # ten classes in columns, eight rows
    width, height = Image.open(workdir / "strip.png").size
    assert width > 0 and height > 0
    assert (workdir / "neighbours.png").exists()


def test_the_report_is_one_page_that_needs_nothing_else(evaluated):
    workdir, out = evaluated
    assert f"report: {workdir / 'report.html'}" in out
    page = (workdir / "report.html").read_text()
    sources = re.findall(r'\b(?:src|href)\s*=\s*["\']?([^"\'\s>]+)', page)
    assert len(sources) == 4  # samples, strip, neighbours, loss
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in page and "url(" not in page and "@import" not in page
    for command in ("experiments.train", "experiments.evaluate"):
        assert command in page


def test_every_result_carries_its_protocol(evaluated):
    workdir, out = evaluated
    results = read_results(workdir / "results.jsonl")
    assert [r.solver for r in results] == ["ddim", "ancestral", "dpmpp_multistep", "heun"]
    # two evaluations for each of Heun's first two steps and one for the last, to data
    assert [r.rows for r in results] == [5, 5, 5, 5]
    assert [r.nfe for r in results] == [10, 10, 10, 10]  # each with and without its class
    for result in results:
        assert (result.guidance_scale, result.seeds, result.samples) == (1.5, (0, 1), 80)
        assert (result.step, result.ema, result.grid) == (STEPS, "main", "logsnr")
        assert {"frechet", "precision", "recall", "recognised", "near_train"} <= set(result.numbers)
        assert result.floor["frechet"].mean < result.numbers["frechet"].mean
        assert all(result.numbers[name].n == 2 for name in result.numbers)
        assert result.reference.startswith("400 real training images")
        numbers, protocol = str(result).split(" | ")
        assert numbers in out and protocol.partition(" on grid ")[2] in out
    assert len({r.config_hash for r in results}) == len({r.reference_hash for r in results}) == 1


def test_sampling_needs_the_saved_config_only(undisturbed, tmp_path):
    """Another folder, no data set, another solver, and no configs/*.py in what is saved."""
    workdir = tmp_path / "elsewhere"
    for name in ("checkpoints", "config.json"):
        source = undisturbed / name
        target = workdir / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    assert "configs" not in (workdir / "config.json").read_text()
    code, out, errors = run(
        "sample", "--workdir=elsewhere", "--n=12", "--seed=3", "--config.solver=heun",
        cwd=tmp_path, data_dir=tmp_path / "none",
    )  # fmt: skip
    assert (code, errors) == (0, [])
    assert out == "12 samples at 10 network evaluations each: elsewhere/samples.npz\n"
    with np.load(workdir / "samples.npz", allow_pickle=False) as file:
        assert file["x0"].shape == (12, 8, 8, 1) and file["x0"].dtype == np.float32
        assert np.isfinite(file["x0"]).all()
        assert file["label"].tolist() == [*range(10), 0, 1]
    assert (workdir / "config.json").read_bytes() == (undisturbed / "config.json").read_bytes()
