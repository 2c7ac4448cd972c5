"""Which names a config may use: hostile records are refused, and nothing of theirs is imported."""

import json
import sys

import pytest

from scorediff import names
from scorediff.config import build, from_json
from scorediff.errors import UserError

LAB = ("tests.lab",)


def refused(call):
    """The one line that a mistake gives."""
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    return line


def saved(**fields):
    """A config as someone could write it by hand."""
    return from_json(json.dumps({"part": fields}))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("os:system", "os:system is outside scorediff, optax; if you trust it, add --trust=os"),
        (
            "builtins:eval",
            "builtins:eval is outside scorediff, optax; if you trust it, add --trust=builtins",
        ),
        (
            "scorediffx:run",
            "scorediffx:run is outside scorediff, optax; if you trust it, add --trust=scorediffx",
        ),
        (
            "tests.lab:Circle",
            "tests.lab:Circle is outside scorediff, optax; if you trust it, add --trust=tests",
        ),
        ("os.system", "'os.system' is not the public name of anything (module:Name)"),
        ("optax:_src", "'optax:_src' is not the public name of anything (module:Name)"),
        (
            "optax._src.alias:adam",
            "'optax._src.alias:adam' is not the public name of anything (module:Name)",
        ),
        (
            "optax:adam.__globals__",
            "'optax:adam.__globals__' is not the public name of anything (module:Name)",
        ),
        ("optax:adam\n", r"'optax:adam\n' is not the public name of anything (module:Name)"),
        ("optax:jnp", "optax has no jnp; there is "),
        ("optax:schedules", "optax:schedules is neither a class nor a function"),
        ("optax:adm", "optax has no adm; did you mean adam?"),
        ("optax.nothing:adam", "cannot import optax.nothing: No module named 'optax.nothing'"),
    ],
)
@pytest.mark.parametrize("kind", ["call", "bind"])
def test_names_outside_are_refused(kind, name, line):
    got = refused(lambda: build(saved(**{kind: name})))
    assert got.startswith(f"config.part: {line}")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("tests.lab:subprocess", "tests.lab:subprocess is neither a class nor a function"),
        ("tests.lab:os", "tests.lab:os is neither a class nor a function"),
        ("tests.lab:system", "tests.lab:system is neither a class nor a function"),
        (
            "tests.lab:dataclass",
            "tests.lab:dataclass is outside scorediff, optax, tests.lab; if you trust it, add "
            "--trust=dataclasses",
        ),
        ("tests.lab:alias", "tests.lab:alias is another name of plus; use that"),
        (
            "tests.lab:_private",
            "'tests.lab:_private' is not the public name of anything (module:Name)",
        ),
        ("tests.lab:LAB", "tests.lab has no LAB"),
        (
            "tests.labs:Circle",
            "tests.labs:Circle is outside scorediff, optax, tests.lab; if you trust it, add ",
        ),
    ],
)
def test_foreign_and_private_things_of_a_trusted_package_are_refused(name, line):
    got = refused(lambda: build(saved(call=name), packages=LAB))
    assert got.startswith(f"config.part: {line}")


@pytest.mark.parametrize(
    "name",
    [
        "scorediff.config:build",
        "scorediff.configfile:load_config",
        "scorediff.commandline:run",
        "scorediff.training.files:write_atomic",
        "scorediff.training.workdir:open_workdir",
        "scorediff.training.hooks:UserError",
    ],
)
def test_what_runs_or_writes_files_cannot_be_named(name):
    got = refused(lambda: build(saved(call=name)))
    assert got == f"config.part: {name} is not a part that a config may name (scorediff.names)"


def test_refusing_imports_nothing():
    sys.modules.pop("antigravity", None)
    refused(lambda: build(saved(call="antigravity:geohash")))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", names.MOVED)
def test_names_in_older_runs_are_still_found(name):
    assert callable(build(saved(bind=name).part))
