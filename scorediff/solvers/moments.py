"""What a table does to data whose denoiser is affine: exact moments, without Monte-Carlo noise.

For one-dimensional Gaussian data x0_hat is affine in x, so every register of a table stays
Gaussian and its mean and covariance follow by matrix products. Two questions are answered so: how
far the samples of an SDE solver are from the data in mean and variance (weak error), and whether a
table carries alpha and sigma along (with x0_hat = the known x0).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scorediff.solvers.table import HISTORY, NOISE, StepTable, marginal_before

_E, _B, _HISTORY = 0, 1, 2  # registers: e, b, m0 ... m4, and the constant 1
_ONE = _HISTORY + HISTORY


class Moments(NamedTuple):
    """Mean and variance of the state, before each evaluation and at the end: each [n + 1]."""

    mean: np.ndarray
    variance: np.ndarray


def gaussian_moments(table: StepTable, mean: float, variance: float) -> Moments:
    """Moments of what a table makes of data N(mean, variance), started from the true marginal."""

    def x0_hat(k: int) -> tuple[float, float]:
        alpha, sigma = table.alpha[k], table.sigma[k]
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return gain, mean * (1 - gain * alpha)

    alpha, sigma = marginal_before(table)
    return propagate(table, x0_hat, alpha * mean, alpha**2 * variance + sigma**2)


def transport(table: StepTable) -> Moments:
    """Moments of e where every x0_hat is the known x0 = 1: exact solvers keep (alpha, sigma^2)."""
    alpha, sigma = marginal_before(table)
    return propagate(table, lambda k: (0.0, 1.0), alpha, sigma**2)


def propagate(
    table: StepTable, x0_hat: Callable[[int], tuple[float, float]], mean: float, variance: float
) -> Moments:
    """Follow the registers from e ~ N(mean, variance); x0_hat(k) = (gain, offset) at row k."""
    state, cov = np.zeros(_ONE + 1), np.zeros((_ONE + 1, _ONE + 1))
    scale, churn = table.start
    state[_E], state[_ONE] = scale * mean, 1.0
    cov[_E, _E] = scale**2 * variance + churn**2
    seen = [(state[_E], cov[_E, _E])]
    for k in range(table.nfe):
        step = _update(table, k) @ _remember(table, k, *x0_hat(k))
        noise = np.zeros(_ONE + 1)
        noise[[_E, _B]] = table.e[k, NOISE], table.b[k, NOISE]
        state, cov = step @ state, step @ cov @ step.T + np.outer(noise, noise)
        seen.append((state[_E], cov[_E, _E]))
    return Moments(*np.array(seen).T)


def _remember(table: StepTable, k: int, gain: float, offset: float) -> np.ndarray:
    """Evaluate at e and shift the history."""
    of_e, of_x0 = table.keep[k]
    matrix = np.zeros((_ONE + 1, _ONE + 1))
    matrix[[_E, _B, _ONE], [_E, _B, _ONE]] = 1.0
    matrix[_HISTORY, [_E, _ONE]] = of_e + of_x0 * gain, of_x0 * offset
    older = np.arange(_HISTORY + 1, _ONE)
    matrix[older, older - 1] = 1.0
    return matrix


def _update(table: StepTable, k: int) -> np.ndarray:
    matrix = np.eye(_ONE + 1)
    matrix[_E, :_ONE] = np.delete(table.e[k], NOISE)
    matrix[_B, :_ONE] = np.delete(table.b[k], NOISE)
    return matrix
