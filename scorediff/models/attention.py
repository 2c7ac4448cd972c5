"""Multi-head self-attention, and the choice of the kernel that computes it.

Logits and softmax are float32 in every kernel. cuDNN's fused kernel never writes the n x n logits
to memory, but it exists only on NVIDIA GPUs in half precision, and has no forward-mode derivative:
a method that takes `jax.jvp` through the network needs "xla".
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from scorediff.errors import UserError
from scorediff.types import Array

KERNELS = ("auto", "xla", "cudnn")
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
    """ "xla" or "cudnn", from the wish and what can run; an impossible wish is a UserError."""
    if kernel == "xla":
        return "xla"
    obstacle = cudnn_obstacle(head_dim, dtype, device)
    if kernel == "cudnn" and obstacle:
        raise UserError(f'attention kernel "cudnn" cannot run: {obstacle}; use "auto" or "xla"')
    return "xla" if obstacle else "cudnn"


def attend(q: Array, k: Array, v: Array, kernel: str) -> Array:
    """softmax(q k^T / sqrt(d)) v for [b, n, heads, d], by the named kernel.

    JAX takes the softmax in float32 even of float64 numbers, so those go their own way here.
    """
    if q.dtype != jnp.float64:
        return jax.nn.dot_product_attention(q, k, v, implementation=kernel)
    weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1]))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


class SelfAttention(nn.Module, kw_only=True):
    """Every token looks at every token: [b, n, d] -> [b, n, d], softmax(q k^T / sqrt(d / heads)) v.

    Queries, keys and values come from one matrix, in this order, heads inside each.
    """

    heads: int
    dtype: str = "float32"
    kernel: str = "auto"
    out_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, n, d = x.shape
        if d % self.heads:
            raise UserError(f"{self.heads} heads do not divide a width of {d}")
        xavier = nn.initializers.xavier_uniform()
        qkv = nn.Dense(3 * d, dtype=self.dtype, kernel_init=xavier, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, self.heads, d // self.heads), 2, 0)
        kernel = choose_kernel(self.kernel, d // self.heads, self.dtype, jax.local_devices()[0])
        h = attend(q, k, v, kernel).reshape(b, n, d)
        return nn.Dense(d, dtype=self.dtype, kernel_init=self.out_init, name="out")(h)
