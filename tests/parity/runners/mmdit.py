"""SD3Transformer2DModel."""

from scorediff.interop.formats import Published
from tests.parity.case import Arrays, Case, answer, forward, nchw, nhwc


def sample(model: Published, case: Case) -> Arrays:
    """Latents, text tokens, one pooled vector a text, and 1000 times the noise level."""
    a = case.inputs
    cond = {"text": a["encoder_hidden_states"], "pooled": a["pooled_projections"]}
    return {"sample": nchw(answer(model, nhwc(a["hidden_states"]), a["timestep"], cond))}


SD3_TRANSFORMER = forward(sample)
