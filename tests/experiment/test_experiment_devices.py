"""The tiny digits have one loss curve, whatever the number of devices and the way to use them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.experiment.commands import CONFIG, FLAGS, ROOT, rows


@pytest.fixture(scope="module")
def curves(data_dir):
    flags = f"--xla_force_host_platform_device_count=8 {FLAGS}"
    environment = {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(data_dir)}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("experiment_devices.py"), CONFIG],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT")[1])


@pytest.mark.parametrize("layout", ["4", "8", "4 pmap"])
def test_losses_are_those_of_one_device(curves, layout):
    """To the error of float32 sums taken in another order, over steps that build on each other."""
    np.testing.assert_allclose(curves[layout], curves["1"], rtol=3e-6)
    assert len(set(curves["1"])) == len(curves["1"])  # the steps do something


def test_one_of_eight_devices_trains_as_the_command_does(curves, undisturbed):
    logged = [row["loss"] for row in rows(undisturbed / "metrics.jsonl")][: len(curves["1"])]
    np.testing.assert_allclose(curves["1"], logged, rtol=3e-6)
