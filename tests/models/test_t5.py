"""T5's encoder: buckets of distances, masks, both MLPs, hidden states, and the published sizes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models.t5 import T5Encoder, distance_buckets

SMALL = functools.partial(
    T5Encoder, vocabulary=20, width=8, depth=2, heads=2, head_width=3, hidden=12, buckets=8
)
IDS = jnp.array([[7, 3, 4, 1, 9, 2], [6, 5, 1, 0, 0, 8]])

# Parameters of the published encoders: T5 v1.1 XXL as SD3's and PixArt's text encoder (model card
# of Stable Diffusion 3: 4.7 billion), and T5 v1.0 small (Raffel et al., section 3.1.2 describes it:
# 6 layers of width 512).
PUBLISHED = {
    "v1.1 XXL": (
        T5Encoder(width=4096, depth=24, heads=64, hidden=10240, activation="gelu_tanh", gated=True),
        4_762_310_656,
    ),
    "v1.0 small": (T5Encoder(), 35_330_816),
}


@functools.cache
def params(gated):
    """Parameters of a size that makes every part matter."""
    shapes = jax.eval_shape(SMALL(gated=gated).init, jax.random.key(0), IDS)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(0.4 * rng.normal(size=s.shape), s.dtype), shapes)


@functools.cache
def compiled(encoder):
    return jax.jit(encoder.apply)


def encode(ids=IDS, mask=None, *, gated=False, **fields):
    return compiled(SMALL(gated=gated, **fields))(params(gated), ids, mask)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_published_number_of_parameters(name):
    encoder, count = PUBLISHED[name]
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (8, 20), (16, 32), (6, 10), (4, 2)])
def test_buckets_by_the_rule_for_one_pair(buckets, far):
    def bucket(ahead):
        side, exact = buckets // 2, buckets // 4
        start, distance = (side, ahead) if ahead > 0 else (0, -ahead)
        if distance < exact:
            return {start + distance}
        steps = math.log(distance / exact) / math.log(far / exact) * (side - exact)
        edges = {math.floor(steps - 1e-5), math.floor(steps + 1e-5)}  # float32 decides at an edge
        return {start + min(exact + edge, side - 1) for edge in edges}

    got = distance_buckets(150, buckets, far)
    for query, key in [(0, k) for k in range(150)] + [(149, k) for k in range(150)]:
        assert got[query, key] in bucket(key - query)


def test_buckets_at_known_distances():
    """The edges of T5's own 32 buckets up to 128: 8, 16, 32, 64 and 128 are powers of 2."""
    row = distance_buckets(200, 32, 128)[:, 0]  # keys before the query
    assert [row[d] for d in (0, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 199)] == [
        *(0, 7, 8, 9, 10, 11, 12, 13, 14, 15, 15, 15)
    ]
    assert (distance_buckets(200, 32, 128)[0, 1:] == 16 + row[1:]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_and_answers_are_float32(dtype):
    got, shapes = jax.eval_shape(SMALL(dtype=dtype).init_with_output, jax.random.key(0), IDS)
    assert {leaf.dtype for leaf in jax.tree.leaves((got, shapes))} == {jnp.dtype("float32")}
    assert got.last_hidden_state.shape == (2, 6, 8)
    assert got.hidden_states.shape == (3, 2, 6, 8)
    assert got.pooled is None


def test_masked_tokens_are_not_seen():
    mask = jnp.ones_like(IDS).at[:, 4:].set(0)
    first, second = encode(mask=mask), encode(IDS.at[:, 4:].set(11), mask)
    np.testing.assert_array_equal(first.last_hidden_state[:, :4], second.last_hidden_state[:, :4])
    change = np.abs(encode().last_hidden_state - first.last_hidden_state).max(axis=(0, 2))
    assert change.min() > 1e-3  # without the mask every token sees them, on both sides
    shorter = encode(IDS[:, :4])
    np.testing.assert_allclose(first.last_hidden_state[:, :4], shorter.last_hidden_state, atol=1e-5)
    assert np.isfinite(encode(mask=jnp.zeros_like(IDS)).last_hidden_state).all()


def test_only_the_distances_tell_the_order():
    def backwards(variables):
        """How far a reversed text is from the reversed answer."""
        got = compiled(SMALL())(variables, IDS).last_hidden_state
        back = compiled(SMALL())(variables, IDS[:, ::-1]).last_hidden_state
        return np.abs(got[:, ::-1] - back).max()

    table = params(False)["params"]["distances_table"]
    without = {**params(False)["params"], "distances_table": jnp.zeros_like(table)}
    assert backwards(params(False)) > 1e-2
    assert backwards({"params": without}) < 1e-5


@pytest.mark.parametrize("gated", [False, True])
def test_one_layer_by_its_formulas(gated):
    """A text of one token: attention's answer is the token's own value."""
    encoder = SMALL(gated=gated, depth=1, activation="gelu_tanh")
    tree = jax.tree.map(lambda a: a, params(gated)["params"])
    tree["layers"] = jax.tree.map(lambda a: a[:1], tree["layers"])
    layer = jax.tree.map(lambda a: np.asarray(a[0], np.float64), tree["layers"])

    def norm(x, scale):
        return x / np.sqrt((x**2).mean() + 1e-6) * scale

    x = np.asarray(tree["tokens"]["embedding"][7], np.float64)
    qkv = norm(x, layer["norm_attention"]["scale"]) @ layer["qkv"]["kernel"]
    x = x + qkv[12:] @ layer["out"]["kernel"]
    h = norm(x, layer["norm_mlp"]["scale"]) @ layer["mlp_in"]["kernel"]
    gate = h[:12]
    gelu = gate / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    x = x + (gelu * h[12:] if gated else gelu) @ layer["mlp_out"]["kernel"]
    want = norm(x, np.asarray(tree["norm_out"]["scale"]))
    got = jax.jit(encoder.apply)({"params": tree}, jnp.array([[7]]))
    np.testing.assert_allclose(got.last_hidden_state[0, 0], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got.hidden_states[-1], got.last_hidden_state)
    np.testing.assert_array_equal(got.hidden_states[0][0, 0], tree["tokens"]["embedding"][7])


def test_bfloat16_is_close_to_float32():
    want, got = encode(), encode(dtype="bfloat16")
    error = np.abs(got.last_hidden_state - want.last_hidden_state).max()
    assert 0 < error < 0.1 * np.abs(want.last_hidden_state).max()


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_gradients_are_finite_and_reach_every_parameter(remat):
    def loss(p):
        encoder = SMALL(remat=remat, gated=True, activation="gelu_tanh")
        return (encoder.apply(p, IDS).last_hidden_state ** 2)[..., 0].sum()

    gradients = jax.jit(jax.grad(loss))(params(True))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "quick_gelu"}, "activation must be one of relu, silu, gelu, gelu_tanh"),
        ({"buckets": 7}, "buckets must be even and at least 4, got 7"),
        ({"buckets": 32, "max_distance": 8}, r"max_distance must be above buckets / 4 = 8, got 8"),
        ({"head_width": 0}, "sizes must be at least 1"),
        ({"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(UserError, match=message):
        SMALL(**fields)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match=r"integers \[b, n\], got float32"):
        jax.eval_shape(SMALL().init, jax.random.key(0), jnp.zeros((1, 6)))
