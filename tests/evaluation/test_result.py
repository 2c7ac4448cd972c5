"""Results: statistics of the spread, a lossless line, appends that a crash cannot spoil."""

import dataclasses
import math
import resource
import signal
import statistics
import subprocess
import sys

import pytest

from scorediff.errors import StorageError
from scorediff.evaluation.result import (
    Result,
    Spread,
    append_result,
    git_revision,
    hash_json,
    read_results,
    spreads,
)


def make(**changes):
    fields = {
        "name": "digits",
        "config_hash": "c0ffee",
        "revision": "abc+dirty",
        "step": 6000,
        "ema": "0.999",
        "solver": "ddim",
        "solver_args": {"eta": 0.5},
        "grid": "karras(rho=7)",
        "nfe": 20,
        "guidance_scale": 1.5,
        "samples": 1000,
        "seeds": (0, 1),
        "reference": "1497 real images",
        "reference_hash": "beef",
        "numbers": {"frechet": Spread.of([9.0, 11.0])},
        "floor": {"frechet": Spread.of([5.0, 6.0])},
    }
    return Result(**(fields | changes))


def test_spread_is_the_sample_standard_deviation():
    values = [3.0, 4.5, 8.25, 1e9]
    found = Spread.of(values)
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.std == pytest.approx(statistics.stdev(values))
    assert (found.min, found.max, found.n) == (3.0, 1e9, 4)
    assert Spread.of([2.0]).std is None
    assert spreads([{"a": 1.0}, {"a": 3.0}])["a"].mean == 2.0


def test_spread_is_shown_to_the_digits_it_has():
    assert str(Spread(mean=0.70173, std=0.0059, min=0, max=1, n=3)) == "0.702 ± 0.006"
    assert str(Spread(mean=19.1499, std=1.7, min=0, max=1, n=3)) == "19.1 ± 1.7"
    assert str(Spread(mean=1234.5, std=56.0, min=0, max=1, n=3)) == "1234 ± 56"
    assert str(Spread.of([0.25])) == "0.25"


def test_no_number_without_its_protocol():
    shown = str(make())
    parts = ["20 NFE", "eta=0.5", "karras", "1.5", "scale 1 is off", "1000", "[0, 1]", "6000"]
    parts += ["EMA 0.999", "1497 real", "beef", "c0ffee", "abc+dirty", "floor 5.50"]
    assert [part for part in parts if part not in shown] == []
    assert "\n" not in shown


def test_round_trip_also_of_what_is_not_finite():
    result = make()
    assert Result.from_json(result.to_json()) == result
    failed = make(numbers={"frechet": Spread.of([math.nan, 1.0]), "recall": Spread.of([math.nan])})
    back = Result.from_json(failed.to_json())
    assert math.isnan(back.numbers["frechet"].mean) and math.isnan(back.numbers["frechet"].std)
    assert math.isnan(back.numbers["recall"].mean) and back.numbers["recall"].std is None


def test_append_and_read_over_a_torn_line(tmp_path):
    path = tmp_path / "results.jsonl"
    assert read_results(path) == []
    append_result(path, make(step=1))
    with path.open("a") as file:
        file.write(make(step=2).to_json()[:80])  # killed while writing
    assert [result.step for result in read_results(path)] == [1]
    append_result(path, make(step=3))
    assert [result.step for result in read_results(path)] == [1, 3]


def test_a_full_disk_keeps_what_was_there(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, make(step=1))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"results\.jsonl"):
            append_result(path, make(step=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before


def test_a_line_that_is_no_result_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(make().to_json() + '\n{"loss": 1}\n')
    with pytest.raises(StorageError, match="line 2"):
        read_results(path)


def test_values_are_checked():
    with pytest.raises(ValueError, match="nfe must not be negative, got -1"):
        make(nfe=-1)
    with pytest.raises(ValueError, match="seeds"):
        make(seeds=())
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().step = 3


def test_hash_ignores_the_order_of_fields_and_nothing_else():
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    assert hash_json({"a": 1, "b": [1, 2]}) != hash_json({"a": 1, "b": [2, 1]})


def test_git_revision(tmp_path):
    def git(*arguments):
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *author, *arguments], capture_output=True, text=True
        )
        return done.stdout.strip()

    assert git_revision(tmp_path) is None
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    assert git_revision(tmp_path) == git("rev-parse", "HEAD") != ""
    (tmp_path / "file").write_text("2")
    assert git_revision(tmp_path) == git("rev-parse", "HEAD") + "+dirty"


def test_reading_results_and_reports_needs_no_jax():
    code = (
        "import sys, scorediff.evaluation.result, scorediff.evaluation.report;"
        "sys.exit(any(m in sys.modules for m in ('jax', 'matplotlib', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
