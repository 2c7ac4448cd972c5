"""The text encoder of CLIP (Radford et al., arXiv 2103.00020, section 2.4).

A transformer of the GPT-2 kind: normalisation before each branch, and a token sees only itself and
those before it. OpenCLIP's models are the same network with another GELU.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scorediff.errors import UserError, check_choice
from scorediff.models.attention import SelfAttention
from scorediff.models.blocks import XAVIER, check_computation, check_positive, stacked
from scorediff.models.dense import Dense
from scorediff.models.embeddings import island
from scorediff.models.text import Encoded, check_tokens, closed
from scorediff.types import Array


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x), Hendrycks and Gimpel's cheap GELU (arXiv 1606.08415, section 2)."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": partial(nn.gelu, approximate=False)}

PARTITION: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"tokens/embedding$", ("tensor", "fsdp")),
    (r"(qkv|mlp_in)/kernel$", ("fsdp", "tensor")),
    (r"(out|mlp_out)/kernel$", ("tensor", "fsdp")),
    (r"projection/kernel$", ("fsdp", "tensor")),
)


class CLIPLayer(nn.Module, kw_only=True):
    """Attention and MLP, normalisation first: (x [b, n, d], bias) -> (x, x), a scan's body."""

    heads: int
    hidden: int
    activation: str
    epsilon: float
    dtype: str
    kernel: str

    @nn.compact
    def __call__(self, x: Array, bias: Array) -> tuple[Array, Array]:
        attend = SelfAttention(
            heads=self.heads, dtype=self.dtype, kernel=self.kernel, name="attention"
        )
        x = x + attend(layer_norm(x, "norm_attention", self.epsilon, self.dtype), bias)
        h = layer_norm(x, "norm_mlp", self.epsilon, self.dtype)
        h = Dense(self.hidden, dtype=self.dtype, kernel_init=XAVIER, name="mlp_in")(h)
        h = ACTIVATIONS[self.activation](h)
        h = Dense(x.shape[-1], dtype=self.dtype, kernel_init=XAVIER, name="mlp_out")(h)
        return x + h, x + h


def layer_norm(x: Array, name: str, epsilon: float, dtype) -> Array:
    """Normalisation over channels with learned scale and shift."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)(x)


class CLIPText(nn.Module, kw_only=True):
    """CLIP's text encoder: (ids [b, n], mask [b, n] or None) -> `Encoded`, float32.

    vocabulary: number of token ids; an id beyond it comes out as NaN.
    positions:  the most tokens of a text.
    width:      channels of a token, divisible by `heads`.
    depth:      layers; their parameters are stacked on axis 0 and the layers are scanned.
    heads:      attention heads.
    hidden:     width of the MLP's hidden layer.
    activation: "quick_gelu" (OpenAI's models) or "gelu" (OpenCLIP's).
    epsilon:    of the normalisations.
    eos:        id of the token that ends a text: its first position gives the pooled vector.
                None takes the position of the largest id instead, as CLIP's own code does; the two
                differ where tokens were added after the end token.
    projection: width of the pooled vector behind a matrix without bias; None pools without it.
    dtype:      what is computed in; parameters, embeddings, statistics and answers are float32.
    remat:      what the backward pass recomputes, a layer at a time: "none", "products", "full".
    attention_kernel: "xla", "auto" or "cudnn". 77 tokens gain nothing from the fused kernel, and it
                takes no gradient through an odd number of tokens.

    mask: 1 keep, 0 drop, on top of the causal order; Stable Diffusion gives none. Hidden states are
    not normalised: `hidden_states[-2]` is what SDXL and SD3 read.
    """

    vocabulary: int = 49408
    positions: int = 77
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    eos: int | None = None
    projection: int | None = None
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "xla"

    def __post_init__(self):
        check_computation(self)
        check_choice("CLIPText.activation", self.activation, ACTIVATIONS)
        sizes = (self.vocabulary, self.positions, self.width, self.depth, self.heads, self.hidden)
        check_positive("CLIPText's sizes", *sizes, self.projection or 1)
        if self.width % self.heads:
            raise UserError(f"CLIPText.heads={self.heads} do not divide a width of {self.width}")
        super().__post_init__()

    @nn.compact
    def __call__(self, ids: Array, mask: Array | None = None) -> Encoded:
        check_tokens(ids, mask, self.positions)
        dtype = island(self.dtype)
        embedded = self.embed(ids)
        x, states = self.layers()(embedded, self.bias(ids.shape[1], mask))
        last = layer_norm(x.astype(dtype), "norm_out", self.epsilon, dtype)
        states = jnp.concatenate([embedded[None], states]).astype(dtype)
        return Encoded(last, states, self.pool(last, ids))

    @nn.nowrap
    def embed(self, ids: Array) -> Array:
        """A row of the table for each token, plus one for its position."""
        init, dtype = nn.initializers.normal(0.02), island(self.dtype)
        tokens = nn.Embed(
            self.vocabulary, self.width, dtype=dtype, embedding_init=init, name="tokens"
        )(ids)
        positions = self.param("positions_table", init, (self.positions, self.width))
        return (tokens + positions[: ids.shape[1]].astype(dtype)).astype(self.dtype)

    @nn.nowrap
    def bias(self, length: int, mask: Array | None) -> Array:
        """What hides the keys behind a query, and those that the mask drops: [1 or b, 1, n, n]."""
        keep = np.tril(np.ones((length, length), bool))[None, None]
        if mask is not None:
            keep = keep & (mask != 0)[:, None, None, :]
        return closed(keep, self.dtype)

    @nn.nowrap
    def layers(self) -> nn.Module:
        """All layers, parameters stacked: (x, bias) -> (x, every layer's output)."""
        scanned = stacked(CLIPLayer, self.depth, self.remat)
        return scanned(
            heads=self.heads,
            hidden=self.hidden,
            activation=self.activation,
            epsilon=self.epsilon,
            dtype=self.dtype,
            kernel=self.attention_kernel,
            name="layers",
        )

    @nn.nowrap
    def pool(self, last: Array, ids: Array) -> Array:
        """The vector at the end of the text, projected where there is a projection."""
        end = jnp.argmax(ids if self.eos is None else ids == self.eos, axis=1)
        pooled = last[jnp.arange(ids.shape[0]), end]
        if self.projection is None:
            return pooled
        return Dense(
            self.projection,
            use_bias=False,
            dtype=last.dtype,
            kernel_init=XAVIER,
            name="projection",
        )(pooled)
