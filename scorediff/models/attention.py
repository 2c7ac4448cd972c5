"""Multi-head attention, and the choice of the kernel that computes it.

Logits and softmax are float32 in every kernel. cuDNN's fused kernel never writes the n x n logits
to memory, but it exists only on NVIDIA GPUs in half precision, and has no forward-mode derivative:
a method that takes `jax.jvp` through the network needs "xla". "plain" is written out here for CPUs,
whose memory is slow beside their caches: where the logits would not fit there, it goes through the
heads one by one, and the backward pass computes them again.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from scorediff.errors import UserError
from scorediff.models.dense import Dense
from scorediff.types import Array

KERNELS = ("auto", "plain", "xla", "cudnn")
CACHED = 2**20  # logits that a CPU's caches hold
HALF = ("bfloat16", "float16")


def cudnn_obstacle(head_dim: int, dtype: str, device: jax.Device) -> str | None:
    """Why cuDNN's attention cannot run, or None where it can."""
    if device.platform != "gpu":
        return f"the device is a {device.platform}, not an NVIDIA GPU"
    capability = str(getattr(device, "compute_capability", ""))
    if not capability.replace(".", "").isdigit() or float(capability) < 8.0:
        return f"the GPU's compute capability is {capability or 'unknown'}, below 8.0"
    if dtype not in HALF:
        return f"it computes in bfloat16 or float16, not in {dtype}"
    if head_dim % 8 or head_dim > 128:
        return f"the width of a head must be a multiple of 8 up to 128, not {head_dim}"
    return None


def choose_kernel(kernel: str, head_dim: int, dtype: str, device: jax.Device) -> str:
    """ "plain", "xla" or "cudnn", from the wish and what can run.

    "auto" is "cudnn" where that runs, else "plain" on a CPU, else "xla". An impossible wish is a
    UserError.
    """
    if kernel in ("plain", "xla"):
        return kernel
    obstacle = cudnn_obstacle(head_dim, dtype, device)
    if kernel == "cudnn" and obstacle:
        raise UserError(f'attention kernel "cudnn" cannot run: {obstacle}; use "auto" or "xla"')
    if not obstacle:
        return "cudnn"
    return "plain" if device.platform == "cpu" else "xla"


def attend(
    q: Array,
    k: Array,
    v: Array,
    kernel: str,
    *,
    bias: Array | None = None,
    mask: Array | None = None,
    scale: float | None = None,
) -> Array:
    """softmax(scale q k^T + bias) v for q [b, n, heads, d], k and v [b, m, heads, d].

    kernel: "plain", "xla" or "cudnn" (see `choose_kernel`).
    bias:   added to the logits; mask: True where a query may look. Both broadcast to
            [b, heads, n, m].
    scale:  1 / sqrt(d) unless given.
    """
    if kernel == "plain" or q.dtype == jnp.float64:  # JAX's own would round float64 to float32
        b, n, heads, d = q.shape
        small = heads == 1 or b * heads * n * k.shape[1] <= CACHED
        plain = _plain if small else _plain_by_head
        return plain(q, k, v, bias, mask, scale or 1 / math.sqrt(d))
    return jax.nn.dot_product_attention(
        q, k, v, bias=bias, mask=mask, scale=scale, implementation=kernel
    )


def _plain(
    q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, scale: float
) -> Array:
    """Heads before positions, and the sum of weights divided out of the result, not the weights.

    The same numbers as a softmax, in fewer passes over the n x m logits, which are what a CPU's
    memory feels.
    """
    dtype, wide = q.dtype, jnp.promote_types(q.dtype, jnp.float32)
    product = partial(jnp.matmul, preferred_element_type=wide)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    logits = product(q.astype(wide) * scale, jnp.swapaxes(k, 2, 3).astype(wide))
    logits = logits if bias is None else logits + bias
    logits = logits if mask is None else jnp.where(mask, logits, -jnp.inf)
    weights = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    mean = product(weights.astype(dtype), v) / weights.sum(axis=-1, keepdims=True)
    return jnp.swapaxes(mean, 1, 2).astype(dtype)


