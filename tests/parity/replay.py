"""Every recorded case of a folder: which runner takes it, and which cases none takes yet."""

import importlib
from collections.abc import Iterator
from pathlib import Path

from tests.parity.case import Fixture, Result, Runner, fixture

# The class that a meta.json names -> "module:NAME" of its runner, in tests.parity.runners.
RUNNERS: dict[str, str] = {}


def fixtures(root: Path, only: str = "") -> list[Fixture]:
    """The fixtures under a folder, in the order of their names."""
    folders = sorted(p.parent for p in root.rglob("meta.json") if (p.parent / "io.npz").is_file())
    return [fixture(f, root) for f in folders if only in str(f.relative_to(root))]


def runner_of(found: Fixture) -> Runner | None:
    """The runner of a fixture's class."""
    place = RUNNERS.get(found.meta["class"])
    if place is None:
        return None
    module, name = place.split(":")
    return getattr(importlib.import_module(f"tests.parity.runners.{module}"), name)


def replay(root: Path, only: str = "") -> Iterator[Result]:
    """Every check of every case that is covered."""
    for found in fixtures(root, only):
        runner = runner_of(found)
        if runner is not None:
            yield from runner(found)


def not_covered(root: Path, only: str = "") -> Iterator[tuple[str, str]]:
    """Fixtures that nothing runs here, and why."""
    for found in fixtures(root, only):
        if runner_of(found) is None:
            yield found.name, f"no runner for {found.meta['class']}"
