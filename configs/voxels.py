"""Balls in a grid of voxels, with the research backbone: what changes from configs/video.py.

Patches of 2 x 2 x 2 voxels are tokens, all of which look at all, with rotary positions along the
three axes; all layers share one modulation (adaLN-single; Chen et al., arXiv 2310.00426).
"""

from ml_collections import ConfigDict

from configs import video
from scorediff.config import spec
from scorediff.data.toy.synthetic import VoxelBalls
from scorediff.models.backbone import Backbone

SIZE, CLASSES = 8, 2


def get_config(variant: str = "full") -> ConfigDict:
    """variant: full, or tiny (seconds, for tests)."""
    config = video.get_config(variant)
    config.name = "voxels"
    config.data.shape = (SIZE, SIZE, SIZE, 1)
    config.data.pipeline.source.distribution = spec(VoxelBalls, size=SIZE)
    config.denoiser.network = spec(
        Backbone,
        patch_size=2,
        width=96,
        depth=4,
        heads=4,
        modulation="shared",
        num_classes=CLASSES,
    )
    if variant == "tiny":
        config.denoiser.network.update(width=16, depth=2, heads=2)
    return config
