"""Self-attention against NumPy, and the choice of its kernel."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models import attention
from scorediff.models.attention import SelfAttention, attend, choose_kernel


def softmax_attention(x, qkv, out, heads):
    """Loops over samples, heads and queries; all in NumPy float64."""
    b, n, d = x.shape
    size = d // heads
    result = np.zeros_like(x)
    for sample in range(b):
        projected = x[sample] @ qkv["kernel"] + qkv["bias"]
        for head in range(heads):
            at = slice(head * size, (head + 1) * size)
            q, k, v = (part[:, at] for part in np.split(projected, 3, axis=1))
            for query in range(n):
                weight = np.exp(k @ q[query] / np.sqrt(size))
                result[sample, query, at] = weight @ v / weight.sum()
    return result @ out["kernel"] + out["bias"]


def random_like(tree, seed=0, scale=0.5):
    """The same tree filled with normal numbers, so that no zero initialisation hides anything."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda l: jnp.asarray(scale * rng.normal(size=l.shape), l.dtype), tree)


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_equals_numpy(x64, heads):
    x = np.random.default_rng(1).normal(size=(2, 5, 12))
    module = SelfAttention(heads=heads, dtype="float64")
    params = random_like(module.init(jax.random.key(0), jnp.asarray(x)))
    params = jax.tree.map(lambda l: np.asarray(l, np.float64), params)
    want = softmax_attention(x, params["params"]["qkv"], params["params"]["out"], heads)
    np.testing.assert_allclose(module.apply(params, jnp.asarray(x)), want, atol=1e-12)


def test_attention_does_not_see_the_order_of_tokens():
    x = jax.random.normal(jax.random.key(1), (1, 6, 8))
    module = SelfAttention(heads=2)
    params = module.init(jax.random.key(0), x)
    order = jnp.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(
        module.apply(params, x[:, order]), module.apply(params, x)[:, order], atol=1e-6
    )


def test_bfloat16_attention_takes_its_softmax_in_float32():
    # Logits 181.0 and 182.4: bfloat16, with steps of 1 there, would round their difference to 1
    keys, values, query = np.array([0.5, 0.50390625]), np.array([0.0, 1.0]), 512.0
    kernel = np.zeros((2, 6))
    kernel[0, 2] = kernel[1, 4] = 1  # the first channel is the key, the second the value
    qkv = {"kernel": jnp.asarray(kernel), "bias": jnp.array([query, 0, 0, 0, 0, 0])}
    params = {"qkv": qkv, "out": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}
    x = jnp.stack([jnp.asarray(keys), jnp.asarray(values)], axis=-1)[None]
    got = SelfAttention(heads=1, dtype="bfloat16").apply({"params": params}, x)[0, 0, 0]
    weight = np.exp(query * (keys - keys[1]) / np.sqrt(2))
    assert abs(got - weight[1] / weight.sum()) < 0.005  # 0.804; rounded logits would give 0.731


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_the_plain_kernel_equals_jaxs_own(dtype, atol):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, n, 3, 4)), dtype) for n in (5, 7, 7))
    bias = jnp.asarray(rng.normal(size=(2, 1, 5, 7)), dtype)
    mask = jnp.asarray(rng.random((2, 1, 1, 7)) < 0.7).at[..., 0].set(True)
    ours, jaxs = (attend(q, k, v, kernel, bias=bias, mask=mask) for kernel in ("plain", "xla"))
    assert ours.dtype == q.dtype
    np.testing.assert_allclose(ours.astype("float32"), jaxs.astype("float32"), atol=atol)


@pytest.mark.parametrize("heads_of_bias", [None, 1, 3])
def test_one_head_after_another_gives_the_same_values_and_derivatives(heads_of_bias, monkeypatch):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        q, k, v = (jnp.asarray(rng.normal(size=(2, n, 3, 4))) for n in (5, 7, 7))
        bias = heads_of_bias and jnp.asarray(rng.normal(size=(1, heads_of_bias, 5, 7)))
        mask = jnp.asarray(rng.random((2, 1, 1, 7)) < 0.7).at[..., 0].set(True)

        def derivatives():
            f = functools.partial(attend, kernel="plain", bias=bias, mask=mask)
            y, back = jax.vjp(f, q, k, v)
            return (
                y,
                back(jnp.cos(y)),
                jax.jvp(f, (q, k, v), (k[:, :5], k, q[:, [0, 1, 2, 3, 4, 0, 1]])),
            )

        at_once = derivatives()
        monkeypatch.setattr(attention, "CACHED", 0)
        by_head = derivatives()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), at_once, by_head)


def test_one_head_after_another_keeps_no_logits(monkeypatch):
    monkeypatch.setattr(attention, "CACHED", 0)
    q = jnp.ones((1, 64, 2, 2))
    _, back = jax.vjp(lambda q: attend(q, q, q, "plain"), q)
    assert max(leaf.size for leaf in jax.tree.leaves(back)) <= q.size


def gpu(capability):
    return SimpleNamespace(platform="gpu", compute_capability=capability)


@pytest.mark.parametrize(
    ("head_dim", "dtype", "device", "kernel"),
    [
        (64, "bfloat16", gpu("9.0"), "cudnn"),
        (64, "float16", gpu("8.0"), "cudnn"),
        (64, "float32", gpu("9.0"), "xla"),
        (60, "bfloat16", gpu("9.0"), "xla"),
        (256, "bfloat16", gpu("9.0"), "xla"),
        (64, "bfloat16", gpu("7.5"), "xla"),
        (64, "bfloat16", gpu("gfx90a"), "xla"),
        (64, "bfloat16", SimpleNamespace(platform="cpu"), "plain"),
        (64, "bfloat16", SimpleNamespace(platform="tpu"), "xla"),
    ],
)
def test_auto_takes_cudnn_only_where_it_runs(head_dim, dtype, device, kernel):
    assert choose_kernel("auto", head_dim, dtype, device) == kernel
    assert choose_kernel("xla", head_dim, dtype, device) == "xla"
    if kernel != "cudnn":
        with pytest.raises(UserError, match="cannot run"):
            choose_kernel("cudnn", head_dim, dtype, device)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="3 heads do not divide a width of 8"):
        SelfAttention(heads=3).init(jax.random.key(0), jnp.zeros((1, 2, 8)))
