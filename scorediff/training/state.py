"""The train state: everything a step reads and writes, and nothing else.

It holds no random key and no data position: both are functions of `step`, so that a state restored
from disk continues exactly as if training had never stopped.
"""

from collections.abc import Mapping
from typing import Any, Self

import flax.struct
import jax.numpy as jnp
import optax

from scorediff.training.ema import EMAProfile, start_average
from scorediff.types import Array, Params


@flax.struct.dataclass
class TrainState:
    """A pytree of arrays; compiled steps take it over and give a new one back."""

    step: Array  # int32 [], steps done, skipped ones included
    params: Params
    opt_state: Any
    ema: dict[str, Params]  # profile name -> averaged parameters, float32
    skipped: Array  # int32 [], steps whose loss or gradient was not finite
    skipped_in_row: Array  # int32 [], how many of them the last steps were

    @classmethod
    def create(
        cls,
        params: Params,
        optimizer: optax.GradientTransformation,
        ema: Mapping[str, EMAProfile],
    ) -> Self:
        """The state before the first step."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            ema={name: start_average(params) for name in ema},
            skipped=jnp.zeros((), jnp.int32),
            skipped_in_row=jnp.zeros((), jnp.int32),
        )
