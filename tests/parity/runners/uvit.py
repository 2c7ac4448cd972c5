"""U-ViT with classes and with text: the paper's own classes."""

from scorediff.interop.formats import Published
from tests.parity.case import Arrays, Case, answer, nchw, nhwc
from tests.parity.runners.dit import original

ARGUMENTS = {"label": "y", "text": "context"}  # our condition -> their argument


def sample(model: Published, case: Case) -> Arrays:
    """The paper's call."""
    a = case.inputs
    cond = {ours: a[theirs] for ours, theirs in ARGUMENTS.items() if theirs in a}
    return {"sample": nchw(answer(model, nhwc(a["x"]), a["timesteps"], cond))}


UVIT = original("uvit/UViT", sample)
