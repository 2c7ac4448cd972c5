"""spec, bind, build, and the record in JSON."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import optax
import pytest
from ml_collections import ConfigDict

from scorediff.config import bind, build, differences, from_json, spec, to_json
from scorediff.errors import UserError
from tests import lab

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


# Recording


def test_spec_records_the_name_and_every_default():
    node = spec(lab.Drawing, shape=spec(lab.Circle, radius=2), limit=7)
    assert node.to_dict() == {
        "call": "tests.lab:Drawing",
        "shape": {"call": "tests.lab:Circle", "radius": 2.0, "name": "circle"},
        "sizes": (1, 2),
        "pair": (1, 0.5),
        "loose": (1, 2),
        "title": "drawing",
        "limit": 7,
        "scale": 1.0,
        "bold": False,
        "mode": "fill",
        "move": {"bind": "tests.lab:plus", "step": 1.0},
        "run": {"bind": "tests.lab:plus", "step": 1.0},
        "frame": {"call": "tests.lab:Circle", "radius": 3.0, "name": "circle"},
        "labels": {},
        # left out: a function of another package, one written in C, an array
    }
    assert type(node.scale) is float and type(node.shape.radius) is float


def test_build_gives_what_python_would():
    node = spec(lab.Drawing, shape=spec(lab.Square, side=2), labels={"a": 1}, sizes=(3,))
    expected = lab.Drawing(shape=lab.Square(side=2.0), labels={"a": 1}, sizes=(3,), scale=1.0)
    built = build(node, packages=LAB)
    assert (built.shape, built.labels, built.sizes) == (expected.shape, {"a": 1}, (3,))
    assert built.frame == lab.Circle(radius=3.0)
    assert built.activation is lab.Drawing(shape=lab.Circle()).activation


def test_a_plain_class_and_a_plain_function():
    wave = build(spec(lab.Wave, height=3), packages=LAB)
    assert (wave.height, wave.period) == (3.0, 2.0)
    assert build(spec(lab.plus, x=1.5, step=2.0), packages=LAB) == 3.5
    assert build(spec(lab.cached, x=5), packages=LAB) == 5


def test_bind_waits_for_the_missing_arguments():
    half = build(bind(lab.times, factor=0.5), packages=LAB)
    assert isinstance(half, functools.partial) and half(3.0) == 1.5
    node = bind(lab.times)
    assert "factor" not in node and build(node, packages=LAB)(2.0, factor=3.0) == 6.0


def test_bind_with_nothing_but_defaults_builds_the_function_itself():
    assert build(bind(lab.plus), packages=LAB) is lab.plus
    node = spec(lab.Drawing, shape=spec(lab.Circle))
    first, second = build(node, packages=LAB), build(node, packages=LAB)
    assert first.move is second.move is lab.plus


def test_bind_of_a_class_makes_objects_later():
    make = build(bind(lab.Square, corners=5), packages=LAB)
    assert make(side=1.0) == lab.Square(side=1.0, corners=5)


def test_functions_partials_and_instances_given_as_values_become_nodes():
    by_function = spec(lab.Drawing, shape=lab.Circle(radius=9.0), move=lab.times)
    assert by_function.shape == spec(lab.Circle, radius=9.0)
    assert by_function.move == bind(lab.times)
    by_partial = spec(
        lab.Drawing, shape=lab.Circle(), move=functools.partial(lab.times, factor=2.0)
    )
    assert by_partial.move == bind(lab.times, factor=2.0)


def test_linen_modules_hide_parent_and_name_and_really_run():
    node = spec(lab.Net, width=3)
    assert node.to_dict() == {"call": "tests.lab:Net", "width": 3, "dtype": "float32"}
    net = build(node, packages=LAB)
    params = net.init(jax.random.key(0), jnp.ones((2, 5)))
    assert params["params"]["Dense_0"]["kernel"].shape == (5, 3)
    assert "no field name" in refused(lambda: spec(lab.Net, name="x"))


def test_optax_is_recorded_by_its_public_name_and_builds():
    schedule = spec(optax.cosine_decay_schedule, init_value=1.0, decay_steps=10)
    node = spec(optax.adamw, learning_rate=schedule, b1=0.5)
    assert node.call == "optax:adamw"
    built = build(from_json(to_json(ConfigDict({"o": node}))).o)
    params = jnp.array([1.0, -2.0])
    reference = optax.adamw(optax.cosine_decay_schedule(1.0, 10), b1=0.5)
    first, _ = built.update(params, built.init(params), params)
    second, _ = reference.update(params, reference.init(params), params)
    assert jnp.array_equal(first, second)


def test_groups_tuples_and_lists_of_nodes_build_in_place():
    config = ConfigDict({"a": {"b": 1, "c": spec(lab.Circle)}, "d": (spec(lab.Circle), 2)})
    config.e = [spec(lab.plus, x=1.0)]
    circle = lab.Circle()
    expected = {"a": {"b": 1, "c": circle}, "d": (circle, 2), "e": [2.0]}
    assert build(config, packages=LAB) == expected


def test_a_node_used_twice_is_recorded_twice():
    shape = spec(lab.Circle)
    first = spec(lab.Drawing, shape=shape, frame=shape)
    first.shape.radius = 5.0
    assert (first.frame.radius, shape.radius) == (1.0, 1.0)


def test_a_reference_inside_a_node_follows_its_field():
    config = ConfigDict({"steps": 10})
    config.part = spec(lab.Square, side=config.get_ref("steps") * 1.0)
    config.steps = 20
    assert config.part.side == 20.0


# Mistakes while recording


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: spec(lab.Circle, radus=1.0), "Circle has no field radus; did you mean radius?"),
        (lambda: spec(lab.Circle, zzz=1), "Circle has no field zzz; there is radius, name"),
        (lambda: spec(lab.Square), "Square needs side"),
        (lambda: bind(lab.times, facto=1.0), "times has no field facto; did you mean factor?"),
        (lambda: spec(lab.Circle, radius="1"), "Circle.radius: expected float, got '1'"),
        (lambda: spec(lab.Circle, radius=True), "Circle.radius: expected float, got True"),
        (lambda: spec(lab.Circle, radius=None), "Circle.radius: expected float, got None"),
        (
            lambda: spec(lab.Circle, radius=spec(lab.Circle)),
            "Circle.radius: expected float, got a node",
        ),
        (lambda: spec(lab.Square, side=1, corners=4.0), "Square.corners: expected int, got 4.0"),
        (lambda: spec(lab.stars), "stars takes *args: int by position; a config can only name"),
        (
            lambda: spec(lab.reserved),
            "reserved cannot be in a config: its argument call is a key there",
        ),
        (
            lambda: spec(lab.Circle, radius=jnp.ones(2)),
            "Circle.radius: a config cannot hold a ArrayImpl",
        ),
        (
            lambda: spec(lab.outer()),
            "tests.lab.outer.<locals>.inner has no public name at the top of an importable module, "
            "so a saved config could not find it again",
        ),
        (
            lambda: spec(lab._private),
            "tests.lab._private has no public name at the top of an importable module, "
            "so a saved config could not find it again",
        ),
        (lambda: spec(3), "3 is neither a class nor a function"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line(call, line):
    assert refused(call) == line


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("sizes", [1, 2], "expected tuple of int, got [1, 2]"),
        ("sizes", (1, 2.5), "expected tuple of int, got (1, 2.5)"),
        ("pair", (1,), "expected tuple ['int', 'float'], got (1,)"),
        ("loose", 3, "expected tuple, got 3"),
        ("limit", 2.0, "expected int or None, got 2.0"),
        ("bold", 1, "expected bool, got 1"),
        ("mode", "dots", "expected 'fill' or 'line', got 'dots'"),
        ("title", None, "expected str, got None"),
        ("frame", "Circle", "expected Shape or None, got 'Circle'"),
        ("move", 3.0, "expected function, got 3.0"),
        ("labels", 1.5, "expected Mapping, got 1.5"),
    ],
)
def test_types_are_checked_by_the_annotation(field, value, line):
    got = refused(lambda: spec(lab.Drawing, shape=spec(lab.Circle), **{field: value}))
    assert got == f"Drawing.{field}: {line}"


# Building what came from elsewhere


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"call": "tests.lab:Circle", "radus": 1.0},
            "Circle has no field radus; did you mean radius?",
        ),
        ({"call": "tests.lab:Square"}, "Square needs side"),
        ({"call": "tests.lab:Square", "side": -1.0}, "Square: side must be positive, got -1.0"),
        (
            {"call": "tests.lab:plus", "bind": "tests.lab:plus"},
            "a node has either 'call' or 'bind', and that",
        ),
        ({"call": 3}, "a node has either 'call' or 'bind', and that is a name"),
        (
            {"call": {"call": "tests.lab:Circle"}},
            "a node has either 'call' or 'bind', and that is a",
        ),
    ],
)
def test_a_wrong_node_is_named_by_its_path(fields, line):
    assert refused(lambda: build(saved(**fields), packages=LAB)).startswith(f"config.part: {line}")


def test_types_are_checked_again_when_building():
    node = spec(lab.Drawing, shape=spec(lab.Circle))
    node.shape = spec(lab.Net)
    line = refused(lambda: build(node, packages=LAB, path="config.drawing"))
    assert line == "config.drawing.shape: expected Shape, got Net"
    node.shape = spec(lab.Circle)
    with node.ignore_type():
        node.sizes = (1, "2")
    line = refused(lambda: build(node, packages=LAB, path="config.drawing"))
    assert line == "config.drawing.sizes: expected tuple of int, got (1, '2')"


def test_a_node_deep_inside_is_named_by_its_path():
    node = spec(lab.Drawing, shape=spec(lab.Circle))
    node.shape = ConfigDict({"call": "tests.lab:Square", "side": 0.0})
    line = refused(lambda: build({"x": (1, node)}, packages=LAB))
    assert line == "config.x[1].shape: Square: side must be positive, got 0.0"


# JSON


def everything():
    config = ConfigDict({"a": 1, "b": -2.5, "c": "ü\n", "d": None, "e": True, "big": 10**30})
    config.tuples = ((1, 2), (), ((3.0,), [4]), "x")
    config.floats = (1e-300, 0.1, 1.0, -0.0, math.inf, -math.inf)
    config.node = spec(lab.Drawing, shape=spec(lab.Circle))
    config.nodes = (spec(lab.Circle), ConfigDict({"k": (1,)}))
    config["keys"] = 3  # the name of a method of ConfigDict
    config.empty = ConfigDict()
    return config


def typed(value):
    """A config as nested lists in which types are spelled out, so that 1, 1.0 and True differ."""
    if isinstance(value, ConfigDict):
        return ["group", *((k, typed(value[k])) for k in sorted(value))]
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(typed, value)]
    return [type(value).__name__, repr(value)]


def test_json_round_trip_is_exact_and_stable():
    config = everything()
    text = to_json(config)
    back = from_json(text)
    assert typed(back) == typed(config)
    assert to_json(back) == text
    assert json.loads(text)["tuples"]["tuple"][0] == {"tuple": [1, 2]}  # standard JSON


def test_json_does_not_depend_on_the_order_of_writing():
    one, two = ConfigDict(), ConfigDict(sort_keys=False)
    one.a, one.b = 1, 2
    two.b, two.a = 2, 1
    assert to_json(one) == to_json(two)


def test_a_loaded_config_is_locked_everywhere():
    config = from_json(to_json(everything()))
    for group in (config, config.node, config.node.shape, config.nodes[0]):
        with pytest.raises(AttributeError):
            group.nothing = 1


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (math.nan, "config.x: nan is not a value that a config can hold"),
        ((1, (math.nan,)), "config.x[1][0]: nan is not a value that a config can hold"),
        ({1, 2}, "config.x: a config cannot hold a set; use spec or bind"),
        (lab.plus, "config.x: a config cannot hold a function; use spec or bind"),
        (ConfigDict({"tuple": 1}), "config.x: a group cannot have 'tuple' as its only field"),
        (ConfigDict({"a b": 1}), "config.x: 'a b' is not the name of a field"),
        (ConfigDict({3: 1}), "config.x: 3 is not the name of a field"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_path(value, line):
    assert refused(lambda: to_json(ConfigDict({"x": value}))) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "not a saved config: Expecting value: line 1 column 1 (char 0)"),
        ("[1]", "not a saved config: it has to be a JSON object"),
        ('{"tuple": [1]}', "not a saved config: it has to be a JSON object"),
        ('{"a": 1, "a": 2}', "not a saved config: the field a is there twice"),
        ('{"a": NaN}', "config.a: nan is not a value that a config can hold"),
        ('{"a": [Infinity]}', "config.a[0]: inf is not a value that a config can hold"),
        ('{"a": 1e999}', "config.a: inf is not a value that a config can hold"),
        ('{"a": {"b.c": 1}}', "config.a: 'b.c' is not the name of a field"),
        ('{"__class__": 1}', "config: '__class__' is not the name of a field"),
        ('{"a": ' + "9" * 5000 + "}", "not a saved config: Exceeds the limit"),
        ("[" * 100_000, "not a saved config: "),
    ],
)
def test_damaged_json_is_one_line(text, line):
    assert refused(lambda: from_json(text)).startswith(line)


# Differences


def test_equal_configs_have_no_differences():
    assert differences(everything(), from_json(to_json(everything()))) == []


def test_differences_name_the_path_and_both_values():
    one, two = everything(), everything()
    two.a = 5
    two.node.shape.radius = 7.0
    two.node.sizes = (1, 3)
    two.tuples = ((1, 2),)
    del two["c"]
    two.node.frame = spec(lab.Square, side=1.0)
    assert differences(one, two) == [
        "config.a: 1 != 5",
        "config.c: 'ü\\n' != absent",
        "config.node.frame: tests.lab:Circle != tests.lab:Square",
        "config.node.shape.radius: 1.0 != 7.0",
        "config.node.sizes[1]: 2 != 3",
        "config.tuples: ((1, 2), (), ((3.0,), [4]), 'x') != ((1, 2),)",
    ]


def test_true_is_not_one_but_one_is_one():
    one, two = ConfigDict({"a": True, "b": 1}), ConfigDict({"a": 1, "b": 1.0})
    assert differences(one, two) == ["config.a: True != 1"]
