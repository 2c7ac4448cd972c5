"""Overrides on the command line: what they may say, and the one line when they are wrong."""

import re

import pytest
from ml_collections import ConfigDict

from scorediff.config import bind, build, differences, from_json, spec, to_json
from scorediff.errors import UserError
from scorediff.overrides import apply
from tests import lab

LAB = ("tests.lab",)


def example():
    config = ConfigDict({"seed": 3, "rate": 0.5, "on": True, "text": "a", "nothing": None})
    config.train = ConfigDict({"steps": 100, "sizes": (1, 2), "mixed": [1, 2.5], "empty": ()})
    config.drawing = spec(lab.Drawing, shape=spec(lab.Circle, radius=2.0))
    config.loose = spec(lab.anything, value=1)
    config.parts = (spec(lab.Circle), spec(lab.Square, side=2.0))
    return config


def changed(*overrides):
    return apply(example(), [f"--config.{o}" for o in overrides], packages=LAB)


def lines(*overrides):
    """What the overrides change, as `differences` tells it."""
    return differences(example(), changed(*overrides))


def refused(*overrides):
    with pytest.raises(UserError) as caught:
        changed(*overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.steps=1e3", 1000),
        ("train.steps=-7", -7),
        ("train.steps=1_000", 1000),
        ("rate=3", 3.0),
        ("rate=1e-3", 0.001),
        ("rate=inf", float("inf")),
        ("on=false", False),
        ("on=0", False),
        ("on=True", True),
        ("text=1", "1"),
        ("text=", ""),
        ("text=a=b.c:d", "a=b.c:d"),
        ("text=none", "none"),
        ("nothing=none", None),
        ("nothing=5", 5),
        ("nothing=word", "word"),
        ("train.sizes=(3,)", (3,)),
        ("train.sizes=4,5,6", (4, 5, 6)),
        ("train.sizes=()", ()),
        ("train.sizes[1]=9", 9),
        ("train.mixed=[2.5, 1, 3]", [2.5, 1, 3]),
        ("train.mixed[0]=7", 7),
        ("train.empty=(1,'a')", (1, "a")),
        ("drawing.limit=5", 5),
        ("drawing.limit=none", None),
        ("drawing.scale=2", 2.0),
        ("drawing.mode=line", "line"),
        ("drawing.pair=(2,3)", (2, 3.0)),
        ("drawing.pair[1]=3", 3.0),
        ("drawing.frame=none", None),
        ("loose.value=2", 2),
        ("loose.other=2.5", 2.5),
        ("parts[1].side=8", 8.0),
    ],
)
def test_the_text_means_what_the_field_can_hold(override, value):
    found = changed(override)
    for name in re.findall(r"\w+", override.partition("=")[0]):
        found = found[int(name) if name.isdigit() else name]
    assert typed(found) == typed(value)


def typed(value):
    """A value with its types spelled out, so that 1, 1.0 and True differ."""
    inner = [typed(v) for v in value] if isinstance(value, tuple | list) else repr(value)
    return [type(value).__name__, inner]


def test_nothing_else_changes_and_the_original_stays():
    before = example()
    text = to_json(before)
    after = apply(before, ["--config.drawing.shape.radius=5"], packages=LAB)
    assert differences(before, after) == ["config.drawing.shape.radius: 2.0 != 5.0"]
    assert to_json(before) == text
    with pytest.raises(AttributeError):
        after.drawing.shape.radiu = 1.0


def test_the_last_of_two_overrides_counts():
    assert changed("seed=4", "seed=5").seed == 5


def test_fields_computed_from_another_follow_it():
    config = ConfigDict({"steps": 10})
    config.half = config.get_ref("steps") // 2
    config.node = spec(lab.Square, side=config.get_ref("steps") * 1.0)
    after = apply(config, ["--config.steps=100"], packages=LAB)
    assert (after.half, after.node.side, config.half) == (50, 100.0, 5)


# Nodes


@pytest.mark.parametrize("name", ["Square", "tests.lab:Square", "tests.lab.Square"])
def test_a_node_is_replaced_by_name_and_starts_from_its_own_defaults(name):
    config = changed(f"drawing.shape={name}", "drawing.shape.side=3")
    assert config.drawing.shape == spec(lab.Square, side=3.0).lock()
    assert build(config.drawing, packages=LAB).shape == lab.Square(side=3.0)


def test_what_the_old_node_had_set_is_not_kept():
    assert changed("drawing.shape=Circle").drawing.shape.radius == 1.0


def test_the_kind_of_the_present_node_is_kept():
    config = changed("drawing.move=times", "drawing.move.factor=2")
    assert config.drawing.move == bind(lab.times, factor=2.0).lock()
    assert build(config.drawing, packages=LAB).move(4.0) == 8.0


def test_none_becomes_a_node_by_its_full_name_or_beside_the_class_asked_for():
    made = changed("nothing=tests.lab.Circle").nothing
    assert made == spec(lab.Circle).lock()
    assert changed("nothing=tests.lab:plus").nothing == bind(lab.plus).lock()
    again = changed("drawing.frame=none", "drawing.frame=Square", "drawing.frame.side=1")
    assert again.drawing.frame == spec(lab.Square, side=1.0).lock()


def test_a_field_whose_default_is_not_recorded_can_be_set():
    config = changed("drawing.activation=tests.lab.plus")
    assert config.drawing.activation == bind(lab.plus).lock()


def test_a_protocol_takes_a_node():
    assert changed("drawing.run=times").drawing.run == bind(lab.times).lock()


def test_an_element_that_is_a_node_is_replaced_in_place():
    config = changed("parts[0]=Square", "parts[0].side=5")
    assert build(config.parts, packages=LAB) == (lab.Square(side=5.0), lab.Square(side=2.0))


