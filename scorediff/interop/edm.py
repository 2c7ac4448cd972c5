"""SongUNet of NVlabs/edm: DDPM++ and NCSN++ as Karras et al. train them (arXiv 2206.00364).

A file holds a network inside its preconditioner; the four preconditioners of the paper's table 1
are four classes here, with the same network. What the preconditioner is given (sigma_data and so
on) stays in the loaded model's config.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from scorediff.errors import UserError
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import POINTWISE, SAME, Entry, Form, within
from scorediff.interop.ncsnpp import example, refuse_difference
from scorediff.interop.settings import complete, only
from scorediff.models.ncsnpp import NCSNpp

# Constructor arguments of the preconditioners, table 1 of the paper.
PRECONDITIONERS: Mapping[str, Mapping[str, Any]] = {
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000},
    "EDMPrecond": {"sigma_min": 0, "sigma_max": math.inf, "sigma_data": 0.5},
}
DEFAULTS: Mapping[str, Any] = {
    "label_dim": 0,
    "augment_dim": 0,
    "model_type": "SongUNet",
    "model_channels": 128,
    "channel_mult": (1, 2, 2, 2),
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": (16,),
    "dropout": 0.10,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": (1, 1),
}
REQUIRED = ("img_resolution", "img_channels")
UNUSED = ("class", "use_fp16", "label_dropout")  # of its own arithmetic and training
PYRAMIDS = {"standard": "none", "skip": "skip", "residual": "residual"}  # theirs -> ours
INTERLEAVED = Form(  # (channel, [q k v]) rows of a 1 x 1 convolution, one head
    lambda a: a.reshape(-1, 3, a.shape[1]).transpose(2, 1, 0).reshape(a.shape[1], -1),
    lambda a: a.reshape(a.shape[0], 3, -1).transpose(2, 1, 0).reshape(-1, a.shape[0], 1, 1),
)
INTERLEAVED_BIAS = Form(lambda a: a.reshape(-1, 3).T.ravel(), lambda a: a.reshape(3, -1).T.ravel())
RESIDUAL = [
    Entry("norm_in", "norm0"),
    Entry("conv_in", "conv0"),
    Entry("condition", "affine"),
    Entry("norm_out", "norm1"),
    Entry("conv_out", "conv1"),
    Entry("shortcut", "skip", POINTWISE),
]
ATTENTION = [
    Entry("norm", "norm2"),
    Entry("attention/qkv", "qkv", INTERLEAVED, INTERLEAVED_BIAS),
    Entry("attention/out", "proj", POINTWISE),
]


def read_config(config: Config, *, preconditioner: str) -> NCSNpp:
    """The network of a preconditioner's arguments; those it must have are checked for."""
    known = dict.fromkeys(REQUIRED) | DEFAULTS | PRECONDITIONERS[preconditioner]
    c = complete(config, known, unused=UNUSED)
    only(c, model_type="SongUNet", embedding_type=("positional", "fourier"))
    only(c, encoder_type=tuple(PYRAMIDS), decoder_type=("standard", "skip"))
    lacking = [field for field in REQUIRED if c[field] is None]
    if lacking:
        raise UserError(f"the config of an EDM network lacks {lacking[0]}")
    size, channels = c["img_resolution"], c["img_channels"]
    heights = [size >> level for level in range(len(c["channel_mult"]))]
    return NCSNpp(
        channels=c["model_channels"],
        multipliers=tuple(c["channel_mult"]),
        blocks=c["num_blocks"],
        attend_down=tuple(height in c["attn_resolutions"] for height in heights),
        dropout=c["dropout"],
        embedding=c["embedding_type"],
        noise_features=c["model_channels"] * c["channel_mult_noise"],
        condition_width=c["model_channels"] * c["channel_mult_emb"],
        num_classes=c["label_dim"] or None,
        augment=c["augment_dim"] or None,
        taps=tuple(c["resample_filter"]),
        progressive_in=PYRAMIDS[c["encoder_type"]],
        progressive_out=PYRAMIDS[c["decoder_type"]],
        in_channels=channels,
        image_size=size,
        out_channels=2 * channels if preconditioner == "iDDPMPrecond" else channels,
    )


def config(network: NCSNpp, *, preconditioner: str) -> dict[str, Any]:
    """The arguments that make a network of ours; what the class cannot have is a UserError."""
    theirs = {ours: name for name, ours in PYRAMIDS.items()}
    heights = [size_of(network, level) for level in range(len(network.multipliers))]
    found = {
        "class": preconditioner,
        "img_resolution": network.image_size,
        "img_channels": network.in_channels,
        "label_dim": network.num_classes or 0,
        "augment_dim": network.augment or 0,
        "model_type": "SongUNet",
        "model_channels": network.channels,
        "channel_mult": list(network.multipliers),
        "channel_mult_emb": _ratio(network.condition_width or 4 * network.channels, network),
        "num_blocks": network.blocks,
        "attn_resolutions": [h for h, a in zip(heights, network.attend_down, strict=True) if a],
        "dropout": network.dropout,
        "embedding_type": network.embedding,
        "channel_mult_noise": _ratio(network.noise_width, network),
        "encoder_type": theirs[network.progressive_in],
        "decoder_type": theirs[network.progressive_out],
        "resample_filter": list(network.taps),
    }
    back = read_config(found, preconditioner=preconditioner)
    refuse_difference("SongUNet", network, back)
    return found


