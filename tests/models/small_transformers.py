"""Small image transformers of published classes, for the promises that all networks keep.

name -> (constructor, x, noise, cond)
"""

from functools import partial

import jax.numpy as jnp
import numpy as np

from scorediff.models.dit import DiT
from scorediff.models.mmdit import MMDiT
from scorediff.models.pixart import PixArt
from scorediff.models.uvit import UViT

RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X = draw(3, 4, 4, 2)
NOISE = jnp.array([1.0, 30.0, 700.0])
LABEL = {"label": jnp.array([0, 2, 1])}
TEXT = {"text": draw(3, 5, 6)}
POOLED = {"pooled": draw(3, 7)}
MASK = {"text_mask": jnp.array([[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])}
SIZES = {
    "resolution": jnp.array([[512.0, 512.0], [768.0, 512.0], [512.0, 1024.0]]),
    "aspect": jnp.array([[1.0], [1.5], [0.5]]),
}
LAYER = {"width": 24, "heads": 2}

NETWORKS = {
    "dit_own_conditions": (
        partial(
            DiT,
            **LAYER,
            depth=2,
            num_classes=3,
            shared_condition=False,
            noise_shift=1.0,
            mlp_epsilon=1e-5,
            trained_size=3,
        ),
        X,
        NOISE,
        LABEL,
    ),
    "sit": (
        partial(
            DiT,
            **LAYER,
            depth=2,
            num_classes=3,
            out_channels=4,
            kept_channels=2,
            positions="table",
            trained_size=2,
        ),
        X,
        NOISE / 1000,
        LABEL,
    ),
    "uvit": (partial(UViT, **LAYER, image_size=4, depth=4, num_classes=3), X, NOISE, LABEL),
    "uvit_text": (
        partial(
            UViT,
            **LAYER,
            image_size=4,
            depth=2,
            text_tokens=5,
            text_features=6,
            noise_mlp=True,
            smooth=False,
        ),
        X,
        NOISE,
        TEXT,
    ),
    "mmdit": (
        partial(MMDiT, **LAYER, depth=3, text_features=6, pooled_features=7, table_size=4),
        X,
        NOISE,
        TEXT | POOLED,
    ),
    "mmdit_dual": (
        partial(
            MMDiT,
            **LAYER,
            depth=3,
            text_features=6,
            pooled_features=7,
            table_size=4,
            normalise=True,
            dual_layers=(1,),
        ),
        X,
        NOISE,
        TEXT | POOLED,
    ),
    "pixart": (
        partial(PixArt, **LAYER, depth=2, text_features=6, trained_size=2, sized=True),
        X,
        NOISE,
        TEXT | MASK | SIZES,
    ),
}
