"""Training that is killed, or finds its newest checkpoint damaged, ends as if nothing had been."""

import random
import shutil

import pytest

from tests.experiment import commands
from tests.experiment.commands import SAVE_EVERY, STEPS, assert_same_end, finish, kill_at, train


def kill_and_resume(workdir, data_dir, kill_rows):
    for row in kill_rows:
        kill_at(train(workdir, data_dir), workdir, row)
    return finish(train(workdir, data_dir))


@pytest.mark.slow
def test_killed_and_started_again_ends_bitwise_the_same(undisturbed, data_dir, tmp_path):
    # Once row n is there, the save before the last multiple of SAVE_EVERY below n has finished.
    row = random.Random(2).randint(2 * SAVE_EVERY + 1, STEPS - 1)
    code, out, errors = kill_and_resume(tmp_path, data_dir, [row])
    assert (code, errors) == (0, [])
    assert "going on from step" in out
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_several_times_ends_bitwise_the_same(undisturbed, data_dir, tmp_path, seed):
    rng = random.Random(seed)
    kill_rows = sorted(rng.randint(1, STEPS) for _ in range(3))
    code, _, errors = kill_and_resume(tmp_path, data_dir, kill_rows)
    assert (code, errors) == (0, [])
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_flipped_byte_costs_one_line_and_a_few_steps(undisturbed, data_dir, tmp_path):
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    commands.flip_a_byte(workdir)
    code, out, errors = finish(train(workdir, data_dir))
    assert code == 0, errors
    assert len(errors) == 1 and "is damaged" in errors[0]
    assert f"put aside as quarantined-{STEPS}-1" in errors[0]
    assert (workdir / "checkpoints" / f"quarantined-{STEPS}-1").is_dir()
    assert f"going on from step {STEPS - SAVE_EVERY}" in out
    assert_same_end(workdir, undisturbed)
