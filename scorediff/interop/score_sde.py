"""The network "ncsnpp" of yang-song/score_sde (Flax), and its msgpack checkpoints.

Its modules are numbered in the order in which they are called, over the whole network, so the table
of names is a walk through the network that counts. Layouts are Flax's own. Of a checkpoint, only
the averaged parameters are read.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization, traverse_util

from scorediff.errors import StorageError, UserError
from scorediff.interop import msgpack_file
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import SAME, Entry, Form, Tensors, within
from scorediff.interop.ncsnpp import example, refuse_difference
from scorediff.interop.settings import complete, only
from scorediff.models.ncsnpp import SQRT2, NCSNpp
from scorediff.models.resample import BOX

NAME = "score_sde/ncsnpp"
REQUIRED = (
    "nf",
    "ch_mult",
    "num_res_blocks",
    "attn_resolutions",
    "fir",
    "skip_rescale",
    "progressive",
    "progressive_input",
    "embedding_type",
    "scale_by_sigma",
)
DATA = ("image_size", "num_channels", "centered")
DEFAULTS: Mapping[str, Any] = {
    "conditional": True,
    "dropout": 0.1,
    "fir_kernel": (1, 3, 3, 1),
    "nonlinearity": "swish",
    "normalization": "GroupNorm",
    "progressive_combine": "sum",
    "resblock_type": "biggan",
}
UNUSED = (  # of the process, of training, and of how the network was drawn
    "attention_type",
    "beta_max",
    "beta_min",
    "conv_size",
    "ema_rate",
    "fourier_scale",
    "init_scale",
    "name",
    "num_scales",
    "resamp_with_conv",
    "sigma_max",
    "sigma_min",
)
EMBEDDINGS = {"positional": "positional", "fourier": "log_fourier"}  # theirs -> ours
INPUTS = {"none": "none", "input_skip": "skip", "residual": "residual"}
OUTPUTS = {"none": "none", "output_skip": "skip"}

POINT = Form(lambda a: a.reshape(a.shape[-2:]), lambda a: a[None, None])  # a 1 x 1 window
FLAX = {"kernel": "kernel", "scale": "scale", "bias": "bias"}  # ours -> theirs
NIN = {"kernel": "W", "bias": "b"}
WEIGHT = {"kernel": "weight", "bias": "bias"}


def _flax(ours: str, theirs: str, form: Form = SAME) -> Entry:
    return Entry(ours, theirs, form, leaves=FLAX)


RESIDUAL = [
    _flax("norm_in", "GroupNorm_0"),
    _flax("conv_in", "Conv_0"),
    _flax("condition", "Dense_0"),
    _flax("norm_out", "GroupNorm_1"),
    _flax("conv_out", "Conv_1"),
    _flax("shortcut", "Conv_2", POINT),
]
ATTENTION = [
    _flax("norm", "GroupNorm_0"),
    Entry("attention/qkv", ("NIN_0", "NIN_1", "NIN_2"), SAME, leaves=NIN),
    Entry("attention/out", "NIN_3", SAME, leaves=NIN),
]


def read_config(config: Config) -> NCSNpp:
    """The network of a config: its sections "model" and "data", under "config" or by themselves."""
    c, data = _sections(config)
    only(c, conditional=True, nonlinearity="swish", normalization="GroupNorm")
    only(c, resblock_type="biggan", embedding_type=tuple(EMBEDDINGS))
    only(c, progressive=tuple(OUTPUTS), progressive_input=tuple(INPUTS))
    if c["progressive_input"] == "input_skip":
        only(c, progressive_combine="sum")
    if c["progressive_input"] == "residual":
        only(c, fir=True)  # without a filter it is a plain strided convolution
    if c["embedding_type"] == "positional":
        only(c, scale_by_sigma=False)  # the noise level is then a time, not sigma
    heights = [data["image_size"] >> level for level in range(len(c["ch_mult"]))]
    return NCSNpp(
        channels=c["nf"],
        multipliers=tuple(c["ch_mult"]),
        blocks=c["num_res_blocks"],
        attend_down=tuple(height in c["attn_resolutions"] for height in heights),
        dropout=c["dropout"],
        embedding=EMBEDDINGS[c["embedding_type"]],
        taps=tuple(c["fir_kernel"]) if c["fir"] else BOX,
        progressive_in=INPUTS[c["progressive_input"]],
        progressive_out=OUTPUTS[c["progressive"]],
        rescale=SQRT2 if c["skip_rescale"] else 1.0,
        centre_input=not data["centered"],
        divide_by_noise=c["scale_by_sigma"],
        in_channels=data["num_channels"],
        image_size=data["image_size"],
        out_channels=data["num_channels"],
    )


def _sections(config: Config) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """What the config says of the model, completed, and of its data."""
    sections = config.get("config", config)
    for name in ("model", "data"):
        if not isinstance(sections.get(name), Mapping):
            raise UserError(f'the config of an ncsnpp has no section "{name}"')
    known = dict.fromkeys(REQUIRED) | DEFAULTS
    model, data = complete(sections["model"], known, unused=UNUSED), sections["data"]
    lacking = [f"model.{field}" for field in REQUIRED if model[field] is None]
    lacking += [f"data.{field}" for field in DATA if data.get(field) is None]
    if lacking:
        raise UserError(f"the config of an ncsnpp lacks {lacking[0]}")
    return model, data


def config(network: NCSNpp) -> dict[str, Any]:
    """The config of a network of ours; what the class cannot have is a UserError."""
    n = network
    if n.image_size is None:
        raise UserError("NCSNpp.image_size must be known: score_sde's config attends by it")
    heights = [n.image_size >> level for level in range(len(n.multipliers))]
    model = {
        "nf": n.channels,
        "ch_mult": list(n.multipliers),
        "num_res_blocks": n.blocks,
        "attn_resolutions": [h for h, a in zip(heights, n.attend_down, strict=True) if a],
        "dropout": n.dropout,
        "fir": n.taps != BOX,
        "fir_kernel": list(n.taps if n.taps != BOX else DEFAULTS["fir_kernel"]),
        "skip_rescale": n.rescale != 1,
        "progressive": _theirs(OUTPUTS, n.progressive_out),
        "progressive_input": _theirs(INPUTS, n.progressive_in),
        "embedding_type": _theirs(EMBEDDINGS, n.embedding),
        "scale_by_sigma": n.divide_by_noise,
    }
    data = {
        "image_size": n.image_size,
        "num_channels": n.in_channels,
        "centered": not n.centre_input,
    }
    sections = {"training": {"continuous": True}, "data": data, "model": DEFAULTS | model}
    found = {"class": "ncsnpp", "config": sections}
    refuse_difference("score_sde's ncsnpp", network, read_config(found))
    return found


def _theirs(names: Mapping[str, str], ours: str) -> str:
    """Their word for ours."""
    found = [name for name, value in names.items() if value == ours]
    if not found:
        raise UserError(f"score_sde's ncsnpp has no {ours!r}, only {', '.join(names.values())}")
    return found[0]


def entries(network: NCSNpp) -> list[Entry]:
    """The names of a network's parameters: a walk in the order of their calls."""
    table, counts = [], Counter()

    def numbered(kind: str) -> str:
        counts[kind] += 1
        return f"{kind}_{counts[kind] - 1}"

    def residual(ours: str) -> None:
        table.extend(within(ours, numbered("ResnetBlockBigGANpp"), RESIDUAL))

    def attention(ours: str) -> None:
        table.extend(within(ours, numbered("AttnBlockpp"), ATTENTION))

    table += _condition_and_first()
    counts["Conv"] += 1
    levels = range(len(network.multipliers))
    for level in levels:
        if level:
            residual(f"down{level}_halve")
            table += _pyramid(network, level, numbered)
        for i in range(network.blocks):
            residual(f"down{level}_{i}_residual")
            if network.attend_down[level]:
                attention(f"down{level}_{i}_attention")
    residual("middle_0_residual")
    attention("middle_0_attention")
    residual("middle_1_residual")
    for level in reversed(levels):
        for i in range(network.blocks + 1):
            residual(f"up{level}_{i}_residual")
        if network.attend_down[level]:
            attention(f"up{level}_attention")
        if level == 0 or network.progressive_out == "skip":
            name = f"up{level}_pyramid" if level else "conv_out"
            norm = f"{name}_norm" if level else "norm_out"
            table += [_flax(norm, numbered("GroupNorm")), _flax(name, numbered("Conv"))]
        if level:
            residual(f"up{level}_double")
    return table


