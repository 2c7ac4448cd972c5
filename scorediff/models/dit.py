"""The diffusion transformer, DiT (Peebles & Xie, arXiv 2212.09748, section 3 and figure 3).

The image is cut into patches, each patch is a token, and every layer is steered by the condition
through adaLN-zero: shift, scale and gate of each branch are linear in the condition and start at
zero, so every block is the identity in a fresh network, which answers zero everywhere.
"""

import jax.numpy as jnp
from flax import linen as nn

from scorediff.errors import UserError
from scorediff.models.attention import SelfAttention
from scorediff.models.blocks import XAVIER, ZEROS, check_common, check_positive, checkpointed
from scorediff.models.embeddings import Conditioning, grid_sincos, island
from scorediff.types import Array, Cond

NOISE_FEATURES = 256  # width of the sinusoid of the noise level, at every size of the paper


def layer_norm(x: Array, name: str, dtype) -> Array:
    """Normalisation over channels without parameters; the condition supplies scale and shift."""
    norm = nn.LayerNorm(
        epsilon=1e-6,
        use_bias=False,
        use_scale=False,
        use_fast_variance=False,
        dtype=dtype,
        name=name,
    )
    return norm(x)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """x (1 + scale) + shift, tokens [b, n, d] and one vector a sample [b, d]."""
    return x * (1 + scale[:, None, :]) + shift[:, None, :]


def patchify(x: Array, size: int) -> Array:
    """[b, h, w, c] -> [b, (h / size) (w / size), size size c], all row-major."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * c)


def unpatchify(tokens: Array, size: int, height: int, width: int) -> Array:
    """The inverse of `patchify` for an image of height x width."""
    b = tokens.shape[0]
    x = tokens.reshape(b, height // size, width // size, size, size, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, height, width, -1)


class DiTBlock(nn.Module, kw_only=True):
    """Attention and MLP, each gated and modulated by the condition c [b, d] after its activation.

    (x [b, n, d], c) -> (x, None), the shape of a scan's body.
    """

    heads: int
    mlp_ratio: float = 4.0
    dtype: str = "float32"
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x: Array, c: Array) -> tuple[Array, None]:
        d = x.shape[-1]
        modulation = nn.Dense(6 * d, dtype=self.dtype, kernel_init=ZEROS, name="modulation")(c)
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)
        attend = SelfAttention(
            heads=self.heads, dtype=self.dtype, kernel=self.kernel, name="attention"
        )
        h = attend(modulate(layer_norm(x, "norm_attention", self.dtype), shift1, scale1))
        x = x + gate1[:, None, :] * h
        h = modulate(layer_norm(x, "norm_mlp", self.dtype), shift2, scale2)
        return x + gate2[:, None, :] * self.mlp(h), None

    @nn.nowrap
    def mlp(self, x: Array) -> Array:
        """Two layers with the tanh form of GELU, as the paper's code."""
        hidden = round(self.mlp_ratio * x.shape[-1])
        h = nn.Dense(hidden, dtype=self.dtype, kernel_init=XAVIER, name="mlp_in")(x)
        h = nn.gelu(h, approximate=True)
        return nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=XAVIER, name="mlp_out")(h)


class DiT(nn.Module, kw_only=True):
    """A transformer: (x [b, h, w, c], noise [b], cond) -> float32 [b, h, w, out_channels].

    patch_size:       side of a square patch; height and width must be divisible by it.
    width:            channels of a token, divisible by 4 (positions) and by `heads`.
    depth:            layers; their parameters are stacked on axis 0 and the layers are scanned.
    heads:            attention heads.
    mlp_ratio:        hidden width of the MLP over `width`.
    num_classes:      classes 0 .. n - 1 are cond["label"], n is the null class; None: no classes.
    out_channels:     None gives as many as x has; twice as many where variances are learned too.
    dtype:            what is computed in; parameters, statistics and the output are float32.
    remat:            what the backward pass recomputes, a layer at a time: "none", "products"
                      (all but matrix products), "full".
    attention_kernel: "auto", "xla" or "cudnn".

    Positions are fixed sines and cosines, so any image size goes through the same parameters.
    `train` changes nothing: the paper's network has no dropout.
    """

    patch_size: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    num_classes: int | None = None
    out_channels: int | None = None
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_common(self)
        check_positive("DiT.patch_size, depth and heads", self.patch_size, self.depth, self.heads)
        if self.width < 4 or self.width % 4 or self.width % self.heads:
            raise UserError(
                f"DiT.width must be divisible by 4 and by heads={self.heads}, got {self.width}"
            )
        if round(self.mlp_ratio * self.width) < 1:
            raise UserError(f"DiT.mlp_ratio must be positive, got {self.mlp_ratio}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond = None, *, train: bool = False) -> Array:
        self.check_size(x.shape)
        condition = Conditioning(
            features=NOISE_FEATURES,
            width=self.width,
            num_classes=self.num_classes,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.02),
            label_init=nn.initializers.normal(0.02),
            name="condition",
        )
        c = nn.silu(condition(noise, cond))
        tokens, _ = self.layers()(self.embed(x), c)
        return self.read_out(tokens, c, x.shape)

    @nn.nowrap
    def check_size(self, shape: tuple[int, ...]) -> None:
        """Refuse what cannot be cut into whole patches."""
        if len(shape) != 4:
            raise UserError(f"a DiT takes images [b, h, w, c], got an array of shape {shape}")
        if shape[1] % self.patch_size or shape[2] % self.patch_size:
            raise UserError(
                f"an image of {shape[1]} x {shape[2]} cannot be cut into patches of side "
                f"{self.patch_size}: set DiT.patch_size to a divisor of both sides"
            )

    @nn.nowrap
    def embed(self, x: Array) -> Array:
        """Patches through one matrix, plus where they sit: [b, h, w, c] -> [b, n, width]."""
        rows, columns = x.shape[1] // self.patch_size, x.shape[2] // self.patch_size
        patches = patchify(x.astype(self.dtype), self.patch_size)
        tokens = nn.Dense(self.width, dtype=self.dtype, kernel_init=XAVIER, name="patch_in")(
            patches
        )
        return tokens + jnp.asarray(grid_sincos(rows, columns, self.width), tokens.dtype)

    @nn.nowrap
    def layers(self) -> nn.Module:
        """All blocks as one module whose parameters are stacked on axis 0: (x, c) -> (x, None)."""
        scanned = nn.scan(
            checkpointed(DiTBlock, self.remat, scanned=True),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )
        return scanned(
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            dtype=self.dtype,
            kernel=self.attention_kernel,
            name="layers",
        )

    @nn.nowrap
    def read_out(self, tokens: Array, c: Array, shape: tuple[int, ...]) -> Array:
        """Modulated tokens through one matrix back to an image, in float32."""
        dtype, channels = island(self.dtype), self.out_channels or shape[-1]
        modulation = nn.Dense(2 * self.width, dtype=dtype, kernel_init=ZEROS, name="modulation")(c)
        shift, scale = jnp.split(modulation, 2, axis=-1)
        tokens = modulate(layer_norm(tokens, "norm_out", dtype), shift, scale)
        features = self.patch_size**2 * channels
        patches = nn.Dense(features, dtype=dtype, kernel_init=ZEROS, name="patch_out")(tokens)
        return unpatchify(patches, self.patch_size, shape[1], shape[2])
