"""MMDiT, the network of Stable Diffusion 3 and 3.5 (Esser et al., arXiv 2403.03206, section 4).

Image and text are two streams of tokens. Each has its own matrices, adaLN-zero and MLP in every
block, and the two meet in one attention over both. The last block gives back the image alone.
SD3.5's options: normalised queries and keys, and a second attention of the image with itself in
some blocks.
"""

from collections.abc import Callable
from itertools import groupby

import jax.numpy as jnp
from flax import linen as nn

from scorediff.errors import UserError
from scorediff.models.attention import SelfAttention, attend, head_norm, here, split_heads
from scorediff.models.blocks import XAVIER, ZEROS, check_positive, checkpointed, stacked
from scorediff.models.dense import Dense
from scorediff.models.embeddings import Conditioning, given, island
from scorediff.models.patches import check_patches, embed_patches, table_positions, unpatchify
from scorediff.models.transformer import (
    NOISE_FEATURES,
    NORMAL,
    VectorEmbedding,
    check_transformer,
    layer_norm,
    mlp,
    modulate,
    read_out,
)
from scorediff.types import Array, Cond

MLP_RATIO = 4
Streams = tuple[Array, Array]  # image [b, n, d] and text [b, m, d]
PARTITION = (
    (r"(qkv|mlp_in|text_in|modulation|noise_in|first)/kernel$", ("fsdp", "tensor")),
    (r"(image_out|text_out|attention/out|mlp_out|noise_out|second)/kernel$", ("tensor", "fsdp")),
)


