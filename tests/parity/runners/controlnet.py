"""Replays of ControlNetModel: its residuals, and the neighbouring U-Net with and without them."""

from collections.abc import Iterator

import jax

from scorediff.interop import formats
from scorediff.interop.formats import Published
from scorediff.models.controlnet import Controlled
from tests.parity.case import (
    Arrays,
    Case,
    Fixture,
    Result,
    answer,
    cast,
    compared,
    from_hub_folder,
    nchw,
    nhwc,
    round_trip,
)
from tests.parity.runners.text_unet import condition


def _outputs(unet: Published, control: Published, case: Case) -> Arrays:
    x, noise, cond = nhwc(case.inputs["sample"]), case.inputs["timestep"], condition(case)
    hinted = cond | {"hint": nhwc(case.inputs["controlnet_cond"])}
    options = {
        "scale": case.kwargs.get("conditioning_scale", 1.0),
        "guess": case.kwargs.get("guess_mode", False),
    }
    residuals = answer(control, x, noise, hinted, **options)
    both = Published(
        network=Controlled(network=unet.network, control=control.network, **options),
        params={"network": unet.params, "control": control.params},
        format=unet.format,
    )
    return {
        "mid": nchw(residuals["middle"]),
        "sample": nchw(answer(both, x, noise, hinted)),
        "sample_without": nchw(answer(unet, x, noise, cond)),
    } | {f"down.{i}": nchw(skip) for i, skip in enumerate(residuals["skips"])}


def controlnet(fixture: Fixture) -> Iterator[Result]:
    """Every case in float32 and float64, and the ControlNet's round trip."""
    control = from_hub_folder(fixture)
    unet = formats.load((fixture.folder / fixture.meta["unet"]).resolve())
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            models = unet.with_dtype(dtype), control.with_dtype(dtype)
            for case in fixture.cases:
                yield compared(fixture, case, _outputs(*models, cast(case, dtype)), dtype)
    yield round_trip(fixture, control)


CONTROLNET = controlnet
