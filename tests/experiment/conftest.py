"""One prepared data set and one undisturbed run of the tiny digits, shared by these tests.

The workers of one test run share them too: the first that asks makes them, the others wait.
"""

import os

import pytest
from filelock import FileLock

from scorediff.configfile import load_config, load_run
from scorediff.experiment import Experiment, train
from tests.experiment import commands


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """(name, make) -> a folder of this test run, made once by make(folder)."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def once(name, make):
        folder, finished = base / name, base / f"{name}.finished"
        with FileLock(str(base / f"{name}.lock")):
            if not finished.exists():
                make(folder)
                finished.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def data_dir(shared):
    def make(folder):
        code, out, errors = commands.run("prepare_data", "digits", f"--data_dir={folder}")
        assert code == 0, errors
        assert "train 1,497, test 300 examples" in out

    return shared("data", make)


@pytest.fixture(scope="session")
def undisturbed(shared, data_dir):
    """A finished run folder; not to be written to."""

    def make(folder):
        code, _, errors = commands.finish(commands.train(folder, data_dir))
        assert (code, errors) == (0, [])

    return shared("undisturbed", make)


@pytest.fixture
def tiny(data_dir, monkeypatch):
    """Overrides -> the tiny digits experiment, in this process."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    return lambda *overrides: Experiment(
        config=load_config(commands.CONFIG, [*commands.SMALL, *overrides])
    )


@pytest.fixture
def trained(undisturbed):
    """Overrides -> the experiment of the undisturbed run, out of its config.json."""
    return lambda *overrides: Experiment(config=load_run(undisturbed, None, overrides))


@pytest.fixture(scope="session")
def points(shared):
    """A run of the tiny mixture after four steps; not to be written to."""

    def make(folder):
        config = load_config(
            f"{commands.ROOT}/configs/gmm2d.py:tiny",
            ["--config.train.steps=4", "--config.train.evaluate_every=none"],
        )
        train(Experiment(config=config), folder)

    return shared("points", make)
