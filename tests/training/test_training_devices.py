"""The result does not depend on how many devices share the work, nor on how."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from scorediff.errors import UserError
from scorediff.training.mesh import leaf_spec, make_mesh
from scorediff.training.parallel import compile_step

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, HERE / "training_devices.py", tmp_path_factory.mktemp("checkpoints")],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT")[1])


@pytest.mark.parametrize(
    "layout",
    ["4", "8", "8 = 2 x 4", "4 accumulated", "4 pmap", "4 pmap accumulated"],
)
def test_losses_equal_those_of_one_device(result, layout):
    """To the error of float32 sums taken in another order, over steps that build on each other."""
    one = np.array(result["curves"]["1"])
    np.testing.assert_allclose(result["curves"][layout], one, rtol=2e-6)
    assert one[-1] < one[0]


@pytest.mark.parametrize("mesh", ["one", "two", "eight"])
def test_restore_on_another_mesh_is_bitwise(result, mesh):
    assert result["resharded"][mesh] == result["resharded"]["saved"]


def test_reading_an_average_on_another_mesh_is_bitwise(result):
    saved = result["resharded"]["saved"]
    average = result["resharded"]["average"]
    assert len(average) == 4
    assert average == {name: saved[name] for name in average}


def test_fsdp_cuts_parameters_averages_and_moments(result):
    assert result["shares"] == {"params": [4, 4], "ema": [4, 4], "opt_state": [4, 4]}


@pytest.mark.parametrize(
    "shape, size, spec",
    [
        ((3, 3, 64, 128), 8, PartitionSpec(None, None, None, "fsdp")),
        ((3, 3, 128, 64), 8, PartitionSpec(None, None, "fsdp")),
        ((64, 64), 4, PartitionSpec(None, "fsdp")),
        ((7, 12), 4, PartitionSpec(None, "fsdp")),
        ((7, 9), 4, PartitionSpec()),
        ((), 4, PartitionSpec()),
        ((0, 8), 1, PartitionSpec()),
    ],
)
def test_rule_cuts_the_largest_dimension_that_divides(shape, size, spec):
    assert leaf_spec(shape, size) == spec


def test_mesh_and_mode_mistakes_are_named():
    with pytest.raises(UserError, match="fsdp=3 does not divide the 1 devices"):
        make_mesh(fsdp=3, devices=jax.devices()[:1])
    with pytest.raises(UserError, match="got 'vmap'"):
        compile_step(None, make_mesh(), None, mode="vmap")
