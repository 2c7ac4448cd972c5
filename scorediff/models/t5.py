"""The encoder of T5, versions 1.0 and 1.1 (Raffel et al., arXiv 1910.10683, section 2.1).

A transformer that knows where tokens are only by their distance: a learned number for each head and
each bucket of distances is added to the attention logits, the same in every layer. Normalisation
divides by the root mean square, no map has a bias, and logits are not divided by sqrt(d).
"""

import math
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scorediff.errors import UserError, check_choice
from scorediff.models.attention import attend, head_norm, here, split_heads
from scorediff.models.blocks import XAVIER, check_computation, check_positive, stacked
from scorediff.models.dense import Dense
from scorediff.models.embeddings import island
from scorediff.models.text import Encoded, check_tokens, closed
from scorediff.types import Array

ACTIVATIONS = {
    "relu": nn.relu,
    "silu": nn.silu,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": partial(nn.gelu, approximate=True),
}

PARTITION: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"tokens/embedding$", ("tensor", "fsdp")),
    (r"(qkv|mlp_in)/kernel$", ("fsdp", "tensor")),
    (r"(out|mlp_out)/kernel$", ("tensor", "fsdp")),
)


def distance_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each (query, key): int [n, n], section 2.1 of the paper.

    Half of the buckets are for keys at or before the query, half for those after it. In each half,
    distances below half its size have their own bucket; beyond, buckets widen logarithmically, and
    the last one holds everything from max_distance on. The logarithm is taken in float32, as the
    published models do: at a bucket's edge, the truncated value depends on it.
    """
    ahead = np.arange(length)[None, :] - np.arange(length)[:, None]
    side, distance = buckets // 2, np.abs(ahead)
    exact = side // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    far = exact + (ratio / np.float32(math.log(max_distance / exact)) * (side - exact)).astype(int)
    bucket = np.where(distance < exact, distance, np.minimum(far, side - 1))
    return bucket + side * (ahead > 0)


class T5Layer(nn.Module, kw_only=True):
    """Attention and MLP, normalisation first: (x [b, n, d], bias) -> (x, x), a scan's body."""

    heads: int
    head_width: int
    hidden: int
    activation: str
    gated: bool
    epsilon: float
    dtype: str
    kernel: str

    @nn.compact
    def __call__(self, x: Array, bias: Array) -> tuple[Array, Array]:
        x = x + self.attention(head_norm("norm_attention", self.dtype, self.epsilon)(x), bias)
        x = x + self.mlp(head_norm("norm_mlp", self.dtype, self.epsilon)(x))
        return x, x

    @nn.nowrap
    def dense(self, features: int, name: str) -> nn.Dense:
        return Dense(features, use_bias=False, dtype=self.dtype, kernel_init=XAVIER, name=name)

    @nn.nowrap
    def attention(self, x: Array, bias: Array) -> Array:
        b, n, d = x.shape
        width = self.heads * self.head_width
        q, k, v = split_heads(self.dense(3 * width, "qkv")(x), 3, self.heads)
        kernel = here(self.kernel, self.head_width, self.dtype)
        h = attend(q, k, v, kernel, bias=bias, scale=1.0)
        return self.dense(d, "out")(h.reshape(b, n, width))

    @nn.nowrap
    def mlp(self, x: Array) -> Array:
        """Two layers; with `gated`, act(x V) * (x W) in place of act(x V) (arXiv 2002.05202)."""
        h = self.dense(self.hidden * (2 if self.gated else 1), "mlp_in")(x)
        gate, *value = jnp.split(h, 2, axis=-1) if self.gated else (h,)
        h = ACTIVATIONS[self.activation](gate)
        return self.dense(x.shape[-1], "mlp_out")(h * value[0] if value else h)


