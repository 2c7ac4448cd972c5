"""ControlNet (Zhang et al., arXiv 2302.05543): a side network that steers a text-conditional U-Net.

It is the U-Net's way down and middle once more, told a picture as well (edges, depth, a pose).
Every activation that it makes goes through a matrix that starts at zero, and is added to the same
activation of the U-Net. A fresh ControlNet therefore changes nothing.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scorediff.errors import UserError, check_choice
from scorediff.models import text_unet
from scorediff.models.blocks import ZEROS, check_positive, conv3
from scorediff.models.dense import Dense
from scorediff.models.embeddings import given
from scorediff.models.text_unet import TextUNet, Trunk
from scorediff.types import Array, Cond

PARTITION: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"hint/hint\d+_(keep|halve)/kernel$", ("fsdp", None)),
    (r"(skip\d+|middle_out)/kernel$", ("fsdp", None)),
    *text_unet.PARTITION,
)


def guess_scales(count: int) -> np.ndarray:
    """Weights of the residuals in the authors' "guess mode", which works without a prompt, [count].

    0.1 for the first activation, 1 for the middle, evenly spaced in the logarithm. float32 however
    exactly the network computes, as published networks have them.
    """
    return np.logspace(-1, 0, count).astype(np.float32)


class Hint(nn.Module, kw_only=True):
    """The picture [b, f h, f w, c] -> [b, h, w, features], f = 2^(len(channels) - 1).

    The last convolution starts at zero.
    """

    channels: tuple[int, ...]
    features: int
    dtype: str

    @nn.compact
    def __call__(self, hint: Array) -> Array:
        h = conv3(self.channels[0], self.dtype, "hint_in")(hint.astype(self.dtype))
        h = nn.silu(h)
        for i, width in enumerate(self.channels[1:]):
            h = nn.silu(conv3(h.shape[-1], self.dtype, f"hint{i}_keep")(h))
            halve = conv3(width, self.dtype, f"hint{i}_halve", stride=2, padding=1)
            h = nn.silu(halve(h))
        return conv3(self.features, self.dtype, "hint_out", init=ZEROS)(h)


class ControlNet(Trunk, kw_only=True):
    """(x [b, h, w, c], noise [b], cond) -> {"skips": tuple of arrays, "middle": array}.

    The residuals that a `TextUNet` of the same trunk takes as cond["control"]. cond["hint"] is the
    picture [b, f h, f w, hint_inputs] in [0, 1], f = 2^(len(hint_channels) - 1). The fields of
    `Trunk`, and

    hint_channels: widths of the convolutions of the picture; each further one halves it.
    hint_inputs:   channels of the picture.
    hint_order:    "rgb", or "bgr" for a network that was trained on reversed channels.

    A call's scale multiplies all residuals; guess=True weighs them by `guess_scales`.
    """

    hint_channels: tuple[int, ...] = (16, 32, 96, 256)
    hint_inputs: int = 3
    hint_order: str = "rgb"

    def __post_init__(self):
        check_positive("ControlNet.hint_channels", len(self.hint_channels), *self.hint_channels)
        check_positive("ControlNet.hint_inputs", self.hint_inputs)
        check_choice("ControlNet.hint_order", self.hint_order, ("rgb", "bgr"))
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Array,
        noise: Array,
        cond: Cond = None,
        *,
        scale: float = 1.0,
        guess: bool = False,
        train: bool = False,
    ) -> dict:
        self.check_size(x)
        c, text = self.told(noise, cond), self.text(cond)
        h, skips = self.down(self.enter(x) + self.picture(cond, x.shape), c, text, train)
        h = self.across(h, c, text, train)
        found = [self.matrix(skip, f"skip{i}") for i, skip in enumerate(skips)]
        found.append(self.matrix(h, "middle_out"))
        count = len(found)
        scales = guess_scales(count) * jnp.float32(scale) if guess else [scale] * count
        *skips, h = (r * jnp.asarray(s, r.dtype) for r, s in zip(found, scales, strict=True))
        return {"skips": tuple(skips), "middle": h}

    @nn.nowrap
    def picture(self, cond: Cond, shape: tuple[int, ...]) -> Array:
        """The picture as features of the size of x."""
        hint = given(self, cond, "hint")
        factor = 2 ** (len(self.hint_channels) - 1)
        size = (factor * shape[1], factor * shape[2], self.hint_inputs)
        if hint.shape[1:] != size:
            raise UserError(
                f'cond["hint"] must be [b, {size[0]}, {size[1]}, {size[2]}] beside x of '
                f"{shape[1]} x {shape[2]}, got an array of shape {hint.shape}"
            )
        hint = hint if self.hint_order == "rgb" else hint[..., ::-1]
        embed = Hint(
            channels=self.hint_channels, features=self.channels[0], dtype=self.dtype, name="hint"
        )
        return embed(hint)

    @nn.nowrap
    def matrix(self, h: Array, name: str) -> Array:
        return Dense(h.shape[-1], dtype=self.dtype, kernel_init=ZEROS, name=name)(h)


class Controlled(nn.Module, kw_only=True):
    """A U-Net steered by a ControlNet, as one network: the U-Net's call, with cond["hint"] as well.

    Its parameters are {"network": the U-Net's, "control": the ControlNet's}. scale multiplies the
    residuals, guess weighs them by `guess_scales`.
    """

    network: TextUNet
    control: ControlNet
    scale: float = 1.0
    guess: bool = False

    def __post_init__(self):
        for field in ("channels", "blocks"):
            ours, theirs = getattr(self.network, field), getattr(self.control, field)
            if ours != theirs:
                raise UserError(
                    f"this ControlNet was made for another U-Net: {field} are {theirs} there and "
                    f"{ours} in the U-Net"
                )
        super().__post_init__()

    def __call__(self, x: Array, noise: Array, cond: Cond = None, *, train: bool = False) -> Array:
        residuals = self.control(x, noise, cond, scale=self.scale, guess=self.guess, train=train)
        return self.network(x, noise, {**cond, "control": residuals}, train=train)
