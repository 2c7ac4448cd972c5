"""DiT and SiT: diffusers' class, and the papers' own with their guidance on three channels."""

import numpy as np

from scorediff.interop import files, formats
from scorediff.interop.formats import Published
from tests.parity.case import Arrays, Case, Fixture, Outputs, Runner, answer, forward, nchw, nhwc


def sample(model: Published, case: Case) -> Arrays:
    """diffusers' call."""
    a = case.inputs
    cond = {"label": a["class_labels"]}
    return {"sample": nchw(answer(model, nhwc(a["hidden_states"]), a["timestep"], cond))}


def own(model: Published, case: Case) -> Arrays:
    """The papers' call, plain or with guidance."""
    a = case.inputs
    x = a["x"]
    if case.call == "forward_with_cfg":  # both halves of the batch are given the first half's x
        x = np.concatenate([x[: len(x) // 2]] * 2)
    out = nchw(answer(model, nhwc(x), a["t"], {"label": a["y"]}))
    if case.call == "forward_with_cfg":
        out = guided(out, case.kwargs["cfg_scale"])
    return {"sample": out}


def guided(out: np.ndarray, scale: float) -> np.ndarray:
    """Both halves get u + scale (c - u) in the first three channels, and keep their others."""
    given, null = np.split(out[:, :3], 2)
    mixed = null + scale * (given - null)
    return np.concatenate([np.concatenate([mixed, mixed]), out[:, 3:]], axis=1)


def from_original(name: str, fixture: Fixture) -> Published:
    """The model of a folder that the papers' own classes were saved to."""
    config = files.read_json(fixture.folder / "config.json")
    tensors = files.read_folder(fixture.folder)
    return formats.from_tensors(formats.known(name), config, tensors, where=fixture.name)


def original(name: str, outputs: Outputs) -> Runner:
    """The usual checks for a class of the papers' own."""
    return forward(outputs, load=lambda fixture: from_original(name, fixture))


DIT_TRANSFORMER = forward(sample)
DIT = original("dit/DiT", own)
SIT = original("sit/SiT", own)