class T5Encoder(nn.Module, kw_only=True):
    """T5's encoder: (ids [b, n], mask [b, n] or None) -> `Encoded` without `pooled`, float32.

    vocabulary:   number of token ids; an id beyond it comes out as NaN.
    width:        channels of a token.
    depth:        layers; their parameters are stacked on axis 0 and the layers are scanned.
    heads:        attention heads.
    head_width:   channels of a head; heads * head_width need not be `width`.
    hidden:       width of the MLP's hidden layer.
    activation:   "gelu_tanh" (v1.1), "relu" (v1.0), "gelu" or "silu".
    gated:        a gated MLP, as in v1.1.
    buckets:      of distances, both directions together; a multiple of 2, at least 4.
    max_distance: from which on all distances are one bucket.
    epsilon:      of the normalisations.
    dtype:        what is computed in; parameters, embeddings, statistics, distances and answers are
                  float32. In float16 the published large models overflow; bfloat16 is meant.
    remat:        what the backward pass recomputes, a layer at a time: "none", "products", "full".
    attention_kernel: "xla", "auto" or "cudnn"; cuDNN takes no gradient through an odd number of
                  tokens.

    mask: 1 keep, 0 drop. SD3 gives none, PixArt does. The last of the hidden states is the
    normalised one, `last_hidden_state`, as T5's own code has it.
    """

    vocabulary: int = 32128
    width: int = 512
    depth: int = 6
    heads: int = 8
    head_width: int = 64
    hidden: int = 2048
    activation: str = "relu"
    gated: bool = False
    buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "xla"

    def __post_init__(self):
        check_computation(self)
        check_choice("T5Encoder.activation", self.activation, ACTIVATIONS)
        sizes = (self.vocabulary, self.width, self.depth, self.heads, self.head_width, self.hidden)
        check_positive("T5Encoder's sizes", *sizes)
        if self.buckets < 4 or self.buckets % 2:
            raise UserError(f"T5Encoder.buckets must be even and at least 4, got {self.buckets}")
        if self.max_distance <= self.buckets // 4:
            raise UserError(
                f"T5Encoder.max_distance must be above buckets / 4 = {self.buckets // 4}, "
                f"got {self.max_distance}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, ids: Array, mask: Array | None = None) -> Encoded:
        check_tokens(ids, mask)
        dtype = island(self.dtype)
        init = nn.initializers.normal(1.0)
        embed = nn.Embed(
            self.vocabulary, self.width, dtype=dtype, embedding_init=init, name="tokens"
        )
        embedded = embed(ids).astype(self.dtype)
        x, states = self.layers()(embedded, self.bias(ids.shape[1], mask))
        last = head_norm("norm_out", dtype, self.epsilon)(x.astype(dtype))
        states = jnp.concatenate([embedded[None], states[:-1]]).astype(dtype)
        return Encoded(last, jnp.concatenate([states, last[None]]))

    @nn.nowrap
    def bias(self, length: int, mask: Array | None) -> Array:
        """What is added to the logits for distance and mask: [1 or b, heads, n, n]."""
        init = nn.initializers.normal(self.width**-0.5)
        table = self.param("distances_table", init, (self.buckets, self.heads))
        fused = here(self.attention_kernel, self.head_width, self.dtype) == "cudnn"
        dtype = self.dtype if fused else island(self.dtype)  # cuDNN: one type for all
        table = table.astype(dtype)
        near = table[distance_buckets(length, self.buckets, self.max_distance)]
        near = near.transpose(2, 0, 1)[None]
        return near if mask is None else near + closed((mask != 0)[:, None, None, :], dtype)

    @nn.nowrap
    def layers(self) -> nn.Module:
        """All layers, parameters stacked: (x, bias) -> (x, every layer's output)."""
        scanned = stacked(T5Layer, self.depth, self.remat)
        return scanned(
            heads=self.heads,
            head_width=self.head_width,
            hidden=self.hidden,
            activation=self.activation,
            gated=self.gated,
            epsilon=self.epsilon,
            dtype=self.dtype,
            kernel=self.attention_kernel,
            name="layers",
        )
