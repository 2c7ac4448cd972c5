"""What a user gets wrong: one line that says what and where, and nothing that was saved is lost."""

import json
import re
import shutil
import subprocess
import sys
import time

import jax
import pytest

from scorediff import experiment as wiring
from scorediff.configfile import load_config, load_run
from scorediff.errors import StorageError, UserError
from scorediff.experiment import Experiment
from scorediff.training.stored import steps
from tests.experiment import commands
from tests.experiment.commands import CONFIG, ROOT, STEPS

MAINS = ("train", "evaluate", "sample", "prepare_data")


def refused(call, error=UserError):
    """The one line that `call` ends with."""
    with pytest.raises(error) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    return line


def contents(folder):
    """Name and bytes of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# The command line


def quickest(main, *args, tries=3):
    """(seconds, result) of the fastest of several starts: this machine may be busy."""
    found = []
    for _ in range(tries):
        begin = time.perf_counter()
        done = commands.run(main, *args)
        found.append((time.perf_counter() - begin, done))
    return min(found)


@pytest.mark.parametrize("main", MAINS)
def test_help_answers_in_under_a_second(main):
    seconds, (code, out, errors) = quickest(main, "--help")
    assert (code, errors) == (0, [])
    assert out.startswith(f"usage: python -m experiments.{main}")
    assert seconds < 1


@pytest.mark.parametrize("main", MAINS)
def test_a_mistyped_flag_answers_in_under_a_second(main):
    wrong, meant = {
        "prepare_data": (["digits", "--data_dri=x"], "--data_dir"),
        "sample": (["--sede=3"], "--seed"),
    }.get(main, (["--wrkdir=x"], "--workdir"))
    seconds, (code, out, errors) = quickest(main, *wrong)
    assert (code, out) == (2, "")
    assert len(errors) == 1 and errors[0].startswith("error: ") and meant in errors[0]
    assert seconds < 1


@pytest.mark.parametrize("main", [*MAINS, "likelihood", "restore"])
def test_neither_imports_jax(main):
    command = [sys.executable, "-X", "importtime", "-m", f"experiments.{main}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "scorediff.commandline" in imported
    assert not imported & {"jax", "flax", "numpy", "tensorflow_datasets"}


def test_a_typo_deep_in_an_override_is_one_line_and_leaves_no_folder(tmp_path):
    override = "--config.optimizer.learning_rate.peak_valeu=1e-3"
    code, out, errors = commands.run(
        "train", f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", override
    )
    assert (code, out) == (2, "")
    assert errors == [
        "error: config.optimizer.learning_rate.peak_valeu: no such field; "
        "did you mean config.optimizer.learning_rate.peak_value?"
    ]
    assert not (tmp_path / "run").exists()


# The config


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("denoiser.network.chanels=8", ("config.denoiser.network.channels",)),
        ("train.steps=many", ("config.train.steps", "int", "'many'")),
        ("train.steps=2.5", ("config.train.steps", "int")),
        ("denoiser.network.multipliers=3", ("config.denoiser.network.multipliers",)),
        ("denoiser.process=VPCosin", ("config.denoiser.process", "VPCosine")),
        ("solver=os:system", ("config.solver", "os:system")),
    ],
)
def test_a_wrong_override_names_its_path(override, said):
    line = refused(lambda: load_config(CONFIG, [f"--config.{override}"]))
    for part in said:
        assert part in line


def test_an_unknown_variant_names_those_there_are():
    line = refused(lambda: load_config(f"{ROOT}/configs/digits.py:huge"))
    assert "full and tiny, not 'huge'" in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps=0", ("config.train", "steps must be at least 1, got 0")),
        ("sampling.nfe=0", ("nfe", "0")),
        ("sampling.ema=mian", ("config.sampling.ema", "'mian'", "main")),
        ("sampling.batch_size=0", ("batch_size", "0")),
        ("sampling.t_end=2.0", ("t_start", "t_end=2.0")),
        ("data.shape=(9,9,1)", ("config.data.shape", "(9, 9, 1)", "(8, 8, 1)")),
        ("denoiser.network.multipliers=(1,2,2,2,2)", ("8 x 8", "UNet.multipliers")),
        ("data.pipeline.batch_size=0", ("config.data.pipeline", "batch_size 0")),
        ("train.fsdp=7", ("fsdp=7", "1 devices")),
        ("train.tensor=2", ("tensor=2", "1 devices")),
    ],
)
def test_what_does_not_fit_together_is_refused_before_training(tiny, tmp_path, override, said):
    line = refused(lambda: wiring.train(tiny(f"--config.{override}"), tmp_path / "run"))
    for part in said:
        assert part in line
    assert not (tmp_path / "run").exists()


def test_guidance_needs_a_model_with_classes(tiny, tmp_path):
    experiment = tiny("--config.loss.drop_rate=0")
    with experiment.config.unlocked():
        experiment.config.loss.null_cond = {}
        experiment.config.loss.cond_keys = ()
        experiment.config.denoiser.network.num_classes = None
    line = refused(lambda: wiring.train(experiment, tmp_path / "run"))
    assert "guidance scale 1.5 needs a class-conditional model" in line
    assert not (tmp_path / "run").exists()


def test_a_config_that_lacks_a_field_is_refused():
    config = load_config(CONFIG)
    with config.unlocked():
        del config.ema
    assert "ema" in refused(lambda: Experiment(config=config))


def test_a_hostile_saved_config_runs_nothing(undisturbed, tmp_path):
    saved = json.loads((undisturbed / "config.json").read_text())
    victim = tmp_path / "victim"
    for node in (
        {"call": "os:system", "command": f"touch {victim}"},
        {"bind": "subprocess:run", "args": f"touch {victim}"},
        {"call": "scorediff.training.files:write_atomic", "path": str(victim), "text": "x"},
        {"call": "scorediff.config:subprocess", "args": "x"},
    ):
        (tmp_path / "config.json").write_text(json.dumps({**saved, "solver": node}))
        line = refused(lambda: load_run(tmp_path, None))
        assert "config.solver" in line and (node.get("call") or node["bind"]) in line
    assert not victim.exists()


# The data


def test_a_data_set_that_is_not_there_names_the_command_at_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    begin = time.monotonic()
    line = refused(lambda: wiring.train(tiny(), tmp_path / "run"))
    assert time.monotonic() - begin < 5
    assert "data set 'digits' is not prepared" in line
    command = re.search(r"run: python -m experiments\.(prepare_data) (digits) (\S+)$", line)
    assert command, line
    assert commands.run(*command.groups())[0] == 0
    tiny().check_data()


def test_a_condition_that_the_data_lack_is_refused(tiny):
    experiment = tiny("--config.data.pipeline.keys=('image',)")
    assert "config.loss.cond_keys" in refused(experiment.check_data)


# The run folder


def test_a_checkpoint_of_another_model_names_the_first_difference(trained, undisturbed):
    wider = trained("--config.denoiser.network.channels=16")
    line = refused(lambda: wiring.load(wider, undisturbed))
    found = re.search(r"is of another model: (\S+) is float32(\S+|\[.*?\]) in the checkpoint", line)
    assert found and found[1].startswith("ema/main/"), line
    shapes = re.findall(r"\[([\d, ]+)\]", line)
    assert len(shapes) == 2 and shapes[0] != shapes[1]


def test_an_average_that_was_not_kept_is_named(trained, undisturbed):
    other = trained("--config.sampling.ema=mian")
    line = refused(lambda: wiring.load(other, undisturbed))
    assert "no EMA profile 'mian'; it has ['main']" in line


def test_a_folder_of_another_config_is_left_as_it_is(tiny, undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    before = contents(workdir)
    other = tiny(f"--config.train.steps={STEPS}", "--config.seed=1")
    line = refused(lambda: wiring.train(other, workdir))
    assert (
        f"{workdir} belongs to another config " in line and "config.seed: 0 there, 1 here" in line
    )
    assert contents(workdir) == before


@pytest.mark.parametrize("main", [wiring.evaluate, wiring.load])
def test_a_run_without_checkpoints_says_so(trained, tmp_path, main):
    assert "no checkpoint in" in refused(lambda: main(trained(), tmp_path))


def test_a_folder_that_is_not_a_run_is_named(tmp_path):
    line = refused(lambda: load_run(tmp_path, None))
    assert f"{tmp_path}: not a run folder" in line


@pytest.mark.slow
def test_a_damaged_checkpoint_is_not_sampled(trained, undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    commands.flip_a_byte(workdir, every=200)  # so that one is in what is read
    _, step = wiring.load(trained(), workdir)
    assert step < STEPS  # the one before it
    for folder in (workdir / "checkpoints").iterdir():
        shutil.rmtree(folder / "state")
    line = refused(lambda: wiring.load(trained(), workdir), StorageError)
    assert f"no sound checkpoint in {workdir / 'checkpoints'}" in line


def test_a_place_that_cannot_be_written_is_named(tiny, tmp_path):
    (tmp_path / "file").write_text("x")
    line = refused(lambda: wiring.train(tiny(), tmp_path / "file" / "run"), StorageError)
    assert str(tmp_path / "file" / "run") in line


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_nothing(undisturbed, data_dir, tmp_path):
    """A limit on the size of files stands for the disk; with room again, the run goes on."""
    import resource

    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))  # noqa: E731
    code, _, errors = commands.finish(commands.train(workdir, data_dir, preexec_fn=limit))
    assert code == 74
    assert len(errors) == 1 and errors[0].startswith("error: ")
    assert steps(workdir / "checkpoints") == [STEPS - commands.SAVE_EVERY]
    code, _, errors = commands.finish(commands.train(workdir, data_dir))
    assert (code, errors) == (0, [])
    commands.assert_same_end(workdir, undisturbed)


def test_samples_that_cannot_be_written_leave_the_old_ones(tmp_path):
    from scorediff.evaluation.generate import Samples, save_samples

    noise = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    (tmp_path / "file").write_text("x")
    samples = Samples(x0=jax.device_get(noise), labels=None, nfe=5)
    line = refused(lambda: save_samples(tmp_path / "file" / "s.npz", samples), StorageError)
    assert str(tmp_path / "file" / "s.npz") in line
    save_samples(tmp_path / "s.npz", samples)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["file", "s.npz"]
