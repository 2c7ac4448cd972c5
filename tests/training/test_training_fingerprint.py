"""Fingerprints: every single bit is seen, device and host agree, names are readable."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from scorediff.training.fingerprint import leaf_names, marks
from scorediff.training.state import TrainState

DTYPES = [np.float32, np.int32, ml_dtypes.bfloat16, np.float16, np.uint8, np.bool_]


def array(dtype, shape=(3, 5, 2)):
    return (np.random.default_rng(0).normal(size=shape) * 3).astype(dtype)


def mark(x):
    return marks({"x": x})["x"].fingerprint


@pytest.mark.parametrize("dtype", DTYPES)
def test_device_and_host_agree(dtype):
    x = array(dtype)
    assert mark(x) == mark(jnp.asarray(x))


def test_every_single_bit_flip_is_seen():
    x = array(np.float32)
    clean = mark(x)
    for bit in range(x.nbytes * 8):
        flipped = np.frombuffer(x.tobytes(), np.uint8).copy()
        flipped[bit // 8] ^= 1 << (bit % 8)
        assert mark(flipped.view(np.float32).reshape(x.shape)) != clean


def test_each_half_alone_sees_a_flip_of_the_highest_bit():
    x = np.zeros(64, np.float32)
    clean = mark(x)
    for i in range(x.size):
        y = x.copy()
        y[i] = -0.0
        assert mark(y)[:8] != clean[:8]
        assert mark(y)[8:] != clean[8:]


def test_swapped_elements_are_seen():
    x = np.arange(1, 101, dtype=np.float32)
    clean = mark(x)
    for i in range(99):
        y = x.copy()
        y[[i, i + 1]] = y[[i + 1, i]]
        assert mark(y) != clean


def test_finite_is_told_apart():
    tree = {"good": jnp.ones(3), "nan": jnp.array([1.0, jnp.nan]), "inf": np.array([np.inf])}
    assert {name: m.finite for name, m in marks(tree).items()} == {
        "good": True,
        "nan": False,
        "inf": False,
    }


def test_names_of_a_train_state():
    state = TrainState.create({"Dense_0": {"kernel": jnp.ones((2, 2))}}, optax.adam(1e-3), {})
    names = leaf_names(state)
    assert "params/Dense_0/kernel" in names
    assert "opt_state/0/mu/Dense_0/kernel" in names
    assert len(names) == len(jax.tree.leaves(state))


@pytest.mark.slow
def test_many_sharded_arrays_are_looked_at_without_a_deadlock():
    """Programs that reduce over CPU devices must not be in flight together; in a real process."""
    program = (
        "import jax, numpy as np\n"
        "from scorediff.training.fingerprint import marks\n"
        "from scorediff.training.mesh import initialise, lay_out, make_mesh\n"
        "mesh = make_mesh(fsdp=2)\n"
        "init = lambda key: {str(i): jax.random.normal(key, (8, 4 + i % 3)) for i in range(90)}\n"
        "key = jax.random.key(0)\n"
        "state = initialise(init, key, lay_out(jax.eval_shape(init, key), mesh))\n"
        "for _ in range(5):\n"
        "    assert marks(state) == marks(jax.tree.map(np.asarray, state))\n"
        "print('equal')\n"
    )
    flags = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "equal\n", done.stderr[-500:]
