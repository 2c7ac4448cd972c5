"""Checkpoints: bitwise, damage always found, mistakes told from damage, failures in one line."""

import os
import pathlib
import random
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import DivergedError, StorageError, UserError
from scorediff.training.checkpoint import Checkpoints
from scorediff.training.mesh import abstract_state, make_mesh
from scorediff.training.state import TrainState
from scorediff.training.stored import read_params, steps
from tests.training.training_toy import EMA, OPTIMIZER, assemble, batch_at

# After a failure, callbacks of tensorstore find the event loop closed that Orbax gave them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PIPELINE = {"name": "toy", "seed": 0, "batch_size": 16}


@pytest.fixture(scope="module")
def toy():
    """(abstract, host copies of the states after steps 1, 2, 3)."""
    abstract, state, step = assemble()
    states = {}
    for i in range(3):
        state, _ = step(state, batch_at(i), jax.random.key(7))
        states[i + 1] = jax.device_get(state)
    return abstract, states


def on_device(state, abstract):
    return jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), state, abstract)


@pytest.fixture(scope="module")
def saved(toy, tmp_path_factory):
    """A folder with checkpoints of steps 1, 2 and 3. Copy it before damaging it."""
    abstract, states = toy
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(directory, keep_last=3, pipeline=PIPELINE)
    for state in states.values():
        checkpoints.save(on_device(state, abstract))
    checkpoints.close()
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def restore(directory, abstract, pipeline=PIPELINE):
    return Checkpoints(directory, pipeline=pipeline).restore_latest(abstract)


def test_newest_comes_back_bitwise(toy, saved):
    abstract, states = toy
    assert steps(saved) == [1, 2, 3]
    state = restore(saved, abstract)
    assert_same(state, states[3])
    assert jax.tree.structure(state) == jax.tree.structure(states[3])


def test_nothing_saved_gives_none(toy, tmp_path):
    assert restore(tmp_path / "absent", toy[0]) is None


def test_old_ones_are_removed_but_those_to_keep(toy, tmp_path):
    abstract, states = toy
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_every=4)
    for step in (1, 2, 4, 5, 6, 7, 8, 9):
        state = on_device(states[1], abstract)
        checkpoints.save(state.replace(step=jnp.int32(step)))
    checkpoints.close()
    assert steps(tmp_path) == [4, 8, 9]


def test_saving_a_step_twice_is_once(toy, copy):
    abstract, states = toy
    checkpoints = Checkpoints(copy, keep_last=3, pipeline=PIPELINE)
    checkpoints.save(on_device(states[3], abstract))
    checkpoints.close()
    assert steps(copy) == [1, 2, 3]


def data_files(step: pathlib.Path):
    return sorted(p for p in step.rglob("*") if p.is_file() and p.stat().st_size)


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def zero(path, rng):
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    content[start : start + 64] = bytes(len(content[start : start + 64]))
    path.write_bytes(content)


def truncate(path, rng):
    os.truncate(path, rng.randrange(path.stat().st_size))


def delete(path, rng):
    del rng
    path.unlink()


def damage_and_restore(copy, abstract, states, damage, rng):
    """True if the damage was found; asserts that the right state comes back either way."""
    victim = rng.choice(data_files(copy / "3"))
    damage(victim, rng)
    state = restore(copy, abstract)
    found = steps(copy) == [1, 2]
    assert_same(state, states[2 if found else 3])
    assert found == bool(list(copy.glob("quarantined-3-1")))
    return found


@pytest.mark.parametrize("damage", [flip, zero, truncate, delete])
def test_damage_never_restores_silently(toy, saved, tmp_path, damage):
    """Any file, any bit: either the state is bitwise right, or the step before is used."""
    rng = random.Random(damage.__name__)
    found = 0
    for trial in range(20):
        copy = shutil.copytree(saved, tmp_path / str(trial))
        found += damage_and_restore(copy, *toy, damage, rng)
    assert found > 0


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip, zero, truncate, delete])
def test_damage_never_restores_silently_many(toy, saved, tmp_path, damage):
    rng = random.Random(f"many {damage.__name__}")
    found = 0
    for trial in range(150):
        copy = shutil.copytree(saved, tmp_path / str(trial))
        found += damage_and_restore(copy, *toy, damage, rng)
        shutil.rmtree(copy)
    assert found > 15


def test_a_flipped_bit_in_the_values_is_found_and_named(toy, copy, caplog):
    """In the file that holds the arrays, where the libraries see nothing."""
    abstract, states = toy
    largest = max(data_files(copy / "3" / "state"), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)
    assert_same(restore(copy, abstract), states[2])
    said = [r.getMessage() for r in caplog.records if "quarantined-3-1" in r.getMessage()]
    assert len(said) == 1
    assert "\n" not in said[0]


def test_training_goes_on_past_a_damaged_step(toy, copy):
    abstract, states = toy
    shutil.rmtree(copy / "3" / "state")
    checkpoints = Checkpoints(copy, keep_last=2, pipeline=PIPELINE)
    assert_same(checkpoints.restore_latest(abstract), states[2])
    checkpoints.save(on_device(states[3], abstract))
    checkpoints.close()
    assert steps(copy) == [2, 3]
    assert_same(restore(copy, abstract), states[3])


def test_nothing_sound_left_is_not_a_fresh_start(toy, copy):
    for step in steps(copy):
        (copy / str(step) / "meta" / "metadata").unlink()
    for _ in range(2):
        with pytest.raises(StorageError, match="no sound checkpoint is left"):
            restore(copy, toy[0])
    assert len(list(copy.glob("quarantined-*"))) == 3


