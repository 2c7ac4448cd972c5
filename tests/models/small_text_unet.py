"""Small text-conditional networks, for the promises that every network keeps.

name -> (constructor, x, noise, cond)
"""

from functools import partial

import jax.numpy as jnp
import numpy as np

from scorediff.models.controlnet import Controlled, ControlNet
from scorediff.models.text_unet import TextUNet

RNG = np.random.default_rng(0)
TRUNK = {
    "channels": (4, 8),
    "blocks": (1, 1),
    "depth": (1, 0),
    "middle_depth": 2,
    "heads": (1, 2),
    "text_width": 6,
    "in_channels": 2,
    "groups": 2,
}
TOLD = {"num_classes": 3, "guidance_width": 5, "added_width": 11, "size_features": 4}


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X = draw(3, 4, 4, 2)
NOISE = jnp.array([1.0, 30.0, 700.0])
TEXT = {"text": draw(3, 5, 6), "text_mask": jnp.array([[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])}
COND = TEXT | {
    "label": jnp.array([0, 2, 1]),
    "guidance": draw(3, 5),
    "pooled": draw(3, 3),
    "sizes": jnp.array([[4.0, 4.0], [8.0, 4.0], [2.0, 6.0]]),
}
HINT = {"hint": draw(3, 8, 8, 3)}
HINTED = {"hint_channels": (4, 6)}


ONE_LEVEL = TRUNK | {
    "channels": (4,),
    "blocks": (1,),
    "depth": (1,),
    "middle_depth": 1,
    "heads": (2,),
}


def controlled(*, out_channels=None, **options):
    """A U-Net with its ControlNet, both with the same options."""
    return Controlled(
        network=TextUNet(**ONE_LEVEL, **options, out_channels=out_channels),
        control=ControlNet(**ONE_LEVEL, **HINTED, **options),
    )


NETWORKS = {
    "text_unet": (partial(TextUNet, **TRUNK, **TOLD), X, NOISE, COND),
    "controlled": (controlled, X, NOISE, TEXT | HINT),
}
