"""The shape of the code, read from its syntax: imports, unsafe calls, lengths."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    p for top in ("scorediff", "experiments", "configs") for p in (ROOT / top).rglob("*.py")
)
IDS = [str(path.relative_to(ROOT)) for path in FILES]

# Level 0 in its own order: each may import those before it.
GROUND = (
    "errors",
    "types",
    "counting",
    "fields",
    "names",
    "config",
    "overrides",
    "renewal",
    "configfile",
    "memory",
    "commandline",
)
BELOW = ("diffusion", "models", "data", "training", "interop", "solvers", "evaluation")
# Parts of scorediff and what each may import beside level 0 and itself (DESIGN, section 2).
PARTS = {
    "diffusion": (),
    "models": (),
    "data": (),
    "training": (),
    "interop": ("models",),
    "solvers": ("diffusion",),
    "evaluation": ("diffusion", "models", "data", "training", "solvers"),
    "pretrained": ("diffusion", "models", "interop"),
    "experiment": BELOW,
    "likelihood": (*BELOW, "experiment"),
    "restoration": (*BELOW, "experiment", "likelihood"),
    "conversion": (*BELOW, "pretrained", "experiment"),
}
BANNED_MODULES = ("pickle", "cloudpickle", "dill", "torch", "tensorflow", "marshal", "shelve")
BANNED_CALLS = ("eval", "exec", "__import__", "yaml.load", "yaml.unsafe_load", "yaml.full_load")


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def package_of(path):
    """The dotted package in which the relative imports of a file are resolved."""
    return list(path.relative_to(ROOT).parts[:-1])


def imported(tree, package):
    """(dotted name, line) of every import; `from a import b` gives a.b, a module or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{stem}.{alias.name}", node.lineno) for alias in node.names)


def part_of(name):
    """The part of scorediff that a dotted name belongs to; None outside, "" for the top itself."""
    parts = name.split(".")
    return (parts[1] if len(parts) > 1 else "") if parts[0] == "scorediff" else None


def allowed(part):
    if part in GROUND:
        return GROUND[: GROUND.index(part)]
    return (*GROUND, part, *PARTS[part])


def upward(source, module):
    """Imports in `source`, the text of scorediff module `module`, that do not go down."""
    package = module.split(".")[:-1]
    part = part_of(module)
    for name, line in imported(ast.parse(source), package):
        if name.split(".")[0] in ("experiments", "configs", "tests"):
            yield f"line {line}: {name}"
        other = part_of(name)
        if other is not None and other not in allowed(part):
            yield f"line {line}: {name}"


def unsafe(source):
    """Imports and calls in `source` that could run what a file says, and heavy frameworks."""
    tree = ast.parse(source)
    for name, line in imported(tree, []):
        if name.split(".")[0] in BANNED_MODULES:
            yield f"line {line}: import of {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in BANNED_CALLS or called.startswith("pickle."):
                yield f"line {node.lineno}: {called}"
            yield from (
                f"line {node.lineno}: {called} with allow_pickle"
                for keyword in node.keywords
                if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
            )


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_go_down(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module.startswith("scorediff.") and path != ROOT / "scorediff" / "__init__.py":
        assert list(upward(path.read_text(encoding="utf-8"), module)) == []


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_nothing_unsafe(path):
    assert list(unsafe(path.read_text(encoding="utf-8"))) == []


def test_no_file_is_longer_than_400_lines():
    tests = sorted((ROOT / "tests").rglob("*.py"))
    lengths = {str(p): len(p.read_text(encoding="utf-8").splitlines()) for p in [*FILES, *tests]}
    assert {path: n for path, n in lengths.items() if n > 400} == {}


def test_no_function_is_longer_than_50_lines():
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in FILES
        if path.parent.name != "configs"  # a config is a description, read from top to bottom
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.end_lineno - node.lineno >= 50
    ]
    assert long == []


def test_every_part_has_a_place():
    parts = {p.stem for p in (ROOT / "scorediff").iterdir() if p.suffix == ".py" or p.is_dir()}
    assert parts - {"__init__", "__pycache__"} <= {*GROUND, *PARTS}


# The rules above can fail:


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("scorediff.training.loop", "from scorediff.diffusion.loss import DenoisingLoss"),
        ("scorediff.training.loop", "from scorediff import diffusion"),
        ("scorediff.training.loop", "def f():\n    import scorediff.diffusion.loss"),
        ("scorediff.training.loop", "from ..diffusion import loss"),
        ("scorediff.solvers.ddim", "from scorediff.models.unet import UNet"),
        ("scorediff.solvers.ddim", "import scorediff.training"),
        ("scorediff.diffusion.loss", "from scorediff.solvers import sample"),
        ("scorediff.evaluation.report", "from scorediff.experiment import train"),
        ("scorediff.errors", "from scorediff.types import Array"),
        ("scorediff.config", "from scorediff.overrides import apply"),
        ("scorediff.models.unet", "import configs.digits"),
        ("scorediff.experiment", "import experiments.train"),
    ],
)
def test_an_import_that_goes_up_is_seen(module, source):
    assert len(list(upward(source, module))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("scorediff.solvers.ddim", "from scorediff.diffusion.process import Process"),
        ("scorediff.solvers.ddim", "from .grid import uniform"),
        ("scorediff.training.loop", "from scorediff.errors import UserError\nimport jax"),
        ("scorediff.experiment", "from scorediff.evaluation import report"),
    ],
)
def test_an_import_that_goes_down_is_not(module, source):
    assert list(upward(source, module)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import torch.nn as nn",
        "def f():\n    import tensorflow as tf",
        "eval('1')",
        "x = exec",  # not a call: see below
        "np.load(f, allow_pickle=True)",
        "numpy.load(f, allow_pickle=flag)",
        "yaml.load(f)",
        "yaml.unsafe_load(f)",
    ],
)
def test_what_is_unsafe_is_seen(source):
    assert bool(list(unsafe(source))) is (source != "x = exec")
