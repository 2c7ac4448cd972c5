"""Recorded networks of the original classes: the smallest always, all in the slow tests."""

import shutil
from pathlib import Path

import jax
import pytest

from tests.parity.replay import fixtures, replay, runner_of, tokenizer_folders

ROOT = Path(__file__).parents[1] / "fixtures" / "parity"
QUICK = ("fmt_bf16", "original/sit", "tokenizers/clip")
NAMES = [f.name for f in fixtures(ROOT) if runner_of(f)]
NAMES += [str(f.relative_to(ROOT)) for f in tokenizer_folders(ROOT)]


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_every_recorded_case_is_covered():
    assert [f.name for f in fixtures(ROOT) if not runner_of(f)] == [] and len(NAMES) >= 40


def test_a_refused_fixture_is_one_failure_and_the_others_go_on(tmp_path):
    for name in ("first", "second"):
        shutil.copytree(ROOT / "fmt_bf16", tmp_path / name)
    config = tmp_path / "first" / "config.json"
    config.write_text(config.read_text().replace('"silu"', '"tanh"'))
    results = list(replay(tmp_path))
    assert [(r.fixture, r.check) for r in results if not r.passed] == [("first", "runs")]
    assert sum(r.fixture == "second" for r in results) == 3


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_the_original_is_reproduced(name):
    results = [r for r in replay(ROOT, name) if r.fixture == name]
    assert results and [r for r in results if not r.passed] == []