def test_unfinished_folder_is_no_step(toy, copy):
    shutil.copytree(copy / "3", copy / "4.orbax-checkpoint-tmp")
    assert steps(copy) == [1, 2, 3]
    assert_same(restore(copy, toy[0]), toy[1][3])


def test_other_model_is_named_and_never_put_aside(copy):
    abstract, _, _ = assemble(width=8)
    with pytest.raises(UserError) as caught:
        restore(copy, abstract)
    assert "params/first/bias is float32[16] in the checkpoint and float32[8]" in str(caught.value)
    assert steps(copy) == [1, 2, 3]


def test_missing_and_additional_parameters_are_named(toy, copy):
    abstract, _ = toy
    more = abstract.replace(params={**abstract.params, "third": abstract.params["second"]})
    with pytest.raises(UserError, match="params/third/bias is absent in the checkpoint"):
        restore(copy, more)
    less = abstract.replace(params={"first": abstract.params["first"]})
    with pytest.raises(
        UserError, match=r"params/second/bias is float32\[4\] in the checkpoint and"
    ):
        restore(copy, less)


def test_other_type_is_not_cast(toy, copy):
    abstract, _ = toy
    half = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16, sharding=a.sharding), abstract.params
    )
    with pytest.raises(UserError, match="bfloat16"):
        restore(copy, abstract.replace(params=half))


def test_other_data_is_refused_by_field(toy, copy):
    with pytest.raises(UserError, match=r"seed: 0 then, 1 now") as caught:
        restore(copy, toy[0], {**PIPELINE, "seed": 1})
    assert "batch_size" not in str(caught.value)
    assert steps(copy) == [1, 2, 3]


def test_reading_one_average_only(toy, saved):
    abstract, states = toy
    params, step = read_params(saved, abstract.params, profile="slow", step=2)
    assert step == 2
    assert_same(params, states[2].ema["slow"])
    assert_same(read_params(saved, abstract.params)[0], states[3].params)


def test_reading_mistakes(toy, copy, tmp_path):
    params = toy[0].params
    with pytest.raises(UserError, match=r"no EMA profile 'fast'; it has \['power', 'slow'\]"):
        read_params(copy, params, profile="fast")
    with pytest.raises(UserError, match=r"no checkpoint of step 9 .* \[1, 2, 3\]"):
        read_params(copy, params, step=9)
    with pytest.raises(UserError, match="no checkpoint in"):
        read_params(tmp_path / "nowhere", params)
    with pytest.raises(UserError, match=r"ema/slow/first/bias is float32\[16\]"):
        read_params(copy, assemble(width=8)[0].params, profile="slow")
    shutil.rmtree(copy / "3" / "state")
    assert read_params(copy, params)[1] == 2  # the one before it
    with pytest.raises(StorageError, match="no sound checkpoint"):
        read_params(copy, params, step=3)
    for step in (1, 2):
        shutil.rmtree(copy / str(step) / "state")
    with pytest.raises(StorageError, match="no sound checkpoint"):
        read_params(copy, params)


def test_a_state_that_is_not_finite_is_refused(toy, tmp_path):
    abstract, states = toy
    state = on_device(states[1], abstract)
    state.params["first"]["bias"] = state.params["first"]["bias"].at[3].set(jnp.inf)
    with pytest.raises(DivergedError, match="params/first/bias is not finite at step 1"):
        Checkpoints(tmp_path).save(state)
    assert steps(tmp_path) == []


@pytest.fixture(scope="module")
def large():
    """A state that does not fit into a file of 64 kB."""

    def init(key):
        return TrainState.create({"w": jax.random.normal(key, (256, 256))}, OPTIMIZER, EMA)

    return abstract_state(init, make_mesh()), jax.device_get(init(jax.random.key(0)))


@pytest.fixture
def file_limit():
    """The system refuses to write any file beyond 64 kB, as a full disk or a quota would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_is_one_line_and_spares_the_others(large, tmp_path, request):
    abstract, state = large
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(on_device(state, abstract).replace(step=jnp.int32(1)))
    checkpoints.wait()
    request.getfixturevalue("file_limit")
    checkpoints.save(on_device(state, abstract).replace(step=jnp.int32(2)))
    with pytest.raises(StorageError, match=r"step 2 could not be saved into .*: File too large$"):
        checkpoints.wait()
    assert steps(tmp_path) == [1]
    assert_same(restore(tmp_path, abstract, {}).params, state.params)


def test_a_full_disk_is_seen_before_writing(toy, tmp_path, monkeypatch):
    abstract, states = toy
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match=r"step 1 could not be saved .* MB free"):
        Checkpoints(tmp_path).save(on_device(states[1], abstract))
    assert list(tmp_path.iterdir()) == []


def test_damage_of_the_last_save_is_found_at_close(toy, tmp_path):
    abstract, states = toy
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(on_device(states[step], abstract))
    checkpoints.wait()
    shutil.rmtree(tmp_path / "2" / "state")
    with pytest.raises(StorageError, match=r"the last checkpoint, .*2, was damaged"):
        checkpoints.close()
    assert steps(tmp_path) == [1]


def test_arguments_are_checked(tmp_path):
    with pytest.raises(UserError, match="got 0 and None"):
        Checkpoints(tmp_path, keep_last=0)
