"""Replays of UNet2DConditionModel."""

from scorediff.interop.formats import Published
from tests.parity.case import Arrays, Case, answer, forward, nchw, nhwc

COND = {
    "encoder_hidden_states": "text",
    "encoder_attention_mask": "text_mask",
    "text_embeds": "pooled",
    "time_ids": "sizes",
    "timestep_cond": "guidance",
    "class_labels": "label",
}


def condition(case: Case) -> Arrays:
    """The condition of a case under our names."""
    return {ours: case.inputs[theirs] for theirs, ours in COND.items() if theirs in case.inputs}


def _outputs(model: Published, case: Case) -> Arrays:
    x, noise = nhwc(case.inputs["sample"]), case.inputs["timestep"]
    return {"sample": nchw(answer(model, x, noise, condition(case)))}


TEXT_UNET = forward(_outputs)
