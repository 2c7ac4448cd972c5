"""Real processes: killed, asked to stop, failing. What they leave behind is exact.

The same command is run again until it is done; the end has to be that of a run never stopped.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from scorediff.training.stored import read_manifest, steps

HERE = pathlib.Path(__file__).parent
STEPS = 60


def start(workdir, **arguments):
    # Optimised code is not what is tested here, and compiling it is most of the time.
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    given = [f"{name}={value}" for name, value in {"steps": STEPS, **arguments}.items()]
    return subprocess.Popen(
        [sys.executable, HERE / "training_toy.py", workdir, *given],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, [int(line) for line in out.split()], err


def run_and_send(workdir, number, rng, **arguments):
    """Sends the signal after a random number of further steps; (exit code, last step said)."""
    process = start(workdir, **arguments)
    wanted = rng.randint(1, 18)
    said = 0
    for _ in range(wanted):
        line = process.stdout.readline()
        if not line:
            break
        said = int(line)
    time.sleep(rng.random() * 0.05)
    process.send_signal(number)
    code, rest, err = finish(process)
    return code, max([said, *rest]), err


def final(workdir):
    """Everything that has to be equal: every array's fingerprint, and the bytes of the records."""
    last = steps(workdir / "checkpoints")[-1]
    manifest = read_manifest(workdir / "checkpoints" / str(last))
    records = {p.name: p.read_bytes() for p in workdir.glob("*.jsonl") if p.name != "timing.jsonl"}
    return last, manifest, records


@pytest.fixture(scope="module")
def undisturbed_workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    code, said, err = finish(start(workdir))
    assert code == 0, err
    assert said == list(range(1, STEPS + 1))
    return workdir


@pytest.fixture(scope="module")
def undisturbed(undisturbed_workdir):
    return final(undisturbed_workdir)


def test_the_undisturbed_run_leaves_what_it_should(undisturbed):
    last, manifest, records = undisturbed
    assert last == STEPS
    rows = [json.loads(line) for line in records["metrics.jsonl"].splitlines()]
    assert [row["step"] for row in rows] == list(range(5, STEPS + 1, 5))
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    kinds = {name.split("/")[0] for name in manifest["leaves"]}
    assert kinds == {"step", "params", "opt_state", "ema", "skipped", "skipped_in_row"}


def kill_until_done(workdir, kills, rng):
    for _ in range(kills):
        code, _, err = run_and_send(workdir, signal.SIGKILL, rng)
        assert code in (-signal.SIGKILL, 0), err
    return finish(start(workdir))


def test_killed_twice_and_stopped_once_ends_bitwise_the_same(undisturbed, tmp_path):
    rng = random.Random(11)
    for _ in range(2):
        code, _, err = run_and_send(tmp_path, signal.SIGKILL, rng, pause=0.01)
        assert code == -signal.SIGKILL, err
    code, said, err = run_and_send(tmp_path, signal.SIGTERM, rng, pause=0.01)
    assert code == 75, err
    assert f"stopped by SIGTERM after step {said}, saved" in err
    assert steps(tmp_path / "checkpoints")[-1] == said
    assert len(err.strip().splitlines()) == 1
    code, resumed, err = finish(start(tmp_path))
    assert code == 0, err
    assert resumed[0] == said + 1
    assert final(tmp_path) == undisturbed


@pytest.mark.slow
def test_damaged_newest_checkpoint_costs_one_line_and_nothing_else(
    undisturbed, undisturbed_workdir, tmp_path
):
    workdir = shutil.copytree(undisturbed_workdir, tmp_path / "run")
    last, before = steps(workdir / "checkpoints")[-1], steps(workdir / "checkpoints")[-2]
    arrays = (workdir / "checkpoints" / str(last) / "state").rglob("*")
    largest = max((p for p in arrays if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    code, resumed, err = finish(start(workdir))
    assert code == 0, err
    assert resumed[0] == before + 1
    assert len(err.strip().splitlines()) == 1
    assert f"put aside as quarantined-{last}-1" in err
    assert final(workdir) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_many_times_ends_bitwise_the_same(undisturbed, tmp_path, seed):
    code, _, err = kill_until_done(tmp_path, 8, random.Random(seed))
    assert code == 0, err
    assert final(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_bug_right_after_a_save_loses_nothing_and_ends_at_once(tmp_path):
    begin = time.monotonic()
    code, said, err = finish(start(tmp_path, every=4, fail_at=9))
    assert code == 70
    assert "RuntimeError: a bug" in err
    assert time.monotonic() - begin < 90
    assert said[-1] == 9
    assert steps(tmp_path / "checkpoints") == [4, 8]
    read_manifest(tmp_path / "checkpoints" / "8")
