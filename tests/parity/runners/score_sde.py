"""Replays of score_sde's ncsnpp, from its msgpack checkpoints. Arrays are NHWC already."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from scorediff.interop import files, formats, score_sde
from scorediff.interop.formats import Published
from tests.parity.case import Arrays, Case, Fixture, Result, answer, cast, compared, round_trip

FLOAT64 = 1e-9  # of the largest value, as the other fixtures have it


def load(fixture: Fixture) -> Published:
    """The model of config.json and checkpoint_N."""
    config = files.read_json(fixture.folder / "config.json")
    tensors = score_sde.read_checkpoint(checkpoint(fixture))
    return formats.from_tensors(score_sde.NCSNPP, config, tensors, where=fixture.name)


def checkpoint(fixture: Fixture) -> Path:
    """The path of the fixture's checkpoint."""
    return fixture.folder / fixture.meta.get("weights", "checkpoint_1")


def outputs(model: Published, case: Case) -> Arrays:
    return {"sample": answer(model, case.inputs["x"], case.inputs["time_cond"])}


def with_float64_tolerance(case: Case, embedding: str) -> Case:
    """The case with a tolerance for float64 where it has none.

    The recorded run has the frequencies of a positional embedding in float32, whatever it computes
    in (given those, ours agrees to 1e-14), so that float32's own tolerance has to do there.
    """

    def tolerance(entry: Mapping[str, Any]) -> float:
        found = entry["atol"] if embedding == "positional" else FLOAT64 * entry["absmax"]
        return entry.get("atol64") or found

    outputs = {name: {**e, "atol64": tolerance(e)} for name, e in case.outputs.items()}
    return case._replace(outputs=outputs)


def NCSNPP(fixture: Fixture) -> Iterator[Result]:
    model = load(fixture)
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            cast_model = model.with_dtype(dtype)
            for case in fixture.cases:
                case = with_float64_tolerance(case, model.network.embedding)
                yield compared(fixture, case, outputs(cast_model, cast(case, dtype)), dtype)
    yield round_trip(fixture, model, score_sde.read_checkpoint(checkpoint(fixture)))
