"""A residual perceptron for points: the network of the exact two-dimensional test-beds."""

from flax import linen as nn

from scorediff.errors import UserError
from scorediff.models.embeddings import Conditioning
from scorediff.types import Array, Cond

NOISE_FEATURES = 64


class MLP(nn.Module, kw_only=True):
    """Points [b, d], noise level [b] and class in, [b, d] out, float32; zero at initialisation.

    width, depth: of the residual blocks, each a normalised two-layer perceptron that the condition
      scales and shifts.
    num_classes:  classes 0 .. n - 1 are cond["label"], n is the null class; None: no classes.
    """

    width: int = 128
    depth: int = 3
    num_classes: int | None = None

    def __post_init__(self):
        if self.width < 1 or self.depth < 1:
            raise UserError(f"MLP.width and depth must be positive: {self.width}, {self.depth}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond = None, *, train: bool = False) -> Array:
        condition = Conditioning(
            features=NOISE_FEATURES, width=self.width, num_classes=self.num_classes
        )
        c = nn.silu(condition(noise, cond))
        h = nn.Dense(self.width)(x)
        for _ in range(self.depth):
            scale, shift = nn.Dense(self.width)(c), nn.Dense(self.width)(c)
            y = nn.LayerNorm()(h) * (1 + scale) + shift
            h = h + nn.Dense(self.width)(nn.silu(nn.Dense(self.width)(y)))
        return nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros)(nn.silu(h))
