"""The problem that a search solves, and parts of it drawn by their shares in its error."""

import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.evaluation.table_search import Problem, rms


@pytest.mark.parametrize("samples", [1, 20, 60])
def test_samples_drawn_by_their_shares_have_the_mean_of_all(samples):
    """Whatever is drawn: two of these are sure to be, and weigh less for it."""
    squares = np.random.default_rng(0).exponential(size=64) * np.where(np.arange(64) < 2, 50, 1)
    problem = Problem(jnp.arange(64), None, jnp.zeros(64), jnp.ones(64))
    for seed in range(3):
        part = problem.drawn(squares / squares.sum(), samples, seed=seed)
        assert len(np.unique(part.x)) == len(part) == samples
        mean = np.mean(squares[np.asarray(part.x)] * np.asarray(part.weight))
        assert mean == pytest.approx(squares.mean(), rel=1e-5)


def test_all_samples_drawn_are_the_problem():
    problem = Problem(jnp.arange(8), None, jnp.zeros(8), jnp.ones(8))
    part = problem.drawn(np.arange(1.0, 9.0) / 36, 8, seed=0)
    assert part.x.tolist() == list(range(8))
    np.testing.assert_allclose(part.weight, 1.0, rtol=1e-6)


def test_weights_count_squares():
    values, target = np.array([[3.0, 4.0], [1.0, 1.0]]), np.array([[0.0, 0.0], [0.0, 2.0]])
    assert rms(values, target) == pytest.approx((27 / 4) ** 0.5)
    assert rms(values, target, np.array([2.0, 0.0])) == pytest.approx(12.5**0.5)
    assert rms(values + np.nan, target) == np.inf
