"""Networks (Flax Linen, used functionally): image, noise level and condition in, image out."""

from scorediff.models.autoencoder import AutoencoderKL
from scorediff.models.backbone import Backbone
from scorediff.models.clip import CLIPText
from scorediff.models.controlnet import Controlled, ControlNet
from scorediff.models.dit import DiT
from scorediff.models.edm2 import EDM2UNet
from scorediff.models.mixed_unet import MixedUNet
from scorediff.models.mlp import MLP
from scorediff.models.mmdit import MMDiT
from scorediff.models.ncsnpp import NCSNpp
from scorediff.models.pixart import PixArt
from scorediff.models.t5 import T5Encoder
from scorediff.models.text_unet import TextUNet
from scorediff.models.unet import UNet
from scorediff.models.uvit import UViT

__all__ = [
    "MLP",
    "AutoencoderKL",
    "Backbone",
    "CLIPText",
    "ControlNet",
    "Controlled",
    "DiT",
    "EDM2UNet",
    "MMDiT",
    "MixedUNet",
    "NCSNpp",
    "PixArt",
    "T5Encoder",
    "TextUNet",
    "UNet",
    "UViT",
]
