"""What the layouts of `NCSNpp` (EDM, score_sde) have in common."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from scorediff.errors import UserError
from scorediff.models.ncsnpp import NCSNpp

ARITHMETIC = ("dtype", "remat", "attention_kernel", "parent", "name")
POSITIONAL = ("freq_shift", "sin_first")


def refuse_difference(where: str, network: NCSNpp, back: NCSNpp) -> None:
    """UserError where `back`, read from the config of a class, computes another thing."""
    theirs = meaning(back)
    for field, value in meaning(network).items():
        if theirs[field] != value:
            raise UserError(f"{where} cannot have {field}={value}, it would be {theirs[field]}")


def meaning(network: NCSNpp) -> dict[str, Any]:
    """What a network computes: equal for two networks that differ in their words only."""
    fields = [f.name for f in dataclasses.fields(network) if f.name not in ARITHMETIC]
    n = network
    found = {name: getattr(n, name) for name in fields}
    found |= {
        "attend_up": n.attends_up,
        "noise_features": n.noise_width,
        "condition_width": n.condition_width or 4 * n.channels,
        "out_channels": n.out_channels or n.in_channels,
        "class_table": n.class_table and n.num_classes is not None,
    }
    if n.embedding != "positional":
        found |= dict.fromkeys(POSITIONAL)
    return found


def example(network: NCSNpp) -> tuple:
    """The smallest image that goes through the network, and its noise level."""
    side = 2 ** (len(network.multipliers) - 1)
    return jnp.zeros((1, side, side, network.in_channels or 3)), jnp.ones(1)
