"""One prepared data set and one undisturbed run of the tiny digits, shared by these tests."""

import pytest

from scorediff.configfile import load_config, load_run
from scorediff.experiment import Experiment
from tests.experiment import commands


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    code, out, errors = commands.run("prepare_data", "digits", f"--data_dir={folder}")
    assert code == 0, errors
    assert "train 1,497, test 300 examples" in out
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, data_dir):
    """A finished run folder; not to be written to."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    code, _, errors = commands.finish(commands.train(workdir, data_dir))
    assert (code, errors) == (0, [])
    return workdir


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
