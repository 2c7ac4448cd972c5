"""Noise level, class and position as the networks are told them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.models.embeddings import Conditioning, grid_sincos, sinusoid


def test_sinusoid_is_cos_then_sin_of_geometric_frequencies():
    noise, dim = [0.0, 0.37, 999.5], 6
    got = np.asarray(sinusoid(jnp.array(noise), dim))
    want = [
        [f(t * math.exp(-math.log(1e4) * i / 3)) for f in (math.cos, math.sin) for i in range(3)]
        for t in noise
    ]
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_sinusoid_tells_neighbouring_integers_apart_in_float32_from_bfloat16_input():
    a, b = sinusoid(jnp.array([1000.0, 1001.0]), 32)
    assert a.dtype == jnp.float32
    assert np.abs(a - b).max() > 0.5
    assert sinusoid(jnp.array([3.0], jnp.bfloat16), 32).dtype == jnp.float32


def test_sinusoid_refuses_an_odd_width():
    with pytest.raises(UserError, match="even width, got 7"):
        sinusoid(jnp.zeros(1), 7)


def test_grid_sincos_first_half_is_the_column_second_half_the_row():
    table = grid_sincos(3, 5, 16).reshape(3, 5, 16)
    assert np.ptp(table[..., :8], axis=0).max() == 0  # the same in every row
    assert np.ptp(table[..., 8:], axis=1).max() == 0  # the same in every column
    column, i = 4, 2
    assert table[0, column, i] == pytest.approx(math.sin(column * 10_000 ** (-i / 4)), abs=1e-14)
    assert table[2, 0, 8 + 4 + i] == pytest.approx(math.cos(2 * 10_000 ** (-i / 4)), abs=1e-14)


def test_grid_sincos_inner_products_depend_on_offsets_only():
    # cos a cos b + sin a sin b = cos(a - b): what makes these positions translation invariant
    gram = (table := grid_sincos(4, 4, 32)) @ table.T
    gram = gram.reshape(4, 4, 4, 4)
    np.testing.assert_allclose(gram[0, 0, 1, 2], gram[2, 1, 3, 3], atol=1e-12)
    assert abs(gram[0, 0, 1, 2] - gram[0, 0, 2, 1]) < 1e-12  # rows and columns weigh the same
    assert abs(gram[0, 0, 1, 2] - gram[0, 0, 1, 1]) > 0.1


@pytest.fixture(scope="module")
def labelled():
    module = Conditioning(features=8, width=12, num_classes=3, dtype="bfloat16")
    params = module.init(jax.random.key(0), jnp.zeros(2), None)
    return lambda label: module.apply(
        params, jnp.array([0.3, 0.3]), None if label is None else {"label": jnp.array(label)}
    )


def test_conditioning_is_float32_inside_a_bfloat16_network(labelled):
    assert labelled([0, 1]).dtype == jnp.float32


def test_no_label_is_the_null_class(labelled):
    np.testing.assert_array_equal(labelled(None), labelled([3, 3]))
    rows = labelled([0, 3])
    assert np.abs(rows[0] - rows[1]).max() > 0.1


def test_a_label_outside_the_table_is_nan_not_a_neighbour(labelled):
    rows = np.asarray(labelled([4, 2]))
    assert np.isnan(rows[0]).all() and np.isfinite(rows[1]).all()


@pytest.mark.parametrize("fourier", [False, True])
def test_a_second_number_goes_the_way_of_the_noise_level_through_its_own_perceptron(fourier):
    module = Conditioning(features=8, width=12, label_kind="noise", fourier=fourier)
    noise, cond = jnp.array([0.5, 30.0]), {"label": jnp.array([30.0, 0.5])}
    params = module.init(jax.random.key(0), noise, cond)["params"]
    same = params | {"label_in": params["noise_in"], "label_out": params["noise_out"]}
    both = module.apply({"params": same}, noise, cond)
    np.testing.assert_allclose(both[0], both[1], rtol=1e-5)  # one sum in two orders
    alone = module.clone(label_kind="class").apply({"params": params}, noise, None)
    np.testing.assert_allclose(both[0], alone[0] + alone[1], rtol=1e-5, atol=1e-6)


def test_a_vector_in_place_of_a_class_is_added_and_must_be_given():
    module = Conditioning(features=8, width=12, label_kind="vector")
    noise, cond = jnp.array([0.5, 30.0]), {"label": jnp.ones((2, 12))}
    params = module.init(jax.random.key(0), noise, cond)
    alone = module.clone(label_kind="class").apply(params, noise, None)
    np.testing.assert_allclose(module.apply(params, noise, cond), alone + 1, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r'Conditioning needs cond\["label"\]'):
        module.apply(params, noise, None)
