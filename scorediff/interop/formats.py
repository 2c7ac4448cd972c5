"""The published classes that are read and written here, and a loaded model.

A `Format` says everything about one class: its config as a network of ours and back, its names,
and the tensors in its files that are no parameters.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from scorediff.errors import UserError
from scorediff.interop import files, layout
from scorediff.interop.layout import Entry, Tensors
from scorediff.types import Params

Config = Mapping[str, Any]


def _no_buffers(network: nn.Module) -> dict[str, np.ndarray]:
    return {}


def _as_it_is(tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True, kw_only=True)
class Format:
    """One published class.

    name:      "UNet2DModel", or "repository/Class" for the papers' own code ("dit/DiT").
    network:   config (as the file has it) -> our network; unsupported fields are UserErrors.
    config:    our network -> config, with the class's name as its library writes it.
    entries:   our network -> table of names.
    example:   our network -> the arguments of its `init`, arrays or `jax.ShapeDtypeStruct`s.
    modern:    tensors under names of older files -> under the names of the table.
    buffers:   our network -> tensors that files of this class hold and that are no parameters;
               checked when reading, added when writing.
    ignored:   patterns of further tensors that are no parameters.
    stem:      name of the weights' file.
    """

    name: str
    network: Callable[[Config], nn.Module]
    config: Callable[[nn.Module], dict[str, Any]]
    entries: Callable[[nn.Module], Sequence[Entry]]
    example: Callable[[nn.Module], tuple]
    modern: Callable[[Tensors], Tensors] = _as_it_is
    buffers: Callable[[nn.Module], Mapping[str, np.ndarray]] = _no_buffers
    ignored: tuple[str, ...] = ()
    stem: str = files.STEMS[0]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A loaded model: the network, its parameters (NumPy, the file's number type), its origin."""

    network: nn.Module
    params: Params
    format: Format
    config: Config = field(default_factory=dict)

    def with_dtype(self, dtype: str) -> "Published":
        """The same model with parameters of `dtype` ("float32", "float64"), computing in it."""
        params = jax.tree.map(lambda a: np.asarray(a, dtype), self.params)
        network = self.network.clone(dtype=dtype)
        return Published(network=network, params=params, format=self.format, config=self.config)


def shapes(format: Format, network: nn.Module) -> layout.Shapes:
    """The shapes of a network's parameters, without making one."""
    example = format.example(network)
    return layout.shapes_of(jax.eval_shape(network.init, jax.random.key(0), *example)["params"])


def from_tensors(
    format: Format, config: Config, tensors: Tensors, *, where: str = "the checkpoint"
) -> Published:
    """A model from its config and its tensors; UserError where the two do not fit."""
    network = format.network(config)
    tensors = dict(format.modern(tensors))
    for name, buffer in format.buffers(network).items():
        _check_buffer(name, tensors.pop(name, buffer), buffer, where)
    params = layout.read(
        format.entries(network),
        shapes(format, network),
        tensors,
        ignored=format.ignored,
        where=where,
    )
    return Published(network=network, params=params, format=format, config=config)


def _check_buffer(name: str, theirs: np.ndarray, ours: np.ndarray, where: str) -> None:
    """A buffer that the network makes itself must be the one in the file, to half precision."""
    if theirs.shape != ours.shape or not np.allclose(
        np.asarray(theirs, np.float64), ours, rtol=1e-2, atol=1e-2
    ):
        raise UserError(f"{where}: {name} is not what this network computes with")


def to_tensors(format: Format, network: nn.Module, params: Params) -> dict[str, np.ndarray]:
    """The tensors of a file of this class: parameters and buffers."""
    return {**format.buffers(network), **layout.write(format.entries(network), params)}


# "module:NAME" of each format; a module is imported when one of its classes is asked for.
KNOWN: dict[str, str] = {
    "adm/UNetModel": "adm:ADM",
    "adm/UNetModel (new attention order)": "adm:ADM_PARTS_FIRST",
    "edm/iDDPMPrecond(DhariwalUNet)": "edm_adm:IDDPM",
    "edm/VEPrecond(DhariwalUNet)": "edm_adm:VE",
    "edm/VPPrecond(DhariwalUNet)": "edm_adm:VP",
    "edm/EDMPrecond(DhariwalUNet)": "edm_adm:EDM",
    "score_sde/ncsnpp": "score_sde:NCSNPP",
    "edm/EDMPrecond(SongUNet)": "edm:EDM",
    "edm/VEPrecond(SongUNet)": "edm:VE",
    "edm/VPPrecond(SongUNet)": "edm:VP",
    "edm/iDDPMPrecond(SongUNet)": "edm:IDDPM",
    "UNet2DModel": "unet2d:UNET2D",
    "uvit/UViT": "uvit:UVIT",
    "sit/SiT": "dit:SIT",
    "dit/DiT": "dit:DIT",
    "SD3Transformer2DModel": "mmdit:SD3_TRANSFORMER",
    "PixArtTransformer2DModel": "pixart:PIXART",
    "DiTTransformer2DModel": "dit:DIT_TRANSFORMER",
    "AutoencoderKL": "autoencoder:AUTOENCODER_KL",
    "CLIPTextModel": "clip:CLIP_TEXT",
    "CLIPTextModelWithProjection": "clip:CLIP_TEXT_WITH_PROJECTION",
    "T5EncoderModel": "t5:T5_ENCODER",
    "ControlNetModel": "controlnet:CONTROLNET",
    "ldm/AutoencoderKL": "ldm:AUTOENCODER_KL",
    "ldm/UNetModel": "ldm:TEXT_UNET",
    "UNet2DConditionModel": "text_unet:TEXT_UNET",
}


def known(name: str) -> Format:
    """The format of a class; UserError names those there are."""
    if name not in KNOWN:
        raise UserError(f"no reader for {name}; there are {', '.join(sorted(KNOWN))}")
    module, attribute = KNOWN[name].split(":")
    return getattr(importlib.import_module(f"scorediff.interop.{module}"), attribute)


def class_of(config: Config, where: str) -> str:
    """The class that a hub config names."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    name = config.get("_class_name") or first
    if not isinstance(name, str):
        raise UserError(f"{where} names no class (_class_name or architectures)")
    if name == "Transformer2DModel":  # what older files call both
        kinds = {
            "ada_norm_zero": "DiTTransformer2DModel",
            "ada_norm_single": "PixArtTransformer2DModel",
        }
        return kinds.get(config.get("norm_type", ""), name)
    return name


def load(folder: str | Path, *, variant: str | None = None) -> Published:
    """A model from a hub folder (config.json and safetensors)."""
    folder = Path(folder)
    config = files.read_json(folder / "config.json")
    format = known(class_of(config, str(folder / "config.json")))
    tensors = files.read_folder(folder, variant)
    return from_tensors(format, config, tensors, where=str(folder))


def save(folder: str | Path, model: Published) -> None:
    """A hub folder that the class's own library reads.

    What the loaded config said beyond the network (a preconditioner's constants) is kept.
    """
    config = {**model.config, **model.format.config(model.network)}
    tensors = to_tensors(model.format, model.network, model.params)
    files.write_folder(folder, config, tensors, stem=model.format.stem)