def test_overrides_work_on_a_saved_config():
    config = from_json(to_json(example()))
    overrides = ["--config.drawing.shape=Square", "--config.drawing.shape.side=1"]
    after = apply(config, overrides, packages=LAB)
    assert after.drawing.shape.side == 1.0


# Mistakes


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sed=1", "config.sed: no such field; did you mean config.seed?"),
        ("train.stps=1", "config.train.stps: no such field; did you mean config.train.steps?"),
        (
            "drawing.shape.radus=1",
            "config.drawing.shape.radus: no such field; did you mean config.drawing.shape.radius?",
        ),
        (
            "drwing.shape.radius=1",
            "config.drwing.shape.radius: no such field; did you mean config.drawing.shape.radius?",
        ),
        ("radius=1", "config.radius: no such field; did you mean config.parts[0].radius?"),
        (
            "train.qqq=1",
            "config.train.qqq: no such field; config.train has empty, mixed, sizes, steps",
        ),
        (
            "parts[1].corner=1",
            "config.parts[1].corner: no such field; did you mean config.parts[1].corners?",
        ),
        (
            "drawing.shape.side=1",
            "config.drawing.shape.side: no such field; did you mean config.parts[1].side?",
        ),
        ("train.steps=abc", "config.train.steps: expected int, got 'abc'"),
        ("train.steps=1.5", "config.train.steps: expected int, got '1.5'"),
        ("train.steps=1e300", "config.train.steps: expected int, got '1e300'"),
        ("train.steps=", "config.train.steps: expected int, got ''"),
        ("train.steps=none", "config.train.steps: expected int, got 'none'"),
        ("train.steps=true", "config.train.steps: expected int, got 'true'"),
        ("rate=nan", "config.rate: expected float, got 'nan'"),
        ("rate=fast", "config.rate: expected float, got 'fast'"),
        ("on=maybe", "config.on: expected bool, got 'maybe'"),
        ("train.sizes=(1,2.5)", "config.train.sizes: expected tuple of int, got '(1,2.5)'"),
        ("train.sizes=3", "config.train.sizes: expected tuple of int, got '3'"),
        ("train.sizes=(1,", "config.train.sizes: expected tuple of int, got '(1,'"),
        (
            "train.sizes=(__import__('os'),)",
            "config.train.sizes: expected tuple of int, got \"(__import__('os'),)\"",
        ),
        ("train.sizes[0]=x", "config.train.sizes[0]: expected int, got 'x'"),
        (
            "train.sizes[2]=1",
            "config.train.sizes[2]: config.train.sizes has 2 elements, counted from 0",
        ),
        (
            "train.steps[0]=1",
            "config.train.steps[0]: config.train.steps is neither a tuple nor a list",
        ),
        (
            "train.steps.x=1",
            "config.train.steps.x: config.train.steps is of type int and has no fields",
        ),
        ("train=1", "config.train: is a group of fields; set one of them, like config.train.empty"),
        ("parts=1", "config.parts: holds nodes; set one of them, like config.parts[0]=NAME"),
        ("nothing.x=1", "config.nothing.x: config.nothing is None; set config.nothing=NAME before"),
        ("drawing.limit=1.5", "config.drawing.limit: expected int or None, got '1.5'"),
        ("drawing.mode=dots", "config.drawing.mode: expected 'fill' or 'line', got 'dots'"),
        (
            "drawing.shape.call=tests.lab:Square",
            "config.drawing.shape.call: write config.drawing.shape=NAME to put another one there",
        ),
        (
            "drawing.shape=Squar",
            "config.drawing.shape: tests.lab has no Squar; did you mean Square?",
        ),
        (
            "drawing.shape=os.system",
            "config.drawing.shape: os:system is outside scorediff, optax, tests.lab; "
            "if you trust it, add --trust=os",
        ),
        (
            "drawing.shape=system",
            "config.drawing.shape: tests.lab:system is neither a class nor a function",
        ),
        (
            "drawing.shape=_private",
            "config.drawing.shape: 'tests.lab:_private' is not the public name of anything "
            "(module:Name)",
        ),
        ("drawing.shape=3", "config.drawing.shape: expected Shape, got '3'"),
        ("drawing.shape=Square", "config.drawing.shape: Square needs side"),
        (
            "drawing.activation=plus",
            "config.drawing.activation: give plus in full, "
            "in the way of scorediff.diffusion.processes.VPLinear",
        ),
        (
            "drawing.grid.x=1",
            "config.drawing.grid.x: config.drawing.grid is a default that a config cannot show; "
            "set config.drawing.grid=NAME before",
        ),
        ("seed", "config.seed: write --config.seed=VALUE, with the equals sign"),
        (
            "a..b=1",
            "config.a..b: not a path; write it like config.train.steps or config.hooks[0]",
        ),
        (
            "parts[-1]=1",
            "config.parts[-1]: not a path; write it like config.train.steps or config.hooks[0]",
        ),
    ],
)
def test_a_mistake_is_one_line_with_the_full_path(override, line):
    assert refused(override) == line


def test_none_where_a_node_has_to_be():
    assert refused("drawing.shape=none").startswith("config.drawing.shape: tests.lab has no none")


def test_a_node_of_an_untrusted_package_is_refused_before_it_is_imported():
    with pytest.raises(UserError, match="add --trust=tests"):
        apply(example(), ["--config.seed=1"])


def test_the_config_is_checked_as_a_whole():
    config = example()
    with config.ignore_type():
        config.drawing.sizes = "12"
    with pytest.raises(UserError) as caught:
        apply(config, [], packages=LAB)
    assert str(caught.value) == "config.drawing.sizes: expected tuple of int, got '12'"
