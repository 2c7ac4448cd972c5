"""The loop in one process: hooks, divergence, stopping, and what is saved whichever way it ends."""

import functools
import json
import os
import signal
import threading

import jax
import numpy as np
import pytest

from scorediff.errors import DivergedError, Preempted, UserError
from scorediff.training.checkpoint import Checkpoints
from scorediff.training.hooks import Every, LogMetrics, SaveCheckpoint
from scorediff.training.loop import fit
from scorediff.training.metrics import MetricLog
from scorediff.training.stored import steps
from scorediff.training.workdir import Workdir
from tests.training import training_toy
from tests.training.training_toy import ROOT_KEY, assemble, batches, train

compiled = functools.cache(assemble)


@pytest.fixture(autouse=True)
def compile_once(monkeypatch):
    monkeypatch.setattr(training_toy, "assemble", lambda width=16: compiled_toy())


def compiled_toy():
    """The cached step with a fresh state: states are used up."""
    abstract, fresh, step = compiled()
    return abstract, jax.tree.map(lambda x: x.copy(), fresh), step


def fit_toy(stream=batches, **arguments):
    _, state, step = compiled_toy()
    return fit(step, state, stream, root_key=jax.random.key(ROOT_KEY), **arguments)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_hooks_run_at_multiples_and_at_the_end_with_their_own_step_s_metrics():
    seen, all_losses = [], {}
    hooks = [
        Every(every=1, action=lambda step, state, m: all_losses.update({step: float(m["loss"])})),
        Every(every=4, action=lambda step, state, m: seen.append((step, float(m["loss"])))),
        Every(every=3, action=lambda step, state, m: seen.append((step, int(state.step)))),
    ]
    state = fit_toy(steps=10, hooks=hooks)
    assert int(state.step) == 10
    assert [step for step, _ in seen] == [3, 4, 6, 8, 9, 10, 10]
    assert all(value in (all_losses[step], step) for step, value in seen)
    assert len(set(all_losses.values())) == 10


def test_metrics_do_not_depend_on_who_looks(tmp_path):
    """Rows of a run that is looked at rarely equal those of one looked at every step."""
    for every in (1, 6):
        log = MetricLog(Workdir(tmp_path / str(every)))
        (tmp_path / str(every)).mkdir()
        fit_toy(steps=12, hooks=[LogMetrics(every=every, log=log)], log=log)
    often, rarely = (rows(tmp_path / name / "metrics.jsonl") for name in ("1", "6"))
    assert [row for row in often if row["step"] % 6 == 0] == rarely


def test_the_save_of_the_last_step_is_there_when_fit_returns(tmp_path):
    train(tmp_path, steps=9, every=4)
    assert steps(tmp_path / "checkpoints") == [8, 9]


def test_a_finished_run_does_nothing_more(tmp_path):
    train(tmp_path, steps=9)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    state = train(tmp_path, steps=9)
    assert int(state.step) == 9
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_exception_right_after_a_save_keeps_it(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"):
        train(tmp_path, steps=9, every=3, fail_at=4)
    assert steps(tmp_path / "checkpoints") == [3]
    train(tmp_path, steps=9, every=3)
    assert steps(tmp_path / "checkpoints") == [6, 9]


def test_one_bad_step_costs_one_step_and_is_recorded(tmp_path):
    state = train(tmp_path, steps=12, poisoned=(5,))
    assert int(state.skipped) == 1
    incidents = rows(tmp_path / "incidents.jsonl")
    assert [row["step"] for row in incidents] == [6]
    assert incidents[0]["loss"] == "nan"
    logged = {row["step"]: row for row in rows(tmp_path / "metrics.jsonl")}
    assert logged[10]["skipped"] == 1
    assert np.isfinite(logged[10]["loss"])


def test_nine_bad_steps_in_a_row_are_survived():
    state = fit_toy(lambda start: batches(start, range(3, 12)), steps=15)
    assert (int(state.skipped), int(state.skipped_in_row)) == (9, 0)


def test_ten_in_a_row_stop_the_run_naming_them(tmp_path):
    with pytest.raises(DivergedError, match="steps 8 to 17") as caught:
        train(tmp_path, steps=40, every=4, poisoned=range(7, 40))
    assert caught.value.code == 65
    assert [row["step"] for row in rows(tmp_path / "incidents.jsonl")] == list(range(8, 18))
    last = steps(tmp_path / "checkpoints")[-1]
    abstract, _, _ = compiled_toy()
    state = Checkpoints(
        tmp_path / "checkpoints", pipeline={"seed": 0, "batch_size": 16}
    ).restore_latest(abstract)
    assert int(state.step) == last
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_bad_row_in_metrics_is_null(tmp_path):
    train(tmp_path, steps=12, poisoned=(4,))
    logged = {row["step"]: row for row in rows(tmp_path / "metrics.jsonl")}
    assert logged[5]["loss"] is None
    assert logged[10]["loss"] is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_the_step_and_is_told_apart(tmp_path, number):
    def send(step, state, metrics):
        if step == 5:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Preempted, match=f"{signal.Signals(number).name} after step 5") as caught:
        fit_toy(steps=50, hooks=[Every(every=1, action=send)], checkpoints=checkpoints)
    assert caught.value.code == 75
    assert steps(tmp_path) == [5]
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_it_trains_without_signals():
    done = []
    thread = threading.Thread(target=lambda: done.append(int(fit_toy(steps=3).step)))
    thread.start()
    thread.join(60)
    assert done == [3]


def test_the_stream_is_closed_however_it_ends():
    closed = []

    def stream(start):
        try:
            yield from batches(start)
        finally:
            closed.append(start)

    def fail(step, state, metrics):
        raise RuntimeError("a bug")

    fit_toy(stream, steps=2)
    with pytest.raises(RuntimeError):
        fit_toy(stream, steps=2, hooks=[Every(every=1, action=fail)])
    assert closed == [0, 0]


def test_data_that_ends_and_steps_in_the_past_are_user_mistakes(tmp_path):
    def three(start):
        stream = batches(start)
        for _ in range(3):
            yield next(stream)

    with pytest.raises(UserError, match="the data ended before step 4"):
        fit_toy(three, steps=5)
    train(tmp_path, steps=9)
    with pytest.raises(UserError, match="at step 9, past the 4 steps"):
        train(tmp_path, steps=4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Every(every=0, action=print),
        lambda: SaveCheckpoint(every=-1, checkpoints=None),
        lambda: LogMetrics(every=0, log=None),
    ],
)
def test_hooks_check_how_often(make):
    with pytest.raises(UserError, match=r"at least 1, got (0|-1)"):
        make()
