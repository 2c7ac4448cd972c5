"""What every network here promises, asked of the U-Net and of the transformer alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models import DiT, UNet

CLASSES = 3
NETWORKS = {
    "unet": functools.partial(
        UNet, channels=8, multipliers=(1, 2), blocks=1, attention=(2,), heads=2, num_classes=CLASSES
    ),
    "dit": functools.partial(DiT, width=16, depth=2, heads=2, num_classes=CLASSES),
}
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(3, 4, 4, 2)), jnp.float32)
NOISE = jnp.array([1.0, 30.0, 700.0])
COND = {"label": jnp.array([0, 2, 1])}


@pytest.fixture(params=sorted(NETWORKS))
def build(request):
    """The constructor of one small network."""
    return NETWORKS[request.param]


@functools.cache
def shapes(network):
    return jax.eval_shape(network.init, jax.random.key(0), X, NOISE, COND)


def randomised(network):
    """Parameters without zeros, of the size that keeps activations near 1."""
    rng = np.random.default_rng(1)

    def draw(shape):
        fan = np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 4
        return jnp.asarray(rng.normal(size=shape.shape) / np.sqrt(fan), shape.dtype)

    return jax.tree.map(draw, shapes(network))


@functools.cache
def compiled(network):
    """(params, x, noise, cond) -> output."""
    return jax.jit(network.apply)


def forward(network):
    """The network at the random parameters: (x, noise, cond) -> output."""
    return functools.partial(compiled(network), randomised(network))


@functools.cache
def loss_and_gradient(network):
    """params -> the mean square of the output, and its gradient."""
    return jax.jit(jax.value_and_grad(lambda p: (network.apply(p, X, NOISE, COND) ** 2).mean()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_and_output_are_float32(build, dtype):
    y, params = jax.eval_shape(
        build(dtype=dtype).init_with_output, jax.random.key(0), X, NOISE, COND
    )
    assert y.shape == X.shape and y.dtype == jnp.float32
    assert {l.dtype for l in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_a_fresh_network_answers_zero_and_is_a_function_of_its_key(build):
    init = jax.jit(build().init)
    first, again, other = (init(jax.random.key(seed), X, NOISE, COND) for seed in (0, 0, 1))
    assert not compiled(build())(first, X, NOISE, COND).any()
    same = [(a == b).all() for a, b in zip(*map(jax.tree.leaves, (first, again)), strict=True)]
    assert all(same)
    drawn = jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).all(), first, other))
    assert sum(drawn) > 5  # every drawn array is another one; zeros and ones stay


def test_out_channels_is_its_own_number(build):
    network = build(out_channels=5)
    params = shapes(network)
    assert jax.eval_shape(network.apply, params, X, NOISE, COND).shape == (3, 4, 4, 5)


def test_image_noise_level_and_label_matter_and_samples_do_not_mix(build):
    apply = forward(build())
    base = apply(X, NOISE, COND)
    for other in (
        apply(X.at[1].add(0.1), NOISE, COND),
        apply(X, NOISE.at[1].add(3.0), COND),
        apply(X, NOISE, {"label": COND["label"].at[1].set(0)}),
    ):
        change = np.abs(other - base).max(axis=(1, 2, 3))
        assert change[1] > 1e-3
        assert change[[0, 2]].max() < 1e-5


@pytest.mark.slow
def test_no_condition_is_the_null_class_and_differs_from_every_class(build):
    apply = forward(build())
    null = apply(X, NOISE, {"label": jnp.full(3, CLASSES)})
    np.testing.assert_allclose(apply(X, NOISE, None), null, atol=1e-5)
    for label in range(CLASSES):
        assert np.abs(apply(X, NOISE, {"label": jnp.full(3, label)}) - null).max() > 1e-3


@pytest.mark.slow
def test_every_parameter_receives_a_finite_gradient(build):
    _, gradients = loss_and_gradient(build())(randomised(build()))
    dead = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not (np.isfinite(leaf).all() and np.abs(leaf).max() > 0)
    ]
    assert dead == []


@pytest.mark.slow
def test_gradient_agrees_with_a_finite_difference(build):
    params, evaluate, step = randomised(build()), loss_and_gradient(build()), 1e-3
    _, gradients = evaluate(params)
    direction = jax.tree.map(lambda l: RNG.normal(size=l.shape).astype(l.dtype), params)
    ahead, behind = (
        evaluate(jax.tree.map(lambda l, d, s=s: l + s * d, params, direction))[0]
        for s in (step, -step)
    )
    products = jax.tree.map(lambda g, d: float((g * d).sum()), gradients, direction)
    want = sum(jax.tree.leaves(products))
    assert float(ahead - behind) / (2 * step) == pytest.approx(want, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["products", "full"])
def test_checkpointing_changes_neither_output_nor_gradient(build, remat):
    params = randomised(build())
    loss, gradients = loss_and_gradient(build())(params)
    loss_remat, gradients_remat = loss_and_gradient(build(remat=remat))(params)
    assert float(loss_remat) == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradients_remat), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(np.abs(a).max() + 1))


@pytest.mark.slow
def test_bfloat16_is_near_float32(build):
    exact = forward(build())(X, NOISE, COND)
    coarse = forward(build(dtype="bfloat16"))(X, NOISE, COND)
    assert coarse.dtype == jnp.float32
    error = jnp.sqrt(((coarse - exact) ** 2).mean() / (exact**2).mean())
    assert 1e-5 < error < 0.05  # it is another arithmetic, but the same function


@pytest.mark.slow
def test_bfloat16_tells_neighbouring_noise_levels_apart(build):
    # In bfloat16, 700 and 701 are one number
    apply = forward(build(dtype="bfloat16"))
    near = apply(X, NOISE.at[2].set(701.0), COND)
    assert np.abs(near - apply(X, NOISE, COND))[2].max() > 1e-3


def test_images_need_not_be_square(build):
    network = build()
    x = jnp.zeros((1, 4, 8, 2))
    y = jax.eval_shape(network.apply, shapes(network), x, NOISE[:1], None)
    assert y.shape == x.shape


@pytest.mark.slow
def test_a_network_without_classes_ignores_labels(build):
    apply = forward(build(num_classes=None))
    np.testing.assert_allclose(apply(X, NOISE, COND), apply(X, NOISE, None), atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "bf16"}, "dtype must be one of float32, bfloat16.*got 'bf16'"),
        ({"remat": "yes"}, "remat must be one of none, products, full, got 'yes'"),
        ({"attention_kernel": "flash"}, "attention_kernel must be one of .*got 'flash'"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"heads": 0}, "heads must be at least 1"),
    ],
)
def test_bad_fields_are_refused_by_name(build, fields, message):
    with pytest.raises(UserError, match=message):
        build(**fields)


def test_an_array_that_is_no_image_is_refused(build):
    with pytest.raises(UserError, match=r"\(3, 4\)"):
        build().init(jax.random.key(0), jnp.zeros((3, 4)), NOISE, None)
