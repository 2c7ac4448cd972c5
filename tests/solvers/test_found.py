"""Tables kept in files: what was saved is what samples, and nothing else passes."""

import json
import re

import numpy as np
import pytest

from scorediff.diffusion import VPCosine, VPLinear
from scorediff.errors import UserError
from scorediff.solvers import Sampler, ancestral, heun, quadratic, uniform
from scorediff.solvers.found import Found, found, read

PROCESS = VPLinear()


def write(path, table, process=PROCESS, **changes):
    content = json.loads(Found(table=table, process=repr(process)).to_json()) | changes
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def table():
    return Sampler(solver=heun, grid=quadratic, nfe=5).table(PROCESS)


@pytest.mark.parametrize("solver", [heun, ancestral], ids=["deterministic", "with noise"])
def test_a_saved_table_comes_back_to_the_last_digit_whatever_the_spacing(solver, tmp_path):
    table = Sampler(solver=solver, grid=quadratic, nfe=5).table(PROCESS)
    path = write(tmp_path / "best.json", table)
    back = Sampler(solver=lambda grid: found(grid, path=path), grid=uniform, nfe=5).table(PROCESS)
    for name, ours, theirs in zip(table._fields, table, back, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_what_is_known_of_a_table_is_kept_with_it(table, tmp_path):
    path = tmp_path / "best.json"
    kept = Found(table=table, process="VP", how={"start": "heun"}, errors={"found": 0.01})
    path.write_text(kept.to_json())
    back = read(path)
    assert (back.process, back.how, back.errors) == (kept.process, kept.how, kept.errors)


def test_another_number_of_evaluations_is_refused_with_the_right_one(table, tmp_path):
    path = write(tmp_path / "best.json", table)
    sampler = Sampler(solver=lambda grid: found(grid, path=path), nfe=8)
    with pytest.raises(UserError, match=r"5 network evaluations, but 8 .* set nfe=5"):
        sampler.table(PROCESS)


@pytest.mark.parametrize("other", [VPCosine(), VPLinear(beta_max=19.99), VPLinear(t_max=0.9)])
def test_a_table_for_another_process_is_refused_naming_both(other, table, tmp_path):
    path = write(tmp_path / "best.json", table)
    sampler = Sampler(solver=lambda grid: found(grid, path=path), grid=uniform, nfe=5)
    with pytest.raises(UserError, match=f"{re.escape(repr(PROCESS))}.*{re.escape(repr(other))}"):
        sampler.table(other)


@pytest.mark.parametrize("change", [{"to_data": False}, {"t_start": 0.9}])
def test_other_ends_of_the_grid_are_refused(change, table, tmp_path):
    path = write(tmp_path / "best.json", table)
    with pytest.raises(UserError, match="this run asks for"):
        Sampler(solver=lambda grid: found(grid, path=path), nfe=5, **change).table(PROCESS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "solver table 2"}, "not a solver's table"),
        ({"nfe": "5"}, "nfe must be a whole number"),
        ({"nfe": True}, "nfe must be a whole number"),
        ({"nfe": 4}, r"t must be numbers of shape \(5,\)"),
        ({"e": [[0.0] * 8] * 4 + [[0.0] * 7]}, "e must be numbers of shape"),
        ({"e": [["1"] * 8] * 5}, "e must be numbers of shape"),
        ({"e": [[True] * 8] * 5}, "e must be numbers of shape"),
        ({"b": None}, "b must be numbers of shape"),
        ({"keep": [[1e400, 0.0]] * 5}, "Infinity is not a number|not finite"),
        ({"t": [0.1, None, 0.1, 0.1, 0.1, 0.0]}, "t must be numbers of shape"),
        ({"start": [0.0, 0.0]}, "start"),
        ({"how": {"code": ["import os"]}}, "how must map"),
        ({"extra": 1}, "fields missing or unknown: extra"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_damaged_file_is_one_clear_line(changes, message, table, tmp_path):
    path = write(tmp_path / "best.json", table, **changes)
    with pytest.raises(UserError, match=f"best.json: .*({message})"):
        read(path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"t": NaN}', "[" * 100_000, "\xff"])
def test_a_file_that_holds_no_table_is_one_clear_line(content, tmp_path):
    path = tmp_path / "best.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"best.json: (damaged|not a solver's table)"):
        read(path)


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "none.json")


def test_coefficients_that_are_not_finite_are_never_written(table):
    table.e[0, 0] = np.nan
    with pytest.raises(ValueError, match="JSON"):
        Found(table=table, process="VP").to_json()
