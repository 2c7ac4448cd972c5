"""Settings of the whole suite: a lasting compilation cache, and float64 on request."""

import os
import sys
from pathlib import Path

# In the environment, so that the processes a test starts share the cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest

# Files of a minute and more, which start first so that no worker is left with one at the end.
LONG = (
    "test_networks.py",
    "test_training_resume.py",
    "test_training_devices.py",
    "test_experiment_commands.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture
def x64():
    """Float64 in JAX for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def exit_raises(monkeypatch):
    """A command that fails raises SystemExit, where it would end this process at once."""
    monkeypatch.setattr(os, "_exit", sys.exit)
