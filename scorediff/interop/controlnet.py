"""ControlNetModel: the side networks of Stable Diffusion as diffusers has them."""

from typing import Any

import jax.numpy as jnp

from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import POINTWISE, Entry, within
from scorediff.interop.settings import complete, only
from scorediff.interop.text_unet import (
    SHARED_DEFAULTS,
    UNUSED,
    trunk,
    trunk_config,
    trunk_entries,
    trunk_places,
)
from scorediff.interop.text_unet import example as trunk_example
from scorediff.models.controlnet import ControlNet

DEFAULTS = SHARED_DEFAULTS | {
    "conditioning_channels": 3,
    "conditioning_embedding_out_channels": (16, 32, 96, 256),
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
}


def _network(config: Config) -> ControlNet:
    config = complete(config, DEFAULTS, unused=UNUSED)
    only(config, global_pool_conditions=False, controlnet_conditioning_channel_order=("rgb", "bgr"))
    return ControlNet(
        **trunk(config),
        hint_channels=tuple(config["conditioning_embedding_out_channels"]),
        hint_inputs=config["conditioning_channels"],
        hint_order=config["controlnet_conditioning_channel_order"],
    )


def _config(network: ControlNet) -> dict[str, Any]:
    return trunk_config(network) | {
        "_class_name": "ControlNetModel",
        "conditioning_channels": network.hint_inputs,
        "conditioning_embedding_out_channels": list(network.hint_channels),
        "controlnet_conditioning_channel_order": network.hint_order,
    }


def _hint(network: ControlNet) -> list[Entry]:
    """The convolutions of the picture, two of theirs (keep, halve) for each further width."""
    entries = [Entry("hint_in", "conv_in"), Entry("hint_out", "conv_out")]
    for i in range(len(network.hint_channels) - 1):
        entries.append(Entry(f"hint{i}_keep", f"blocks.{2 * i}"))
        entries.append(Entry(f"hint{i}_halve", f"blocks.{2 * i + 1}"))
    return within("hint", "controlnet_cond_embedding", entries)


def _entries(network: ControlNet) -> list[Entry]:
    activations = sum(network.blocks) + len(network.channels)
    skips = [
        Entry(f"skip{i}", f"controlnet_down_blocks.{i}", POINTWISE) for i in range(activations)
    ]
    middle = Entry("middle_out", "controlnet_mid_block", POINTWISE)
    return [*trunk_entries(network, trunk_places(network)), *_hint(network), *skips, middle]


def _example(network: ControlNet) -> tuple:
    x, noise, cond = trunk_example(network)
    side = x.shape[1] * 2 ** (len(network.hint_channels) - 1)
    return x, noise, cond | {"hint": jnp.zeros((1, side, side, network.hint_inputs))}


CONTROLNET = Format(
    name="ControlNetModel",
    network=_network,
    config=_config,
    entries=_entries,
    example=_example,
)
