"""python -m experiments.restore on tiny runs: picture, numbers and what is refused."""

import shutil

import pytest
from PIL import Image

from experiments import restore
from scorediff.errors import UserError
from scorediff.evaluation.result import read_results

TASK = ("--task=random_pixels", "--method=pigdm", "--noise_std=0.1")


@pytest.fixture
def workdir(points, tmp_path):
    return shutil.copytree(points, tmp_path / "run")


def test_numbers_are_printed_and_stored_with_task_and_method(workdir, capsys):
    restore.main([f"--workdir={workdir}", *TASK, "--n=5", "--config.solver=ddim"])
    out = capsys.readouterr().out
    (result,) = read_results(workdir / "results.jsonl")
    assert (result.solver, result.nfe, result.rows, result.samples) == ("ddim", 5, 5, 5)
    asked = {"task": "random_pixels", "method": "pigdm", "noise_std": "0.1", "given": "label"}
    assert asked.items() <= result.rules.items()
    assert set(result.numbers) == {"rmse", "inconsistency"}
    assert result.protocol() in out and "picture" not in out  # points are no images
    assert not (workdir / "restored.png").exists()


@pytest.mark.slow
def test_images_are_drawn_and_need_no_class(undisturbed, data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    options = ["--given=null", "--config.sampling.guidance_scale=1", "--n=3"]
    options += ["--task=super_resolve:factor=2", "--method=ddrm"]
    restore.main([f"--workdir={workdir}", *options, "--config.sampling.batch_size=3"])
    (result,) = read_results(workdir / "results.jsonl")
    assert (result.solver, result.nfe, result.rows) == ("ddrm", 5, 5)
    assert result.rules["given"] == "null condition"
    assert result.numbers["inconsistency"].mean < 1e-5
    assert {"rmse", "psnr", "psnr_of_measured"} <= set(result.numbers)
    width, height = Image.open(workdir / "restored.png").size
    assert height == pytest.approx(3 * 66, abs=4) and width > 3 * 66
    assert "Restored" in (workdir / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task=inpaint"], "no image"),
        (["--method=dsp"], "no method is called 'dsp'; did you mean dps"),
        (["--given=nul"], "--given must be one of own, null"),
        (["--given=null", "--config.sampling.guidance_scale=2"], "set guidance_scale=1"),
        (["--n=0"], "--n must be at least 1"),
        (["--noise_std=-1"], "noise_std must be at least 0"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_stores_nothing(workdir, options, message):
    with pytest.raises(UserError, match=message):
        restore.main([f"--workdir={workdir}", *TASK, *options])
    assert read_results(workdir / "results.jsonl") == []