def _condition_and_first() -> list[Entry]:
    return [
        Entry("condition/fourier/frequencies", "GaussianFourierProjection_0.W", SAME),
        _flax("condition/noise_in", "Dense_0"),
        _flax("condition/noise_out", "Dense_1"),
        _flax("conv_in", "Conv_0"),
    ]


def _pyramid(network: NCSNpp, level: int, numbered) -> list[Entry]:
    """The encoder's pyramid at one level."""
    if network.progressive_in == "skip":
        return [_flax(f"down{level}_pyramid", f"{numbered('Combine')}.Conv_0", POINT)]
    if network.progressive_in == "residual":
        name = f"{numbered('Downsample')}.Conv2d_0"
        return [Entry(f"down{level}_pyramid/conv", name, SAME, leaves=WEIGHT)]
    return []


NCSNPP = Format(
    name=NAME,
    network=read_config,
    config=config,
    entries=entries,
    example=example,
    stem="checkpoint",
)


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """The averaged parameters of a msgpack checkpoint, their paths joined by dots."""
    found = msgpack_file.averaged(msgpack_file.read(path), where=str(path))
    return {name.replace("/", "."): array for name, array in found.params.items()}


def write_checkpoint(path: str | Path, tensors: Tensors) -> None:
    """A msgpack checkpoint that holds the averaged parameters and nothing else."""
    tree = traverse_util.unflatten_dict(dict(tensors), sep=".")
    try:
        Path(path).write_bytes(serialization.msgpack_serialize({"step": 0, "params_ema": tree}))
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from None
