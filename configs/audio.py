"""Chords as signals in time, with the research backbone: what changes from configs/video.py.

Patches of four samples are tokens, with rotary positions along time.
"""

from ml_collections import ConfigDict

from configs import video
from scorediff.config import spec
from scorediff.data.toy.synthetic import Tones
from scorediff.models.backbone import Backbone

LENGTH, CLASSES = 128, 3


def get_config(variant: str = "full") -> ConfigDict:
    """variant: full, or tiny (seconds, for tests)."""
    config = video.get_config(variant)
    config.name = "audio"
    config.data.shape = (LENGTH, 1)
    config.data.pipeline.source.distribution = spec(Tones, length=LENGTH, num_classes=CLASSES)
    config.denoiser.network = spec(
        Backbone, patch_size=4, width=96, depth=4, heads=4, num_classes=CLASSES
    )
    config.loss.null_cond.label = CLASSES
    if variant == "tiny":
        config.denoiser.network.update(width=16, depth=2, heads=2)
    return config
