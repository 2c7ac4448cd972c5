"""What a run folder holds: config, rows, events, the progress line, and the exit of a command."""

import io
import json
import os
import pathlib

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from scorediff.config import bind, spec, to_json
from scorediff.errors import StorageError, UserError
from scorediff.solvers.runge_kutta import euler
from scorediff.training.files import JsonLines, write_atomic
from scorediff.training.metrics import MetricLog
from scorediff.training.plan import Plan
from scorediff.training.progress import Progress
from scorediff.training.workdir import Workdir, open_workdir

CONFIG = json.dumps({"seed": 0, "model": {"width": 64, "mults": [1, 2]}, "steps": 100})


def test_workdir_is_made_and_entered_again(tmp_path):
    workdir = open_workdir(tmp_path / "a" / "run", CONFIG)
    assert workdir.config.read_text() == CONFIG
    reordered = json.dumps(json.loads(CONFIG), sort_keys=True, indent=1)
    assert open_workdir(tmp_path / "a" / "run", reordered) == workdir
    assert workdir.config.read_text() == CONFIG
    assert [p.name for p in workdir.path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": 1}, "config.seed: 0 there, 1 here"),
        ({"seed": 0.0}, "config.seed: 0 there, 0.0 here"),
        ({"model": {"width": 64, "mults": [1, 4]}}, r"config.model.mults: \[1, 2\] there"),
        ({"model": {"width": 64}}, "config.model.mults: only there"),
        ({"extra": None}, "config.extra: only here"),
    ],
)
def test_workdir_of_another_config_names_the_field(tmp_path, change, said):
    open_workdir(tmp_path, CONFIG)
    with pytest.raises(UserError, match=said) as caught:
        open_workdir(tmp_path, json.dumps({**json.loads(CONFIG), **change}))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "config.json").read_text() == CONFIG


def saved(without=(), **changes):
    """A config with one node, as it is written, without some of its fields."""
    node = {**json.loads(to_json(spec(Plan, steps=10))), **changes}
    return json.dumps({"train": {key: item for key, item in node.items() if key not in without}})


def test_a_field_that_a_class_has_gained_since_counts_as_its_default(tmp_path):
    older = saved(without=("tensor",))
    assert '"tensor"' not in older and '"tensor": 1' in saved()
    open_workdir(tmp_path, older)
    open_workdir(tmp_path, saved())
    open_workdir(tmp_path, older)
    assert (tmp_path / "config.json").read_text() == older
    with pytest.raises(UserError, match=r"config\.train\.tensor: 1 there, 2 here"):
        open_workdir(tmp_path, saved(tensor=2))


def test_what_has_moved_since_is_the_same(tmp_path):
    for name, solver in (("clock", "euler"), ("runge_kutta", "euler")):
        node = {**json.loads(to_json(bind(euler))), "bind": f"scorediff.solvers.{name}:{solver}"}
        open_workdir(tmp_path, json.dumps({"solver": node}))


def test_a_class_that_cannot_be_named_is_compared_as_it_is_written(tmp_path):
    mine = {"call": "somebody.elses:Network", "width": 3}
    open_workdir(tmp_path, json.dumps({"network": mine}))
    open_workdir(tmp_path, json.dumps({"network": mine}))
    with pytest.raises(UserError, match=r"config\.network\.depth: only here"):
        open_workdir(tmp_path, json.dumps({"network": {**mine, "depth": 2}}))


def test_damaged_config_is_one_line(tmp_path):
    open_workdir(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text(CONFIG[:20])
    with pytest.raises(UserError, match="not a saved config"):
        open_workdir(tmp_path, CONFIG)


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", pathlib.Path("/proc/run")):
        with pytest.raises(StorageError, match=f"cannot write into {place}: ") as caught:
            open_workdir(place, CONFIG)
        assert caught.value.code == 74


def test_write_atomic_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(StorageError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_rewind_forgets_later_rows_and_a_torn_line(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    for step in (5, 10, 15):
        lines.append({"step": step, "loss": 1 / step})
    whole = lines.path.read_bytes()
    with open(lines.path, "ab") as file:
        file.write(b'{"step": 20, "lo')
    assert [row["step"] for row in lines.rows()] == [5, 10, 15]
    lines.rewind(15)
    assert lines.path.read_bytes() == whole
    lines.rewind(10)
    assert lines.path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    lines.append({"step": 15, "loss": 1 / 15})
    assert lines.path.read_bytes() == whole


def test_numbers_survive_the_file_exactly(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    for i, value in enumerate(values):
        lines.append({"step": i, "v": float(value), "bad": float("nan")})
    assert [np.float32(row["v"]) for row in lines.rows()] == list(values)
    assert lines.rows()[0]["bad"] is None


def read_events(directory):
    """Reads the record format (length, crc, bytes, crc) without the library that wrote it."""
    found = []
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_tensorboard_has_the_same_scalars_at_once(tmp_path):
    log = MetricLog(Workdir(tmp_path))
    log.rewind(0)
    log.scalars(5, {"loss": np.float32(0.25), "skipped": np.int32(0)})
    log.image(5, "grid", np.zeros((4, 6, 3), np.uint8))
    events = read_events(tmp_path / "tensorboard")
    assert events[0].file_version == "brain.Event:2"
    values = {v.tag: v for e in events for v in e.summary.value}
    assert values["loss"].simple_value == 0.25
    assert (values["grid"].image.height, values["grid"].image.width) == (4, 6)
    assert {e.step for e in events if e.summary.value} == {5}
    log.rewind(3)
    assert read_events(tmp_path / "tensorboard")[-1].step == 4
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_rows_are_in_order_and_plain(tmp_path):
    log = MetricLog(Workdir(tmp_path))
    log.rewind(0)
    log.scalars(1, {"loss": np.float32(0.5), "n": np.int32(3)})
    log.incident(1, {"loss": np.float32("inf")})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5, "n": 3}\n'
    assert (tmp_path / "incidents.jsonl").read_text() == '{"step": 1, "loss": "inf"}\n'


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_line_says_step_loss_rate_and_time_left():
    bar = Progress(200, stream=io.StringIO())
    bar.update(10, {})
    start = bar._first[1]
    line = bar.line(60, {"loss": np.float32(0.125)}, start + 2.0)
    assert "60/200" in line
    assert "loss 0.1250" in line
    assert "25.0 steps/s" in line
    assert "0:06 left" in line  # 140 steps at 25 a second


def test_progress_on_a_terminal_stays_on_one_line():
    terminal = Terminal()
    bar = Progress(3, stream=terminal)
    for step in (1, 2, 3):
        bar.update(step, {"loss": 1.0})
    bar.close()
    text = terminal.getvalue()
    assert text.count("\n") == 1
    assert text.startswith("\r")
    assert "3/3" in text


def test_progress_elsewhere_is_quiet_but_for_the_end():
    stream = io.StringIO()
    bar = Progress(50, stream=stream)
    for step in range(1, 51):
        bar.update(step, {"loss": 1.0})
    bar.close()
    assert stream.getvalue().count("\n") == 1
    assert "50/50" in stream.getvalue()
