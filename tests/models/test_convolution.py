"""Our convolution against XLA's own: the same values and derivatives, in both modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from scorediff.models.convolution import convolve

CASES = {  # sides of space, window, padding
    "image": ((5, 6), (3, 3), "SAME"),
    "both sides": ((4, 4), (3, 3), ((1, 1), (1, 1))),
    "no border": ((5, 4), (3, 2), "VALID"),
    "uneven border": ((5, 4), (2, 3), ((0, 1), (2, 0))),
    "signal": ((7,), (3,), "SAME"),
    "video": ((3, 4, 2), (3, 3, 3), "SAME"),
}


def spatial(rank):
    space = "xyz"[:rank]
    return f"N{space}C", f"{space}IO", f"N{space}C"


def linen(rank):
    ones = (1,) * rank
    return {
        "lhs_dilation": ones,
        "rhs_dilation": ones,
        "dimension_numbers": spatial(rank),
        "feature_group_count": 1,
        "precision": None,
    }


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    space, window, padding = request.param
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, dx = (jnp.asarray(rng.normal(size=(2, *space, 3))) for _ in range(2))
        w, dw = (jnp.asarray(rng.normal(size=(*window, 3, 4))) for _ in range(2))
        yield x, w, dx, dw, padding


def pair(x, padding):
    strides, options = (1,) * (x.ndim - 2), linen(x.ndim - 2)
    return (
        lambda x, w: convolve(x, w, strides, padding, **options),
        lambda x, w: lax.conv_general_dilated(x, w, strides, padding, **options),
    )


def agree(ours, theirs):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, theirs
    )


def test_values_and_both_gradients_are_those_of_xla(case):
    x, w, _, _, padding = case
    results = []
    for f in pair(x, padding):
        y, back = jax.vjp(f, x, w)
        results.append((y, back(jnp.cos(y))))
    agree(*results)


def test_forward_derivatives_are_those_of_xla_for_either_argument_and_both(case):
    x, w, dx, dw, padding = case
    ours, theirs = pair(x, padding)
    agree(jax.jvp(ours, (x, w), (dx, dw)), jax.jvp(theirs, (x, w), (dx, dw)))
    agree(*(jax.jvp(lambda x, f=f: f(x, w), (x,), (dx,)) for f in (ours, theirs)))
    agree(*(jax.jvp(lambda w, f=f: f(x, w), (w,), (dw,)) for f in (ours, theirs)))


def test_within_a_loop_the_gradient_in_x_reads_the_kernel_as_fast_cpu_kernels_do():
    x, w = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4))

    def steps(f):
        pull = jax.grad(lambda x: jnp.sum(jnp.sin(f(x, w))))
        return jax.jit(lambda x: lax.fori_loop(0, 3, lambda _, x: pull(x), x))

    ours, theirs = (steps(f).lower(x).compile().as_text() for f in pair(x, "SAME"))
    assert "b01f_01io->b01f" in ours and "b01f_01oi->b01f" not in ours
    assert "b01f_01oi->b01f" in theirs  # once XLA does it by itself, the rule can go


@pytest.mark.slow
def test_second_derivatives_and_vmap_are_those_of_xla(case):
    x, w, dx, dw, padding = case

    def curvature(f):
        def slope(w, x):
            return jax.grad(lambda w: jnp.sum(jnp.sin(f(x, w))))(w)

        across = jax.vmap(slope, in_axes=(0, None))(jnp.stack([w, dw]), x)
        return jax.jvp(lambda w: slope(w, dx), (w,), (dw,)), across

    agree(*map(curvature, pair(x, padding)))


def test_a_stride_and_groups_go_to_xla_as_they_are():
    x, w = jnp.ones((1, 4, 4, 4)), jnp.ones((3, 3, 2, 4))
    options = linen(2) | {"feature_group_count": 2}
    y = convolve(x, w, (2, 2), "SAME", **options)
    assert y.shape == (1, 2, 2, 4)
    np.testing.assert_array_equal(y, lax.conv_general_dilated(x, w, (2, 2), "SAME", **options))


def test_the_backward_pass_keeps_the_image_and_no_copy_of_it_a_tap():
    x, w = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    _, back = jax.vjp(lambda w: convolve(x, w, (1, 1), "SAME", **linen(2)), w)
    sizes = {leaf.unsafe_buffer_pointer(): leaf.size for leaf in jax.tree.leaves(back)}
    assert sum(sizes.values()) <= x.size + w.size
