"""Sets of points on surfaces, with the research backbone: what changes from configs/video.py.

Every point is a token without position, so the network moves with a permutation of the points.
"""

from ml_collections import ConfigDict

from configs import video
from scorediff.config import spec
from scorediff.data.toy.synthetic import SurfacePoints
from scorediff.models.backbone import Backbone

POINTS, CLASSES = 64, 2


def get_config(variant: str = "full") -> ConfigDict:
    """variant: full, or tiny (seconds, for tests)."""
    config = video.get_config(variant)
    config.name = "points"
    config.data.shape = (POINTS, 3)
    config.data.pipeline.source.distribution = spec(SurfacePoints, points=POINTS)
    config.denoiser.network = spec(
        Backbone,
        patch_size=1,
        width=96,
        depth=4,
        heads=4,
        positions="none",
        num_classes=CLASSES,
    )
    if variant == "tiny":
        config.denoiser.network.update(width=16, depth=2, heads=2)
    return config
