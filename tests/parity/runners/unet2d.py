"""UNet2DModel."""

import numpy as np

from scorediff.interop.formats import Published
from tests.parity.case import Arrays, Case, answer, forward, nchw, nhwc


def outputs(model: Published, case: Case) -> Arrays:
    """The network's answer to an image, a timestep and a class."""
    labels = case.inputs.get("class_labels")
    cond = None if labels is None else {"label": labels}
    x = nhwc(case.inputs["sample"])
    noise = np.broadcast_to(case.inputs["timestep"], x.shape[:1])
    return {"sample": nchw(answer(model, x, noise, cond))}


UNET2D = forward(outputs)
