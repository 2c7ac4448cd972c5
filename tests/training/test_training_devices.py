"""The result does not depend on how many devices share the work, nor on how."""

import json
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from scorediff.errors import UserError
from scorediff.training.mesh import (
    AXES,
    abstract_state,
    batch_sharding,
    batch_shares,
    check_processes,
    leaf_spec,
    make_mesh,
)
from scorediff.training.parallel import compile_step
from scorediff.training.plan import Plan
from scorediff.training.state import TrainState

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
    ["4", "8", "8 = 2 x 4", "8 = 2 x 2 x 2", "4 accumulated", "4 pmap", "4 pmap accumulated"],
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


def test_averages_and_moments_are_cut_as_their_parameters(result):
    """By what is said of a parameter, or along the largest dimension; all over 2 x 2 devices."""
    for kernel, share in {"first/kernel": [2, 8], "second/kernel": [8, 4]}.items():
        found = {n: s for n, s in result["shares"].items() if n.endswith(kernel)}
        assert {n.split("/")[-3] for n in found} == {"params", "slow", "power", "mu", "nu"}
        assert all(s == share for s in found.values())


def test_a_leaf_is_cut_as_its_own_parameter_only():
    """Not as one whose path is an end of its own, nor where a moment has lost an axis."""

    def init(key):
        params = {"out": {"w": jnp.zeros((8, 8))}, "layer": {"out": {"w": jnp.zeros((8, 8))}}}
        rows = jax.tree.map(lambda w: w[0], params)
        return TrainState.create(params, optax.identity(), {}).replace(opt_state=(params, rows))

    mesh = AbstractMesh((2, 2, 2), AXES)
    said = {"out/w": PartitionSpec("tensor", "fsdp")}
    state = abstract_state(init, mesh, lambda params, sizes: said)
    for tree in (state.params, state.opt_state[0]):
        assert tree["out"]["w"].sharding.spec == said["out/w"]
        assert tree["layer"]["out"]["w"].sharding.spec == PartitionSpec(None, "fsdp")
    assert state.opt_state[1]["out"]["w"].sharding.spec == PartitionSpec("fsdp")


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
    for fsdp, tensor in ((3, 1), (1, 2), (0, 1)):
        with pytest.raises(UserError, match=f"fsdp={fsdp} times tensor={tensor} does not divide"):
            make_mesh(fsdp=fsdp, tensor=tensor, devices=jax.devices()[:1])
    with pytest.raises(UserError, match="got 'vmap'"):
        compile_step(None, make_mesh(), None, mode="vmap")
    for sizes in ({"fsdp": 2}, {"tensor": 2}):
        (said,) = (f"{name}={size}" for name, size in sizes.items())
        with pytest.raises(UserError, match=f"'pmap' keeps a copy per device, so not .*{said}"):
            Plan(steps=1, mode="pmap", **sizes)


def test_devices_along_tensor_take_the_same_examples():
    mesh = AbstractMesh((2, 2, 2), AXES)
    assert batch_sharding(mesh).shard_shape((16, 3)) == (4, 3)
    assert batch_shares(mesh) == 4


def test_devices_that_share_examples_belong_to_one_process():
    def mesh(*processes):
        devices = np.array([SimpleNamespace(process_index=i) for i in processes])
        return SimpleNamespace(devices=devices.reshape(-1, 1, 2), shape={"tensor": 2})

    check_processes(mesh(0, 0, 1, 1))
    with pytest.raises(UserError, match="tensor=2 devices in a row belong to several processes"):
        check_processes(mesh(0, 1, 0, 1))
