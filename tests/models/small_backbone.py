"""Small backbones for every kind of data, for the promises that all networks keep.

name -> (constructor, x, noise, cond)
"""

from functools import partial

import jax.numpy as jnp
import numpy as np

from scorediff.models.backbone import Backbone

RNG = np.random.default_rng(0)
NOISE = jnp.array([1.0, 30.0, 700.0])
SMALL = partial(Backbone, width=16, depth=2, heads=2)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


IMAGES = draw(3, 4, 4, 2)
LABEL = {"label": jnp.array([0, 2, 1])}
TEXT = {"text": draw(3, 5, 6), "text_mask": jnp.array([[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])}

NETWORKS = {
    "backbone_image": (partial(SMALL, num_classes=3), IMAGES, NOISE, LABEL),
    "backbone_text": (
        partial(SMALL, num_classes=3, text=True, modulation="shared"),
        IMAGES,
        NOISE,
        LABEL | TEXT,
    ),
    "backbone_signal": (partial(SMALL, patch_size=4), draw(3, 16, 2), NOISE, None),
    "backbone_video": (
        partial(SMALL, patch_size=(1, 2, 2), axes=((1, 2), (0,))),
        draw(3, 3, 4, 4, 2),
        NOISE,
        None,
    ),
    "backbone_points": (
        partial(SMALL, patch_size=1, positions="none"),
        draw(3, 7, 3),
        NOISE,
        None,
    ),
    "backbone_voxels": (
        partial(SMALL, modulation="shared", qk_norm=False),
        draw(3, 4, 4, 4, 1),
        NOISE,
        None,
    ),
}
