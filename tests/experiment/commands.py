"""The real commands, started as a user would, and what a run folder holds afterwards."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parents[2]
CONFIG = f"{ROOT / 'configs' / 'digits.py'}:tiny"
STEPS, SAVE_EVERY = 10, 2
# One level without attention: tracing and compiling the network are most of the time here.
SMALL = ("--config.denoiser.network.multipliers=(1,)", "--config.denoiser.network.attention=()")
TRAIN = (f"--config={CONFIG}", f"--config.train.steps={STEPS}", *SMALL)
# Optimised code is not what is tested here, and compiling it is most of the time.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def start(main, *args, data_dir=None, devices=None, **options):
    """The process of `python -m experiments.<main>`; it works in `options["cwd"]`."""
    env = {**os.environ, "XLA_FLAGS": FLAGS, "PYTHONPATH": str(ROOT)}
    env |= {} if data_dir is None else {"TFDS_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-m", f"experiments.{main}", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, **pipes, **options)


def finish(process):
    """(exit code, stdout, lines of stderr without the progress)."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, [line for line in err.splitlines() if line[:1] != "["]


def run(main, *args, **options):
    return finish(start(main, *args, **options))


def train(workdir, data_dir, *args, **options):
    return start("train", *TRAIN, f"--workdir={workdir}", *args, data_dir=data_dir, **options)


def rows(path):
    """The whole rows of a JSONL file that may be growing."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def kill_at(process, workdir, row):
    """SIGKILL as soon as metrics.jsonl has so many rows."""
    deadline = time.monotonic() + 300
    while len(rows(workdir / "metrics.jsonl")) < row:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    code, _, errors = finish(process)
    assert (code, errors) == (-9, [])


def arrays(workdir, step=STEPS):
    """Every array of a checkpoint as it lies on disk, read without our code."""
    restored = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(step) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(restored)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_end(workdir, other):
    """Bitwise equal parameters, averages, optimiser state, counters, metrics and pictures."""
    mine, theirs = arrays(workdir), arrays(other)
    assert mine.keys() == theirs.keys()
    assert {"params", "ema", "opt_state", "step"} <= {name.split("'")[1] for name in mine}
    for name, array in mine.items():
        assert array.dtype == theirs[name].dtype and array.shape == theirs[name].shape
        assert array.tobytes() == theirs[name].tobytes(), name
    for name in ("metrics.jsonl", f"samples/step_{STEPS:08d}.png"):
        assert (workdir / name).read_bytes() == (other / name).read_bytes(), name


def flip_a_byte(workdir, step=STEPS, every=None):
    """In the middle of the largest file of a checkpoint's arrays, or one of `every` so many."""
    files = [p for p in (workdir / "checkpoints" / str(step) / "state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    for place in range(len(data) // 2 if every is None else 0, len(data), every or len(data)):
        data[place] ^= 0x10
    largest.write_bytes(data)
