"""Chords with a U-Net along time: what changes from configs/audio.py.

The blocks of the image U-Net (Ho et al., arXiv 2006.11239) with windows of three samples.
"""

from ml_collections import ConfigDict

from configs import audio
from scorediff.config import spec
from scorediff.models import UNet


def get_config(variant: str = "full") -> ConfigDict:
    """variant: full, or tiny (seconds, for tests)."""
    config = audio.get_config(variant)
    config.name = "audio_unet"
    config.denoiser.network = spec(
        UNet,
        channels=32,
        multipliers=(1, 2, 2, 2),
        blocks=1,
        attention=(16,),
        heads=4,
        num_classes=audio.CLASSES,
        scale_shift=True,
    )
    if variant == "tiny":
        config.denoiser.network.update(channels=8, multipliers=(1, 2), attention=(), heads=1)
    return config
