"""The Brownian path as a source of noise: laws of its increments, and one path for any grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.diffusion import EDM
from scorediff.errors import UserError
from scorediff.solvers.grid import make_grid
from scorediff.solvers.noise import brownian_path, check_path, independent
from scorediff.solvers.sample import sample_keys
from scorediff.solvers.spacing import karras
from scorediff.solvers.table import OFF_PATH, Row, linear, make_table

pytestmark = pytest.mark.slow  # compilation; make test has no minute left for it

SAMPLES, SIZE, STEPS = 16, 8, 1000
PATHS = SAMPLES * SIZE
KEYS = sample_keys(jax.random.key(0), jnp.arange(SAMPLES))
GRID = np.linspace(-9, 9, STEPS + 1).astype(np.float32)  # log(alpha/sigma)


@jax.jit
def increments(keys, spans):
    """Normalised increments [n, paths] over spans [n, 2], as a solver's rows ask for them."""
    x = jnp.zeros((SAMPLES, SIZE))
    rows = jnp.arange(spans.shape[0])
    draws = jax.vmap(lambda row, span: brownian_path(keys, row, span, x))(rows, spans)
    return draws.reshape(-1, PATHS)


def spans_of(nodes):
    """Consecutive spans, padded to STEPS with the first, so that one program serves all grids."""
    spans = np.stack([nodes[:-1], nodes[1:]], axis=-1)
    return jnp.asarray(np.concatenate([spans, np.repeat(spans[:1], STEPS - len(spans), axis=0)]))


def path_at(nodes):
    """The path itself relative to the first node, [len(nodes), paths]."""
    steps = np.asarray(increments(KEYS, spans_of(nodes)))[: len(nodes) - 1]
    moves = steps * np.sqrt(np.diff(nodes))[:, None]
    return np.concatenate([np.zeros((1, PATHS)), np.cumsum(moves, axis=0, dtype=np.float64)])


@pytest.fixture(scope="module")
def fine():
    return np.asarray(increments(KEYS, spans_of(GRID)), np.float64)


@pytest.mark.slow
def test_increments_of_a_thousand_steps_are_standard_and_independent(fine):
    five_sigma = 5 / np.sqrt(fine.size)
    assert abs(fine.mean()) < five_sigma
    assert abs(fine.var() - 1) < np.sqrt(2) * five_sigma
    assert abs((fine**4).mean() - 3) < np.sqrt(96) * five_sigma
    for lag in (1, 2, 7, 128):
        assert abs((fine[lag:] * fine[:-lag]).mean()) < five_sigma * 1.1
    assert abs((fine[:, 1:] * fine[:, :-1]).mean()) < five_sigma * 1.1  # neighbouring paths
    each = fine.var(axis=1)  # no step is out of line, wherever it lies among the tree's cells
    assert abs(each - 1).max() < 5.5 * np.sqrt(2 / PATHS)


def test_every_grid_follows_the_same_path():
    whole = path_at(GRID)
    for stride in (500, 125, 8):
        # In float32 a step of 0.018 is known to 1e-4 of its length, and 1000 of them are added up.
        np.testing.assert_allclose(path_at(GRID[::stride]), whole[::stride], atol=1e-3)
    assert whole[-1].var() == pytest.approx(18, rel=5 * np.sqrt(2 / PATHS))


def test_an_increment_is_the_sum_of_its_parts():
    a, b, c = -2.0, 0.7, 1.5
    spans = jnp.asarray([[a, b], [b, c], [a, c]] + [[a, c]] * (STEPS - 3), jnp.float32)
    first, second, both = np.asarray(increments(KEYS, spans))[:3]
    np.testing.assert_allclose(
        np.sqrt(b - a) * first + np.sqrt(c - b) * second, np.sqrt(c - a) * both, atol=5e-6
    )


def test_a_sample_has_its_own_path(fine):
    again = np.asarray(increments(KEYS[::-1], spans_of(GRID)))
    by_sample = (STEPS, SAMPLES, SIZE)
    np.testing.assert_array_equal(again.reshape(by_sample)[:, ::-1], fine.reshape(by_sample))
    other = sample_keys(jax.random.key(1), jnp.arange(SAMPLES))
    mixed = np.asarray(increments(other, spans_of(GRID)), np.float64)
    assert abs((mixed * fine).mean()) < 5 / np.sqrt(fine.size)


def test_the_ends_of_the_clock_are_within_the_path():
    spans = jnp.asarray([[-20.0, -9.0], [9.0, 20.0]] + [[0.0, 1.0]] * (STEPS - 2), jnp.float32)
    ends = np.asarray(increments(KEYS, spans))[:2]
    assert np.isfinite(ends).all()
    assert abs(ends.var(axis=1) - 1).max() < 5 * np.sqrt(2 / PATHS)


def test_the_program_has_no_host_callback():
    """One would keep compiled samplers out of the cache, and stall an accelerator in each row."""
    x = jnp.zeros((SAMPLES, 3))
    program = jax.make_jaxpr(brownian_path)(KEYS, 0, jnp.array([0.0, 1.0]), x)
    assert "callback" not in str(program)


def test_independent_noise_depends_on_key_and_stream_only():
    x, over = jnp.zeros((SAMPLES, 1)), jnp.array([0.0, 1.0])
    draws = [np.asarray(independent(KEYS, k, over, x)) for k in (3, 3, 4)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert abs((draws[0] * draws[2]).mean()) < 5 / np.sqrt(SAMPLES)
    np.testing.assert_array_equal(independent(KEYS[5:6], 3, over, x[:1])[0], draws[0][5])


def test_noise_that_leads_back_is_refused():
    noisy, *_, end = make_grid(EDM(), karras, 3).nodes
    onward = make_table([Row(noisy, e=linear(e=1.0, z=1.0))], end)
    check_path(onward)
    back = make_table([Row(noisy, e=linear(e=1.0, z=1.0), over=OFF_PATH)], end)
    with pytest.raises(UserError, match="leads back"):
        check_path(back)
