"""PixArtTransformer2DModel."""

from scorediff.interop.formats import Published
from tests.parity.case import Arrays, Case, answer, forward, nchw, nhwc

# Our condition -> the argument of diffusers' call (the last two are its added_cond_kwargs).
ARGUMENTS = {
    "text": "encoder_hidden_states",
    "text_mask": "encoder_attention_mask",
    "resolution": "resolution",
    "aspect": "aspect_ratio",
}


def sample(model: Published, case: Case) -> Arrays:
    """Latents, text tokens with or without a mask, and the picture's size where it is told."""
    a = case.inputs
    cond = {ours: a[theirs] for ours, theirs in ARGUMENTS.items() if theirs in a}
    return {"sample": nchw(answer(model, nhwc(a["hidden_states"]), a["timestep"], cond))}


PIXART = forward(sample)
