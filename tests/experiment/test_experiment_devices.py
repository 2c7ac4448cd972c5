"""The tiny digits have one loss curve, whatever the number of devices and the way to use them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.experiment.commands import CONFIG, FLAGS, ROOT, SMALL, rows

LAYOUTS = ["4", "8", "8 = 2 x 2 x 2", "4 pmap"]
pytestmark = pytest.mark.slow  # make test has the same of a toy: tests/training


def found_with(data_dir, *overrides):
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
def found(data_dir):
    return found_with(data_dir, *SMALL)


@pytest.fixture
def curves(found):
    return found["curves"]


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


def test_a_trained_state_lies_by_the_rules_of_its_network(found):
    """Parameters, average and Adam's moments; what no rule is about is cut over fsdp alone."""
    trees = ("params", "ema/main", "opt_state/0/0/mu", "opt_state/0/0/nu")
    block = "down0_0_residual"
    for tree in trees:
        assert found["cuts"][f"{tree}/{block}/conv_in/kernel"] == [None, None, "fsdp", "tensor"]
        assert found["cuts"][f"{tree}/{block}/conv_out/kernel"] == [None, None, "tensor", "fsdp"]
        assert found["cuts"][f"{tree}/{block}/conv_in/bias"] == ["fsdp"]
    over_tensor = [name for name, axes in found["cuts"].items() if "tensor" in axes]
    assert len(over_tensor) >= 4 * 3 * 4  # three matrices of four blocks at least
    assert all(name.startswith(trees) for name in over_tensor)


def test_a_state_of_many_devices_is_restored_on_one_bit_for_bit(found):
    assert found["restored"]


def test_losses_of_the_whole_network_are_those_of_one_device(data_dir):
    curves = found_with(data_dir)["curves"]
    for layout in LAYOUTS:
        assert_equal(curves[layout], curves["1"])
