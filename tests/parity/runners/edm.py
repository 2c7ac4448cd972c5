"""Replays of NVlabs/edm: the raw network's answer F, and the denoised image D it stands for.

D is computed from table 1 of arXiv 2206.00364, the network being asked at the noise level and scale
that the table gives, and not at those that the fixture recorded.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from scorediff.interop import edm, files, formats
from scorediff.interop.formats import Published
from tests.parity.case import (
    Arrays,
    Case,
    Fixture,
    Runner,
    answer,
    forward,
    nchw,
    nhwc,
)


class Scales(NamedTuple):
    """D(x; sigma) = skip x + out F(in x; noise)."""

    skip: np.ndarray
    out: np.ndarray
    into: np.ndarray
    noise: np.ndarray


def vp(s: np.ndarray, beta_d: float, beta_min: float, M: int, **_: Any) -> Scales:
    t = (np.sqrt(beta_min**2 + 2 * beta_d * np.log1p(s**2)) - beta_min) / beta_d
    return Scales(np.ones_like(s), -s, 1 / np.sqrt(s**2 + 1), (M - 1) * t)


def ve(s: np.ndarray, **_: Any) -> Scales:
    return Scales(np.ones_like(s), s, np.ones_like(s), np.log(s / 2))


def iddpm(s: np.ndarray, C_1: float, C_2: float, M: int) -> Scales:
    levels = edm.iddpm_levels(M, C_1, C_2, "float64")
    nearest = np.abs(s[:, None] - levels[None, :]).argmin(axis=1)
    noise = (M - 1 - nearest).astype(s.dtype)
    return Scales(np.ones_like(s), -s, 1 / np.sqrt(s**2 + 1), noise)


def karras(s: np.ndarray, sigma_data: float, **_: Any) -> Scales:
    both = s**2 + sigma_data**2
    return Scales(sigma_data**2 / both, s * sigma_data / both**0.5, both**-0.5, np.log(s) / 4)


SCALES: Mapping[str, Callable[..., Scales]] = {
    "VPPrecond": vp,
    "VEPrecond": ve,
    "iDDPMPrecond": iddpm,
    "EDMPrecond": karras,
}


def scales(config: Mapping[str, Any], sigma: np.ndarray) -> Scales:
    """Table 1's functions of the noise level for the preconditioner that a config names."""
    name = config["class"]
    given = {k: config.get(k, v) for k, v in edm.PRECONDITIONERS[name].items()}
    computed = SCALES[name](np.asarray(sigma, np.float64), **given)
    return Scales(*(a.astype(sigma.dtype) for a in computed))


def load(fixture: Fixture) -> Published:
    """The model of config.json and model.safetensors."""
    config = files.read_json(fixture.folder / "config.json")
    tensors, _ = files.read_safetensors(fixture.folder / "model.safetensors")
    format = formats.known(f"edm/{fixture.meta['class']}")
    return formats.from_tensors(format, config, tensors, where=str(fixture.folder))


def condition(case: Case) -> Arrays:
    """Class, from a one-hot vector, and augmentation."""
    found = {}
    if "augment_labels" in case.inputs:
        found["augment"] = case.inputs["augment_labels"]
    if "class_labels" in case.inputs:
        one_hot = case.inputs["class_labels"]
        null = np.where(one_hot.any(axis=1), 0, one_hot.shape[1])
        found["label"] = (one_hot.argmax(axis=1) + null).astype(np.int32)
    return found


def outputs(model: Published, case: Case) -> Arrays:
    """F as recorded inputs give it, and D from the image and the noise level."""
    cond, x = condition(case), nhwc(case.inputs["x"])
    s = scales(model.config, case.inputs["sigma"])
    skip, out, into = (np.reshape(a, (-1, 1, 1, 1)) for a in s[:3])
    raw = answer(model, nhwc(case.inputs["net_in"]), case.inputs["noise_labels"], cond)
    asked = np.asarray(answer(model, into * x, s.noise, cond))[..., : x.shape[-1]]
    return {"F": nchw(raw), "D": nchw(skip * x + out * asked)}


SONG_UNET: Runner = forward(outputs, load)
