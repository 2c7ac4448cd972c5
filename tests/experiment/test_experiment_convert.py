"""python -m experiments.convert: published models to runs and back, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import convert, sample
from scorediff.errors import UserError
from scorediff.interop import files

PARITY = Path(__file__).parents[1] / "fixtures" / "parity"


def said(capsys, *argv):
    convert.main([str(arg) for arg in argv])
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The fixture pipeline as a run."""
    folder = tmp_path_factory.mktemp("convert") / "ddpm"
    convert.main([str(PARITY / "pipelines" / "ddpm"), str(folder)])
    return folder


@pytest.mark.slow
def test_a_pipeline_becomes_a_run_that_is_sampled(run_folder, tmp_path):
    out = tmp_path / "x.npz"
    overrides = ["--config.sampling.nfe=3", "--config.sampling.batch_size=2"]
    sample.main([f"--workdir={run_folder}", "--n=2", f"--out={out}", *overrides])
    with np.load(out) as drawn:
        assert drawn["x0"].shape[0] == 2 and np.isfinite(drawn["x0"]).all()


@pytest.mark.slow
def test_the_way_back_gives_every_tensor_bit_for_bit(run_folder, tmp_path, capsys):
    there = tmp_path / "hub"
    assert "UNet2DModel" in said(capsys, run_folder, there, "--to=UNet2DModel")
    original = files.read_folder(PARITY / "pipelines" / "ddpm" / "unet")
    written = files.read_folder(there)
    assert set(written) == set(original)
    assert all(np.array_equal(written[name], original[name]) for name in original)


@pytest.mark.slow
def test_a_bare_file_of_a_paper_becomes_another_layout(tmp_path, capsys):
    source = PARITY / "original" / "dit"
    there = tmp_path / "dit"
    said_ = said(
        capsys,
        *(source / "train_checkpoint.pt", there, "--part=ema", "--to=dit/DiT"),
        f"--arguments={source / 'config.json'}",
    )
    assert "dit/DiT" in said_
    original = files.read_folder(source)
    written = files.read_folder(there)
    assert all(np.array_equal(written[n], a) for n, a in original.items() if n != "pos_embed")


@pytest.mark.slow
def test_nothing_is_overwritten(run_folder):
    with pytest.raises(UserError, match="there already"):
        convert.main([str(PARITY / "pipelines" / "ddpm"), str(run_folder)])


@pytest.mark.slow
def test_a_class_that_cannot_say_it_is_refused(run_folder, tmp_path):
    with pytest.raises(UserError, match="not a class for a UNet"):
        convert.main([str(run_folder), str(tmp_path / "no"), "--to=SD3Transformer2DModel"])
    assert not (tmp_path / "no").exists()


def test_a_missing_parameter_is_named(tmp_path):
    folder = tmp_path / "unet"
    shutil.copytree(PARITY / "pipelines" / "ddpm" / "unet", folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors, _ = files.read_safetensors(path)
    del tensors["conv_in.bias"]
    path.unlink()
    files.write_safetensors(path, tensors)
    scheduler = tmp_path / "s.json"
    scheduler.write_text(json.dumps({"beta_schedule": "linear"}))
    with pytest.raises(UserError, match=r"lacks: conv_in\.bias"):
        convert.main([str(folder), str(tmp_path / "run"), f"--scheduler={scheduler}"])
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_process_asks_for_its_scheduler(tmp_path):
    with pytest.raises(UserError, match="scheduler"):
        convert.main([str(PARITY / "pipelines" / "ddpm" / "unet"), str(tmp_path / "run")])
