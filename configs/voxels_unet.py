"""Balls in a grid of voxels with a U-Net in three dimensions: what changes from configs/voxels.py.

The blocks of the image U-Net (Ho et al., arXiv 2006.11239) with windows of 3 x 3 x 3 voxels.
"""

from ml_collections import ConfigDict

from configs import voxels
from scorediff.config import spec
from scorediff.models import UNet


def get_config(variant: str = "full") -> ConfigDict:
    """variant: full, or tiny (seconds, for tests)."""
    config = voxels.get_config(variant)
    config.name = "voxels_unet"
    config.denoiser.network = spec(
        UNet,
        channels=16,
        multipliers=(1, 2),
        blocks=1,
        attention=(),
        heads=2,
        num_classes=voxels.CLASSES,
        scale_shift=True,
    )
    if variant == "tiny":
        config.denoiser.network.update(channels=8, heads=1)
    return config
