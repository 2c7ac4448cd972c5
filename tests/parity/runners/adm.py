"""ADM's U-Net as guided-diffusion and as EDM store it."""

import numpy as np

from scorediff.interop import adm, files, formats
from scorediff.interop.formats import Published
from tests.parity.case import Arrays, Case, Fixture, answer, forward, nchw, nhwc
from tests.parity.runners import edm


def load(fixture: Fixture) -> Published:
    """The model of config.json and model.safetensors."""
    config = files.read_json(fixture.folder / "config.json")
    tensors, _ = files.read_safetensors(fixture.folder / "model.safetensors")
    format = adm.format_of(config)
    return formats.from_tensors(format, config, tensors, where=str(fixture.folder))


def outputs(model: Published, case: Case) -> Arrays:
    """The network's answer to an image, a timestep and a class."""
    labels = case.inputs.get("y")
    cond = None if labels is None else {"label": np.asarray(labels, np.int32)}
    x = nhwc(case.inputs["x"])
    return {"sample": nchw(answer(model, x, case.inputs["timesteps"], cond))}


UNET_MODEL = forward(outputs, load)
DHARIWAL_UNET = forward(edm.outputs, edm.load)
