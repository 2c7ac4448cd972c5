"""Convolution whose gradients a CPU computes quickly.

For y[n] = sum_k x[n + k] w[k], with n over positions and k over the taps of the window, the
gradient in the kernel is dw[k] = sum_n x[n + k]^T dy[n]. XLA writes it as a convolution with a
window as large as the image, which on CPUs takes two to three times as long as the forward pass.
Here the tangent in the kernel goes through the image row by row: what the window sees of a row is
gathered as one matrix, small enough for the caches, and multiplied by the kernel. Its transpose
goes through the rows in the same way.

The gradient in x is a convolution with the kernel's channels swapped, which JAX only names and does
not move. XLA's fast CPU kernels want them in order, and inside of loops XLA does not bring them
there (measured on jax 0.10 and 0.12: six times as long, in samplers guided by gradients and in the
accumulation of gradients). Here the tangent in x is written with swapped names, so that its
transpose, the gradient, has them in order.

Both rules are jvps, so both modes of differentiation work; on accelerators XLA's own are used.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from scorediff.models.hardware import on_cpu
from scorediff.types import Array

_NUMBERS = {4: ("NHWC", "HWIO", "NHWC"), 5: ("NDHWC", "DHWIO", "NDHWC")}
Pads = tuple[tuple[int, int], ...]


def convolve(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: str | Sequence,
    *,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int,
    precision: lax.PrecisionLike = None,
) -> Array:
    """x [b, *space, c] with kernel [*window, c, features]; what `nn.Conv` calls to convolve.

    On a CPU the plain case along two axes or more is ours; all else goes to XLA as it comes.
    """
    steps = (*strides, *lhs_dilation, *rhs_dilation, feature_group_count)
    if not on_cpu() or set(steps) != {1} or x.ndim < 4 or precision is not None:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            precision=precision,
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:-2], strides, padding)
    return _convolved(x, kernel, tuple((int(low), int(high)) for low, high in padding), False)


def _by_xla(x: Array, kernel: Array, pads: Pads, swapped: bool) -> Array:
    """swapped: with the kernel's channels the other way round in memory, and so in their names."""
    inputs, taps, outputs = _NUMBERS[x.ndim]
    if swapped:
        kernel, taps = jnp.swapaxes(kernel, -1, -2), taps.replace("IO", "OI")
    return lax.conv_general_dilated(
        x, kernel, (1,) * len(pads), pads, dimension_numbers=(inputs, taps, outputs)
    )


_convolved = jax.custom_jvp(_by_xla, nondiff_argnums=(2, 3))


@partial(_convolved.defjvp, symbolic_zeros=True)
def _jvp(pads: Pads, swapped: bool, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _by_xla(
        x, kernel, pads, swapped
    )  # a convolution by name, for policies of rematerialisation
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts.append(_convolved(dx, kernel, pads, True))
    if not isinstance(dkernel, SymbolicZero):
        # Checkpointed: what the backward pass keeps is x, not copies of it.
        parts.append(jax.checkpoint(partial(_by_rows, pads=pads))(x, dkernel))
    return y, sum(parts) if parts else jnp.zeros_like(y)


def _by_rows(x: Array, kernel: Array, *, pads: Pads) -> Array:
    """The same convolution as one matrix product for each place on the first axis of space."""
    window, features = kernel.shape[:-2], kernel.shape[-1]
    sides = [n + sum(pad) - k + 1 for n, pad, k in zip(x.shape[1:-1], pads, window, strict=True)]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    wide = jnp.promote_types(x.dtype, jnp.float32)

    @jax.checkpoint
    def row(place: Array) -> Array:
        near = lax.dynamic_slice_in_dim(x, place, window[0], axis=1)
        seen = [
            near[:, tap[0], *(slice(k, k + n) for k, n in zip(tap[1:], sides[1:], strict=True))]
            for tap in product(*map(range, window))
        ]
        matrix = jnp.concatenate(seen, axis=-1).reshape(-1, kernel[..., 0].size)
        return jnp.matmul(matrix, kernel.reshape(-1, features), preferred_element_type=wide)

    rows = lax.map(row, jnp.arange(sides[0])).astype(x.dtype)
    return jnp.moveaxis(rows.reshape(sides[0], x.shape[0], *sides[1:], features), 0, 1)