def _ratio(width: int, network: NCSNpp) -> int:
    """A width over that of the first level."""
    if width % network.channels:
        raise UserError(f"an EDM network has no width of {width} with {network.channels} channels")
    return width // network.channels


def size_of(network: NCSNpp, level: int) -> int:
    """Side of a level's feature maps in the images that the network was trained on."""
    if network.image_size is None:
        raise UserError("NCSNpp.image_size must be known: EDM's names hold the sizes of the levels")
    return network.image_size >> level


def entries(network: NCSNpp) -> list[Entry]:
    """The names of a network's parameters."""
    coarsest = size_of(network, len(network.multipliers) - 1)
    middle = [f"model.dec.{coarsest}x{coarsest}_in{i}" for i in range(2)]
    first = size_of(network, 0)
    table = [
        Entry("condition/fourier/frequencies", "model.map_noise.freqs", SAME),
        Entry("condition/label", "model.map_label"),
        Entry("condition/augment", "model.map_augment"),
        Entry("condition/noise_in", "model.map_layer0"),
        Entry("condition/noise_out", "model.map_layer1"),
        Entry("conv_in", f"model.enc.{first}x{first}_conv"),
        Entry("norm_out", f"model.dec.{first}x{first}_aux_norm"),
        Entry("conv_out", f"model.dec.{first}x{first}_aux_conv"),
        *within("middle_0_residual", middle[0], RESIDUAL),
        *within("middle_0_attention", middle[0], ATTENTION),
        *within("middle_1_residual", middle[1], RESIDUAL),
    ]
    for level in range(len(network.multipliers)):
        table += _level(network, level)
    return table


def _level(network: NCSNpp, level: int) -> list[Entry]:
    """One level: its encoder, its decoder, and the steps to it from both sides."""
    size = size_of(network, level)
    encoder, decoder = f"model.enc.{size}x{size}", f"model.dec.{size}x{size}"
    table = [
        *within(f"down{level}_halve", f"{encoder}_down", RESIDUAL),
        Entry(f"down{level}_pyramid", f"{encoder}_aux_skip", POINTWISE),
        Entry(f"down{level}_pyramid/conv", f"{encoder}_aux_residual"),
        *within(f"up{level + 1}_double", f"{decoder}_up", RESIDUAL),
        Entry(f"up{level}_pyramid_norm", f"{decoder}_aux_norm"),
        Entry(f"up{level}_pyramid", f"{decoder}_aux_conv"),
        *within(f"up{level}_attention", f"{decoder}_block{network.blocks}", ATTENTION),
    ]
    for i in range(network.blocks):
        for part, block in (("residual", RESIDUAL), ("attention", ATTENTION)):
            table += within(f"down{level}_{i}_{part}", f"{encoder}_block{i}", block)
    for i in range(network.blocks + 1):
        table += within(f"up{level}_{i}_residual", f"{decoder}_block{i}", RESIDUAL)
    return table


def buffers(network: NCSNpp, *, preconditioner: str) -> dict[str, np.ndarray]:
    """The filters of everything that resamples, and iDDPM's noise levels."""
    last = len(network.multipliers) - 1
    places = []
    for level in range(last + 1):
        size = size_of(network, level)
        encoder, decoder = f"model.enc.{size}x{size}", f"model.dec.{size}x{size}"
        if level > 0:
            places += [f"{encoder}_down.conv0", f"{encoder}_down.skip"]
            aux = {"skip": ["down"], "residual": ["residual"], "none": []}[network.progressive_in]
            places += [f"{encoder}_aux_{name}" for name in aux]
        if level < last:
            places += [f"{decoder}_up.conv0", f"{decoder}_up.skip"]
            places += [f"{decoder}_aux_up"] if network.progressive_out == "skip" else []
    taps = np.asarray(network.taps, np.float32) / sum(network.taps)
    window = np.outer(taps, taps)[None, None]
    found = {f"{place}.resample_filter": window for place in places}
    return found | ({"u": iddpm_levels()} if preconditioner == "iDDPMPrecond" else {})


def iddpm_levels(
    steps: int = 1000, c1: float = 0.001, c2: float = 0.008, dtype: str = "float32"
) -> np.ndarray:
    """The noise levels u_0 > ... > u_M = 0 that an iDDPM network knows, [M + 1] (table 1)."""
    alpha_bar = np.sin(0.5 * np.pi * np.arange(steps + 1) / (steps * (c2 + 1))) ** 2
    u = np.zeros(steps + 1)
    for j in range(steps, 0, -1):
        ratio = max(alpha_bar[j - 1] / alpha_bar[j], c1)
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / ratio - 1)
    return u.astype(dtype)


def _format(preconditioner: str) -> Format:
    return Format(
        name=f"edm/{preconditioner}(SongUNet)",
        network=partial(read_config, preconditioner=preconditioner),
        config=partial(config, preconditioner=preconditioner),
        entries=entries,
        example=example,
        buffers=partial(buffers, preconditioner=preconditioner),
        stem="model",
    )


VP, VE, IDDPM, EDM = map(_format, PRECONDITIONERS)
