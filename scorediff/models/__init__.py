"""Networks (Flax Linen, used functionally): image, noise level and condition in, image out."""

from scorediff.models.dit import DiT
from scorediff.models.mlp import MLP
from scorediff.models.unet import UNet

__all__ = ["MLP", "DiT", "UNet"]