def _plain_by_head(
    q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, scale: float
) -> Array:
    """`_plain` on one head after another, keeping nothing of n x m for the backward pass."""
    given = ((q, 2), (k, 2), (v, 2), (bias, -3), (mask, -3))  # and the axis of their heads
    split = [(x, axis, x is not None and x.shape[axis:][:1] == q.shape[2:3]) for x, axis in given]

    @jax.checkpoint
    def one(parts: list[Array]) -> Array:
        head = iter(parts)
        own = [jnp.expand_dims(next(head), axis) if cut else x for x, axis, cut in split]
        return jnp.squeeze(_plain(*own, scale), 2)

    heads = [jnp.moveaxis(x, axis, 0) for x, axis, cut in split if cut]
    return jnp.moveaxis(lax.map(one, heads), 0, 2)


def here(kernel: str, head_dim: int, dtype: str) -> str:
    """The kernel for this process's devices."""
    return choose_kernel(kernel, head_dim, dtype, jax.local_devices()[0])


def split_heads(x: Array, parts: int, heads: int) -> list[Array]:
    """[b, n, parts * heads * d], parts outermost -> each part [b, n, heads, d]."""
    b, n, width = x.shape
    if width % (parts * heads):
        raise UserError(f"{heads} heads do not divide a width of {width // parts}")
    return [part.reshape(b, n, heads, -1) for part in jnp.split(x, parts, axis=-1)]


class SelfAttention(nn.Module, kw_only=True):
    """Every token looks at every token: [b, n, d] -> [b, n, d], softmax(q k^T / sqrt(d / heads)) v.

    Queries, keys and values come from one matrix, in this order, heads inside each.

    head_width: channels of a head; None: the heads share out the width of a token.
    qkv_bias:  whether that matrix has a bias.
    normalise: RMS normalisation of each head's queries and keys, with a learned scale
               (Dehghani et al., arXiv 2302.05442, section 2.1).
    """

    heads: int
    head_width: int | None = None
    qkv_bias: bool = True
    normalise: bool = False
    dtype: str = "float32"
    kernel: str = "auto"
    out_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Array, bias: Array | None = None) -> Array:
        b, n, d = x.shape
        xavier = nn.initializers.xavier_uniform()
        inner = self.heads * self.head_width if self.head_width else d
        matrix = Dense(
            3 * inner, use_bias=self.qkv_bias, dtype=self.dtype, kernel_init=xavier, name="qkv"
        )
        q, k, v = split_heads(matrix(x), 3, self.heads)
        if self.normalise:
            q, k = head_norm("norm_q", self.dtype)(q), head_norm("norm_k", self.dtype)(k)
        h = attend(q, k, v, here(self.kernel, q.shape[-1], self.dtype), bias=bias)
        dense = Dense(d, dtype=self.dtype, kernel_init=self.out_init, name="out")
        return dense(h.reshape(b, n, inner))


def head_norm(name: str, dtype, epsilon: float = 1e-6) -> nn.RMSNorm:
    """RMS normalisation over the last axis."""
    return nn.RMSNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


class CrossAttention(nn.Module, kw_only=True):
    """Tokens [b, n, d] look at a context [b, m, c]: -> [b, n, d].

    Keys and values come from one matrix, in this order. qkv_bias: of both matrices.
    """

    heads: int
    qkv_bias: bool = True
    dtype: str = "float32"
    kernel: str = "auto"
    out_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Array, context: Array, bias: Array | None = None) -> Array:
        b, n, d = x.shape
        xavier = nn.initializers.xavier_uniform()
        dense = partial(Dense, use_bias=self.qkv_bias, dtype=self.dtype, kernel_init=xavier)
        (q,) = split_heads(dense(d, name="q")(x), 1, self.heads)
        k, v = split_heads(dense(2 * d, name="kv")(context), 2, self.heads)
        h = attend(q, k, v, here(self.kernel, d // self.heads, self.dtype), bias=bias)
        out = Dense(d, dtype=self.dtype, kernel_init=self.out_init, name="out")
        return out(h.reshape(b, n, d))


def mask_bias(mask: Array | None, dtype) -> Array | None:
    """What a mask [b, m] of keys (1 keep, 0 drop) adds to the logits: 0 or -10000, [b, 1, 1, m].

    A finite number, as the field's text-conditional networks have it: with nothing to keep, every
    key counts alike.
    """
    if mask is None:
        return None
    return ((1 - mask.astype(dtype)) * -10000.0)[:, None, None, :]
