"""Recorded cases of T5's encoder."""

from scorediff.interop.formats import Published
from tests.parity.case import Arrays, Case, answer, forward


def _outputs(model: Published, case: Case) -> Arrays:
    got = answer(model, case.inputs["input_ids"], case.inputs.get("attention_mask"))
    states = {f"hidden_states.{i}": state for i, state in enumerate(got.hidden_states)}
    return {"last_hidden_state": got.last_hidden_state, **states}


T5_ENCODER = forward(_outputs)
