"""What a config says about how a number came about, as the fields of a `Result`."""

import json
import math
from typing import Any

from ml_collections import ConfigDict

from scorediff.config import describe_node, to_json, words
from scorediff.evaluation.generate import Weak
from scorediff.evaluation.result import AWAY, GUIDANCE, git_revision, hash_json
from scorediff.solvers import program as programs
from scorediff.solvers.program import Driver, Program

# Of `sampling`: what a result must say beside solver, grid and guidance scale.
RULES = (
    *("guidance", "guidance_interval", "threshold", "corrector", "noise"),
    *("to_data", "t_start", "t_end"),
)
OWN_STEPS = "of its own steps"  # where a grid is named


def origin(config: ConfigDict, step: int) -> dict[str, Any]:
    """The config, the code and the checkpoint that a number belongs to."""
    return {
        "name": config.name,
        "config_hash": hash_json(json.loads(to_json(config))),
        "revision": git_revision(),
        "step": step,
        "ema": config.sampling.ema or "none",
    }


def solver_of(node: ConfigDict, program: Program) -> dict[str, Any]:
    """The solver in words, with the number of rows where that is known before."""
    name, arguments = describe_node(node)
    adaptive = isinstance(program, Driver)
    own = {k: v for k, v in arguments.items() if not (adaptive and k in programs.ENDS)}
    return {
        "solver": name,
        "solver_args": {k: str(v) if v == math.inf else words(v) for k, v in own.items()},
        "rows": programs.rows(program),
    }


def grid_of(config: ConfigDict, program: Any) -> str:
    """The grid in words."""
    return OWN_STEPS if isinstance(program, Driver) else words(config.sampling.grid)


def rules_of(config: ConfigDict, weak: Weak | None) -> dict[str, Any]:
    """Guidance, away from a weak model where there is one, and the other rules of `Sampling`."""
    sampling = config.sampling
    rules = {name: str(words(sampling[name])) for name in RULES if name in sampling}
    return {
        "rules": rules if weak is None else {**rules, "weak": weak.name},
        "guidance_scale": sampling.guidance_scale,
        "guidance_convention": GUIDANCE if weak is None else AWAY,
    }
