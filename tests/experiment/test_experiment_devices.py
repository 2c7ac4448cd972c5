"""The tiny digits have one loss curve, whatever the number of devices and the way to use them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.experiment.commands import CONFIG, FLAGS, ROOT, SMALL, rows

LAYOUTS = ["4", "8", "4 pmap"]
pytestmark = pytest.mark.slow  # make test has the same of a toy: tests/training


def curves_of(data_dir, *overrides):
    flags = f"--xla_force_host_platform_device_count=8 {FLAGS}"
    environment = {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(data_dir)}
    program = Path(__file__).with_name("experiment_devices.py")
    done = subprocess.run(
        [sys.executable, program, CONFIG, "--config.train.steps=10", *overrides],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT")[1])


@pytest.fixture(scope="module")
def curves(data_dir):
    return curves_of(data_dir, *SMALL)


def assert_equal(curve, other):
    """To the error of float32 sums taken in another order, over steps that build on each other."""
    np.testing.assert_allclose(curve, other, rtol=3e-6)
    assert len(set(curve)) == len(curve)  # the steps do something


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_those_of_one_device(curves, layout):
    assert_equal(curves[layout], curves["1"])


def test_one_of_eight_devices_trains_as_the_command_does(curves, undisturbed):
    logged = [row["loss"] for row in rows(undisturbed / "metrics.jsonl")]
    assert_equal(curves["1"], logged[: len(curves["1"])])


def test_losses_of_the_whole_network_are_those_of_one_device(data_dir):
    curves = curves_of(data_dir)
    for layout in LAYOUTS:
        assert_equal(curves[layout], curves["1"])
