"""Small U-Nets of the options and ranks, for the promises that all networks keep.

name -> (constructor, x, noise, cond)
"""

from functools import partial

import jax.numpy as jnp
import numpy as np

from scorediff.models.mixed_unet import MixedUNet
from scorediff.models.unet import UNet

RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


NOISE = jnp.array([1.0, 30.0, 700.0])
LABEL = {"label": jnp.array([0, 2, 1])}
SMALL = partial(UNet, channels=8, multipliers=(1, 2), blocks=1, attention=())
BOTH = {"attend_down": (False, True), "attend_up": (False, True)}

NETWORKS = {
    "unet_adm": (
        partial(
            SMALL,
            **BOTH,
            head_width=8,
            halve="block",
            double="block",
            scale_shift=True,
            epsilon=1e-5,
            num_classes=3,
        ),
        draw(3, 4, 4, 2),
        NOISE,
        LABEL,
    ),
    "unet_mixed": (
        partial(
            SMALL,
            attend_down=(True, False),
            attend_up=(False, True),
            halve_padding="both",
            double="block",
            middle_groups=0,
            middle_rescale=2.0,
            act="gelu",
            sin_first=True,
            freq_shift=1.0,
            num_classes=3,
            null_class="zero",
        ),
        draw(3, 4, 4, 2),
        NOISE,
        LABEL,
    ),
    "unet_skip_levels": (
        partial(
            MixedUNet,
            channels=8,
            multipliers=(4, 2),
            blocks=1,
            **BOTH,
            head_width=5,
            exact_heads=True,
            skip_down=(True, False),
            skip_up=(True, False),
            label_kind="noise",
        ),
        draw(3, 4, 4, 2),
        NOISE,
        {"label": jnp.array([3.0, 4.5, 90.0])},
    ),
    "unet_signal": (partial(SMALL, **BOTH, heads=2), draw(3, 8, 2), NOISE, None),
    "unet_video": (partial(SMALL, **BOTH, heads=2), draw(3, 2, 4, 4, 2), NOISE, None),
}
