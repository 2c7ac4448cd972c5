"""The command that prepares data: what it prints, its exit codes, and what it leaves behind."""

import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from experiments import prepare_data
from scorediff import commandline
from scorediff.data.source import TFDS

pytestmark = pytest.mark.usefixtures("exit_raises")


def run(capsys, *argv):
    """Exit code, standard output and standard error of the command."""
    with pytest.raises(SystemExit) as ended:
        commandline.run(prepare_data.main, argv)
    return ended.value.code, *capsys.readouterr()


def test_digits_are_prepared_once(capsys, tmp_path):
    command = ("digits", f"--data_dir={tmp_path}")
    code, out, err = run(capsys, *command)
    assert code == 0 and "train 1,497, test 300" in out and "preparing" in err
    assert len(TFDS(name="digits", data_dir=str(tmp_path)).open()) == 1497
    (records,) = (tmp_path / "digits" / "1.0.0").glob("*train*")
    written = records.stat().st_mtime_ns
    code, out, err = run(capsys, *command)
    assert code == 0 and "already prepared" in out and err == ""
    assert records.stat().st_mtime_ns == written


def test_npz_is_prepared_under_its_title(capsys, tmp_path):
    np.savez(tmp_path / "x.npz", image=np.zeros((3, 2, 2, 1), np.uint8))
    code, out, _ = run(
        capsys, "npz", f"--data_dir={tmp_path}", f"--path={tmp_path}/x.npz", "--title=zeros"
    )
    assert code == 0 and "npz/zeros/1.0.0: train 3 examples" in out
    assert len(TFDS(name="npz/zeros", data_dir=str(tmp_path)).open()) == 3


def test_broken_image_is_one_line_and_leaves_nothing(capsys, tmp_path):
    root = tmp_path / "pets"
    (root / "train" / "cat").mkdir(parents=True)
    for i in range(3):
        PIL.Image.new("RGB", (4, 4)).save(root / "train" / "cat" / f"{i}.png")
    broken = root / "train" / "cat" / "1.png"
    broken.write_bytes(b"no image")
    code, out, err = run(capsys, "image_folder", f"--path={root}", f"--data_dir={tmp_path}/data")
    assert code == 2 and out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert str(broken) in line and "Traceback" not in err
    assert not (tmp_path / "data" / "image_folder").exists()
    broken.unlink()
    assert run(capsys, "image_folder", f"--path={root}", f"--data_dir={tmp_path}/data")[0] == 0


@pytest.mark.parametrize(
    "argv, message",
    [
        (["digts"], "did you mean digits?"),
        (["digits", "--datadir=x"], "did you mean --data_dir?"),
        (["npz"], "--path is needed"),
        (["digits", "--path=x"], "--path is not used"),
        (["image_folder", "--path=/missing"], "/missing: no such folder"),
        (["mnist", "--manual_dir=/missing"], "--manual_dir=/missing: no such folder"),
        ([], "NAME"),
    ],
)
def test_mistakes_end_in_one_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    code, out, err = run(capsys, *argv)
    errors = [line for line in err.splitlines() if not line.startswith("preparing ")]
    assert code == 2 and out == "" and len(errors) == 1 and message in errors[0]


def test_folder_that_cannot_be_written_is_a_storage_error(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "digits", f"--data_dir={tmp_path}/file/data")
    assert code == 74 and f"{tmp_path}/file/data" in err.splitlines()[-1]


def test_help_does_not_wait_for_heavy_imports():
    check = (
        "import sys; from experiments import prepare_data;"
        "heavy = {'jax', 'grain', 'tensorflow_datasets'} & set(sys.modules);"
        "assert not heavy, heavy; prepare_data.main(['--help'])"
    )
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "digits" in result.stdout and time.monotonic() - start < 5  # 0.2 s on an idle machine
