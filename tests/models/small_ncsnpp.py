"""Small networks of the NCSN++ and EDM2 families, for the promises that every network keeps."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from scorediff.models.edm2 import EDM2UNet
from scorediff.models.ncsnpp import NCSNpp

FIXED = ("frequencies", "phases")  # parameters that are never trained: no gradient by design
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(3, 8, 8, 2)), jnp.float32)
NOISE = jnp.array([0.5, 30.0, 700.0])
COND = {"label": jnp.array([0, 2, 1])}
AUGMENT = {"augment": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)}
SIZES = {"channels": 8, "multipliers": (1, 2), "blocks": 1}

# name -> constructor, x, noise, cond
NETWORKS = {
    "ddpmpp": (
        partial(NCSNpp, **SIZES, attend_down=(False, True), num_classes=3, augment=4),
        X,
        NOISE,
        COND | AUGMENT,
    ),
    "ncsnpp": (
        partial(
            NCSNpp,
            **SIZES,
            attend_down=(False, True),
            embedding="log_fourier",
            num_classes=3,
            class_table=True,
            taps=(1, 3, 3, 1),
            progressive_in="residual",
            progressive_out="skip",
            divide_by_noise=True,
        ),
        X,
        jnp.array([0.3, 1.0, 2.0]),  # sigma itself, by which the output is divided
        COND,
    ),
    "edm2": (
        partial(EDM2UNet, **SIZES, attend=(False, True), head_width=8, num_classes=3),
        X,
        jnp.log(NOISE) / 4,
        COND,
    ),
}
