"""The diffusion transformer, DiT (Peebles & Xie, arXiv 2212.09748, section 3 and figure 3).

The image is cut into patches, each patch is a token, and every layer is steered by the condition
through adaLN-zero: shift, scale and gate of each branch are linear in the condition and start at
zero, so every block is the identity in a fresh network, which answers zero everywhere.

SiT (Ma et al., arXiv 2401.08740, section 3.3) is this network at another noise level and target.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scorediff.errors import UserError, check_choice
from scorediff.models.attention import SelfAttention
from scorediff.models.blocks import ZEROS, check_common, check_positive, stacked
from scorediff.models.embeddings import NULL_CLASSES, Conditioning, grid_sincos, island
from scorediff.models.patches import (
    check_patches,
    embed_patches,
    stretched_positions,
    table_positions,
    unpatchify,
)
from scorediff.models.transformer import NOISE_FEATURES, NORMAL, layer_norm, mlp, modulate, read_out
from scorediff.types import Array, Cond

POSITIONS = ("fixed", "table")
PARTITION = (
    (r"(qkv|mlp_in|modulation|noise_in)/kernel$", ("fsdp", "tensor")),
    (r"(attention/out|mlp_out|noise_out)/kernel$", ("tensor", "fsdp")),
    (r"label/embedding$", (None, "fsdp")),
)


class DiTBlock(nn.Module, kw_only=True):
    """Attention and MLP, each gated and modulated by the condition c [b, d] after its activation.

    (x [b, n, d], c) -> (x, None), the shape of a scan's body.
    """

    heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    mlp_epsilon: float = 1e-6
    dtype: str = "float32"
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x: Array, c: Array) -> tuple[Array, None]:
        d = x.shape[-1]
        modulation = nn.Dense(6 * d, dtype=self.dtype, kernel_init=ZEROS, name="modulation")(c)
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)
        attend = SelfAttention(
            heads=self.heads,
            qkv_bias=self.qkv_bias,
            dtype=self.dtype,
            kernel=self.kernel,
            name="attention",
        )
        h = attend(modulate(layer_norm(x, "norm_attention", self.dtype), shift1, scale1))
        x = x + gate1[:, None, :] * h
        h = layer_norm(x, "norm_mlp", self.dtype, self.mlp_epsilon)
        h = mlp(modulate(h, shift2, scale2), round(self.mlp_ratio * d), self.dtype)
        return x + gate2[:, None, :] * h, None


class DiT(nn.Module, kw_only=True):
    """A transformer: (x [b, h, w, c], noise [b], cond) -> float32 [b, h, w, out_channels].

    patch_size:        side of a square patch; height and width must be divisible by it.
    width:             channels of a token, divisible by 4 (positions) and by `heads`.
    depth:             layers; their parameters are stacked on axis 0 and the layers are scanned.
    heads:             attention heads.
    mlp_ratio:         hidden width of the MLP over `width`.
    num_classes:       classes 0 .. n - 1 are cond["label"]; None: no classes.
    null_class:        "learned": n is the null class; "refused": there is none.
    in_channels:       of x, which is checked; None takes what comes.
    out_channels:      None gives as many as x has; twice as many where variances are learned too.
    kept_channels:     the first of them, which are given back; None: all. SiT's published files
                       learn twice as many as x has, and nothing reads the second half.
    qkv_bias:          whether queries, keys and values have a bias.
    mlp_epsilon:       of the normalisation in front of the MLP; all others have 1e-6.
    noise_shift:       of the noise level's frequencies, see `embeddings.frequencies`.
    shared_condition:  one embedding of noise level and class for all layers; otherwise each layer
                       has its own, and the output uses the first layer's, as in diffusers' DiT.
    positions:         "fixed": sines and cosines, for any size of image; "table": a parameter that
                       begins so, for square images of `trained_size` patches a side alone.
    trained_size:      side in patches of the images that the network is trained on; fixed positions
                       of another size are stretched over it. None counts patches at every size.
    dtype:             what is computed in; parameters, statistics and the output are float32.
    remat:             what the backward pass recomputes, a layer at a time: "none", "products"
                       (all but matrix products), "full".
    attention_kernel:  "auto", "plain", "xla" or "cudnn".

    `train` changes nothing: the paper's network has no dropout.
    """

    patch_size: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    num_classes: int | None = None
    null_class: str = "learned"
    in_channels: int | None = None
    out_channels: int | None = None
    kept_channels: int | None = None
    qkv_bias: bool = True
    mlp_epsilon: float = 1e-6
    noise_shift: float = 0.0
    shared_condition: bool = True
    positions: str = "fixed"
    trained_size: int | None = None
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
        check_choice("DiT.positions", self.positions, POSITIONS)
        check_choice("DiT.null_class", self.null_class, [n for n in NULL_CLASSES if n != "zero"])
        if self.trained_size is not None:
            check_positive("DiT.trained_size", self.trained_size)
        elif self.positions == "table":
            raise UserError('DiT.positions="table" needs DiT.trained_size, the side of the table')
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond = None, *, train: bool = False) -> Array:
        check_patches(self, x.shape)
        c = nn.silu(self.condition()(noise, cond))
        tokens, _ = self.layers()(self.embed(x), c)
        return self.read_out(tokens, c if self.shared_condition else c[0], x.shape)

    @nn.nowrap
    def condition(self) -> nn.Module:
        """(noise, cond) -> [b, width], or [depth, b, width] where every layer has its own."""
        per_layer = nn.vmap(
            Conditioning,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=self.depth,
        )
        return (Conditioning if self.shared_condition else per_layer)(
            features=NOISE_FEATURES,
            width=self.width,
            num_classes=self.num_classes,
            shift=self.noise_shift,
            null_class=self.null_class,
            dtype=self.dtype,
            kernel_init=NORMAL,
            label_init=NORMAL,
            name="condition",
        )

    @nn.nowrap
    def embed(self, x: Array) -> Array:
        """Patches as tokens, plus where they sit: [b, h, w, c] -> [b, n, width]."""
        rows, columns = x.shape[1] // self.patch_size, x.shape[2] // self.patch_size
        tokens = embed_patches(x, self.patch_size, self.width, self.dtype)
        if self.positions == "fixed":
            return tokens + jnp.asarray(self.fixed_positions(rows, columns), tokens.dtype)
        side = self.trained_size
        if (rows, columns) != (side, side):
            raise UserError(
                f"this DiT has a table of positions for {side} x {side} patches, and got "
                f'{rows} x {columns}: DiT.positions="fixed" takes any size'
            )
        init = table_positions(side, self.width, trained=side)
        where = self.param("positions", init, (side * side, self.width))
        return tokens + where.astype(tokens.dtype)

    @nn.nowrap
    def fixed_positions(self, rows: int, columns: int) -> np.ndarray:
        """[rows * columns, width]."""
        if self.trained_size is None:
            return grid_sincos(rows, columns, self.width)
        return stretched_positions(rows, columns, self.width, self.trained_size)

    @nn.nowrap
    def layers(self) -> nn.Module:
        """All blocks as one module whose parameters are stacked on axis 0: (x, c) -> (x, None)."""
        scanned = stacked(
            DiTBlock, self.depth, self.remat, in_axes=nn.broadcast if self.shared_condition else 0
        )
        return scanned(
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            qkv_bias=self.qkv_bias,
            mlp_epsilon=self.mlp_epsilon,
            dtype=self.dtype,
            kernel=self.attention_kernel,
            name="layers",
        )

    @nn.nowrap
    def read_out(self, tokens: Array, c: Array, shape: tuple[int, ...]) -> Array:
        """Modulated tokens through one matrix back to an image, in float32."""
        channels = self.out_channels or shape[-1]
        modulation = nn.Dense(
            2 * self.width, dtype=island(self.dtype), kernel_init=ZEROS, name="modulation"
        )
        shift, scale = jnp.split(modulation(c), 2, axis=-1)
        patches = read_out(tokens, shift, scale, self.patch_size**2 * channels)
        image = unpatchify(patches, self.patch_size, shape[1], shape[2])
        return image[..., : self.kept_channels]