class JointBlock(nn.Module, kw_only=True):
    """One block (figure 2b): ((image, text), c [b, d] after its activation) -> (streams, None).

    normalise: RMS normalisation of each head's queries and keys, in each stream by itself.
    dual:      a second attention, of the image with itself.
    last:      the text is read and goes no further: the text given back is the text that came.
    """

    heads: int
    normalise: bool = False
    dual: bool = False
    last: bool = False
    dtype: str = "float32"
    kernel: str = "auto"

    @nn.compact
    def __call__(self, streams: Streams, c: Array) -> tuple[Streams, None]:
        image, text = streams
        steer_image = self.steer("image", c, 9 if self.dual else 6)
        steer_text = self.steer("text", c, 2 if self.last else 6)
        normal = layer_norm(image, "image_norm_attention", self.dtype)
        h_text = layer_norm(text, "text_norm_attention", self.dtype)
        h_image, h_text = self.look(
            modulate(normal, *steer_image[:2]), modulate(h_text, *steer_text[:2])
        )
        image = image + steer_image[2][:, None, :] * self.project("image", h_image)
        if self.dual:
            shift, scale, gate = steer_image[6:]
            image = image + gate[:, None, :] * self.look_again(modulate(normal, shift, scale))
        image = self.feed("image", image, *steer_image[3:6])
        if self.last:
            return (image, text), None
        text = text + steer_text[2][:, None, :] * self.project("text", h_text)
        return (image, self.feed("text", text, *steer_text[3:6])), None

    @nn.nowrap
    def steer(self, stream: str, c: Array, parts: int) -> list[Array]:
        """Shift, scale and gate of each branch, as far as `parts` goes."""
        matrix = Dense(
            parts * c.shape[-1], dtype=self.dtype, kernel_init=ZEROS, name=f"{stream}_modulation"
        )
        return jnp.split(matrix(c), parts, axis=-1)

    @nn.nowrap
    def queries(self, stream: str, h: Array) -> Array:
        """Queries, keys and values of one stream: [3, b, n, heads, d / heads]."""
        matrix = Dense(3 * h.shape[-1], dtype=self.dtype, kernel_init=XAVIER, name=f"{stream}_qkv")
        q, k, v = split_heads(matrix(h), 3, self.heads)
        if self.normalise:
            q = head_norm(f"{stream}_norm_q", self.dtype)(q)
            k = head_norm(f"{stream}_norm_k", self.dtype)(k)
        return jnp.stack([q, k, v])

    @nn.nowrap
    def look(self, image: Array, text: Array) -> Streams:
        """Every token of both streams looks at every token of both."""
        b, n, d = image.shape
        parts = self.queries("image", image), self.queries("text", text)
        q, k, v = jnp.concatenate(parts, axis=2)
        h = attend(q, k, v, here(self.kernel, d // self.heads, self.dtype)).reshape(b, -1, d)
        return h[:, :n], h[:, n:]

    @nn.nowrap
    def look_again(self, image: Array) -> Array:
        """The image's second attention."""
        attention = SelfAttention(
            heads=self.heads,
            normalise=self.normalise,
            dtype=self.dtype,
            kernel=self.kernel,
            name="image_attention",
        )
        return attention(image)

    @nn.nowrap
    def project(self, stream: str, h: Array) -> Array:
        """The matrix behind the joint attention."""
        return Dense(h.shape[-1], dtype=self.dtype, kernel_init=XAVIER, name=f"{stream}_out")(h)

    @nn.nowrap
    def feed(self, stream: str, x: Array, shift: Array, scale: Array, gate: Array) -> Array:
        """The MLP of one stream, gated."""
        h = modulate(layer_norm(x, f"{stream}_norm_mlp", self.dtype), shift, scale)
        hidden = MLP_RATIO * x.shape[-1]
        return x + gate[:, None, :] * mlp(h, hidden, self.dtype, name=f"{stream}_mlp")


class MMDiT(nn.Module, kw_only=True):
    """(x [b, h, w, c], noise [b], cond) -> float32 [b, h, w, out_channels].

    cond["text"] [b, m, text_features] are token embeddings, cond["pooled"] [b, pooled_features]
    one vector a text; both are needed.

    patch_size:       side of a square patch; height and width must be divisible by it.
    width:            channels of a token, divisible by 4 (positions) and by `heads`.
    depth:            blocks. Neighbours of one kind are scanned, their parameters stacked on axis
                      0: "layers_K" is the run that starts with block K; "last" stands alone.
    heads:            attention heads.
    normalise:        RMS normalisation of queries and keys (SD3.5; section 5.3.2).
    dual_layers:      the blocks, counted from 0, where the image has a second attention.
    table_size:       side of the table of positions, in patches; smaller images take its middle.
    trained_size:     side in patches of the images that training begins with, which the whole
                      table spans in a fresh network (section 5.3.2). The table is a parameter;
                      published training leaves it as it begins.
    in_channels:      of x, which is checked; None takes what comes.
    out_channels:     None gives as many as x has.
    dtype:            what is computed in; parameters, statistics and the output are float32.
    remat:            what the backward pass recomputes, a block at a time: "none", "products"
                      (all but matrix products), "full".
    attention_kernel: "auto", "plain", "xla" or "cudnn".

    `train` changes nothing: there is no dropout.
    """

    patch_size: int = 2
    width: int = 384
    depth: int = 6
    heads: int = 6
    text_features: int = 4096
    pooled_features: int = 2048
    normalise: bool = False
    dual_layers: tuple[int, ...] = ()
    table_size: int = 64
    trained_size: int = 16
    in_channels: int | None = None
    out_channels: int | None = None
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_transformer(self)
        check_positive("MMDiT.text_features", self.text_features)
        check_positive("MMDiT.pooled_features", self.pooled_features)
        check_positive("MMDiT.table_size and trained_size", self.table_size, self.trained_size)
        absent = [k for k in self.dual_layers if not 0 <= k < self.depth]
        if absent:
            raise UserError(f"MMDiT.dual_layers names {absent}, but there are {self.depth} blocks")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond = None, *, train: bool = False) -> Array:
        check_patches(self, x.shape)
        text = given(self, cond, "text", self.text_features).astype(self.dtype)
        c = nn.silu(self.condition(noise, given(self, cond, "pooled", self.pooled_features)))
        streams = self.embed(x), Dense(self.width, dtype=self.dtype, name="text_in")(text)
        for start, length in self.runs():
            streams, _ = self.layers(start, length)(streams, c)
        last = checkpointed(JointBlock, self.remat)
        (tokens, _), _ = self.block(last, self.depth - 1, "last")(streams, c)
        return self.image(tokens, c, x.shape)

    @nn.nowrap
    def condition(self, noise: Array, pooled: Array) -> Array:
        """Noise level and text as one vector a sample [b, width], at least float32."""
        embed = Conditioning(
            features=NOISE_FEATURES,
            width=self.width,
            dtype=self.dtype,
            kernel_init=NORMAL,
            name="condition",
        )
        vector = VectorEmbedding(width=self.width, dtype=self.dtype, name="pooled")
        return embed(noise, None) + vector(pooled)

    @nn.nowrap
    def embed(self, x: Array) -> Array:
        """Patches as tokens, plus their place in the middle of the table of positions."""
        rows, columns = x.shape[1] // self.patch_size, x.shape[2] // self.patch_size
        side = self.table_size
        if max(rows, columns) > side:
            raise UserError(
                f"an image of {rows} x {columns} patches is larger than MMDiT.table_size={side}"
            )
        init = table_positions(side, self.width, self.trained_size)
        table = self.param("positions", init, (side * side, self.width))
        top, left = (side - rows) // 2, (side - columns) // 2
        where = table.reshape(side, side, -1)[top : top + rows, left : left + columns]
        tokens = embed_patches(x, self.patch_size, self.width, self.dtype)
        return tokens + where.reshape(rows * columns, -1).astype(tokens.dtype)

    @nn.nowrap
    def runs(self) -> list[tuple[int, int]]:
        """First block and length of each run of equal blocks before the last one."""
        kinds = groupby(range(self.depth - 1), key=lambda k: k in self.dual_layers)
        runs = [list(blocks) for _, blocks in kinds]
        return [(run[0], len(run)) for run in runs]

    @nn.nowrap
    def layers(self, start: int, length: int) -> nn.Module:
        """A run of equal blocks as one module, its parameters stacked on axis 0."""
        scanned = stacked(JointBlock, length, self.remat)
        return self.block(scanned, start, f"layers_{start}")

    @nn.nowrap
    def block(self, block: Callable[..., nn.Module], index: int, name: str) -> nn.Module:
        """Block number `index`, or the run that starts with it."""
        return block(
            heads=self.heads,
            normalise=self.normalise,
            dual=index in self.dual_layers,
            last=index == self.depth - 1,
            dtype=self.dtype,
            kernel=self.attention_kernel,
            name=name,
        )

    @nn.nowrap
    def image(self, tokens: Array, c: Array, shape: tuple[int, ...]) -> Array:
        """Modulated tokens through one matrix back to an image, in float32."""
        modulation = Dense(
            2 * self.width, dtype=island(self.dtype), kernel_init=ZEROS, name="modulation"
        )
        shift, scale = jnp.split(modulation(c), 2, axis=-1)
        features = self.patch_size**2 * (self.out_channels or shape[-1])
        patches = read_out(tokens, shift, scale, features)
        return unpatchify(patches, self.patch_size, shape[1], shape[2])
