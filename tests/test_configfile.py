"""Configs from files: Python files of the user, saved JSON, and their mistakes."""

import pytest

from scorediff.config import spec, to_json
from scorediff.configfile import load_config
from scorediff.errors import UserError
from tests import lab

LAB = ("tests.lab",)
GOOD = """
from ml_collections import ConfigDict
from scorediff.config import spec
from tests import lab

def get_config(variant=None):
    if variant not in (None, "tiny"):
        raise ValueError(f"no variant {variant!r}, there is tiny")
    config = ConfigDict({"steps": 10 if variant else 1000})
    config.shape = spec(lab.Circle, radius=2.0)
    return config
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into the current folder, so that messages hold its short name."""
    monkeypatch.chdir(tmp_path)

    def writer(text, name="exp.py"):
        (tmp_path / name).write_text(text)
        return name

    return writer


def refused(where, *overrides, packages=LAB):
    with pytest.raises(UserError) as caught:
        load_config(where, overrides, packages=packages)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_file_gives_its_config_locked_with_overrides(write):
    name = write(GOOD)
    assert load_config(name, packages=LAB).steps == 1000
    config = load_config(f"{name}:tiny", ["--config.shape.radius=5"], packages=LAB)
    assert (config.steps, config.shape) == (10, spec(lab.Circle, radius=5.0).lock())
    with pytest.raises(AttributeError):
        config.stepz = 1


def test_a_saved_config_is_read_without_running_anything(write):
    config = load_config(write(GOOD), packages=LAB)
    saved = write(to_json(config), "config.json")
    assert load_config(saved, packages=LAB) == config
    assert load_config(saved, ["--config.steps=7"], packages=LAB).steps == 7


def test_a_saved_config_with_a_foreign_name_is_refused(write):
    name = write('{"a": {"call": "os:system", "command": "touch here"}}', "config.json")
    assert refused(name) == (
        "config.a: os:system is outside scorediff, optax, tests.lab; "
        "if you trust it, add --trust=os"
    )


@pytest.mark.parametrize(
    ("text", "where", "line"),
    [
        (GOOD, "exq.py", "exq.py: no such file; did you mean exp.py?"),
        (GOOD, "nowhere/exp.py", "nowhere/exp.py: no such file"),
        (GOOD, ".", ".: no such file"),
        (GOOD, "exp.py:big", "exp.py:8: no variant 'big', there is tiny"),
        ("x = 1", "exp.py", "exp.py: has no function get_config"),
        ("get_config = 3", "exp.py", "exp.py: has no function get_config"),
        (
            "def get_config(): return 1",
            "exp.py:tiny",
            "exp.py: get_config takes no variant, so no exp.py:tiny",
        ),
        (
            "def get_config(v): return 1",
            "exp.py",
            "exp.py: get_config needs a variant, like exp.py:tiny",
        ),
        (
            "def get_config(): return 1",
            "exp.py",
            "exp.py: get_config gave a int, not a ConfigDict",
        ),
        ("def get_config(:", "exp.py", "exp.py:1: SyntaxError: "),
        ("\nimport nothing_here", "exp.py", "exp.py:2: ModuleNotFoundError: No module named"),
        (
            GOOD.replace("radius=", "radus="),
            "exp.py",
            "exp.py:10: Circle has no field radus; did you mean radius?",
        ),
        (
            GOOD.replace("return config", "config.lock()\n    config.stepz = 1"),
            "exp.py",
            "exp.py:12: AttributeError: ",
        ),
    ],
)
def test_a_mistake_in_the_file_is_one_line(write, text, where, line):
    write(text)
    got = refused(where)
    assert got.startswith(line) if line.endswith(("named", ": ")) else got == line


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("config.json", "{", "config.json: not a saved config: Expecting property name"),
        ("config.yaml", "a: 1", "config.yaml: a config is a .py file or a saved .json"),
    ],
)
def test_other_files_are_refused(write, name, text, line):
    assert refused(write(text, name)).startswith(line)


def test_a_saved_config_has_no_variants(write):
    name = write("{}", "config.json")
    assert refused(f"{name}:tiny") == "config.json: a saved config has no variants, so no 'tiny'"


def test_classes_of_the_config_file_itself_cannot_be_found_again(write):
    text = GOOD + "\n\nclass Mine: pass\n"
    line = refused(write(text.replace("spec(lab.Circle, radius=2.0)", "spec(Mine)")))
    assert line == (
        "exp.py:10: exp.Mine has no public name at the top of an importable module, "
        "so a saved config could not find it again"
    )


def test_a_package_that_is_not_trusted_is_named(write):
    line = refused(write(GOOD), packages=())
    assert line == (
        "config.shape: tests.lab:Circle is outside scorediff, optax; "
        "if you trust it, add --trust=tests"
    )
