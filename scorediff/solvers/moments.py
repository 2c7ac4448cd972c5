"""What a table does to data whose denoiser is affine: exact moments, without Monte-Carlo noise.

For one-dimensional Gaussian data x0_hat is affine in x, so every register of a table stays
Gaussian and its mean and covariance follow by matrix products. Two questions are answered so: how
far the samples of an SDE solver are from the data in mean and variance (weak error), and whether a
table carries alpha and sigma along (with x0_hat = the known x0).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scorediff.solvers.table import NOISE, StepTable, marginal_before

_E, _B, _HISTORY, _ONE = 0, 1, 2, -1  # registers: e, b, m0, m1 ..., and last the constant 1


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
    size = _registers(table)
    state, cov = np.zeros(size), np.zeros((size, size))
    scale, churn = table.start
    state[_E], state[_ONE] = scale * mean, 1.0
    cov[_E, _E] = scale**2 * variance + churn**2
    seen = [(state[_E], cov[_E, _E])]
    noise = np.zeros((table.nfe, size))
    noise[:, _E], noise[:, _B] = table.e[:, NOISE], table.b[:, NOISE]
    for step, spread in zip(_steps(table, x0_hat), noise, strict=True):
        state, cov = step @ state, step @ cov @ step.T + np.outer(spread, spread)
        seen.append((state[_E], cov[_E, _E]))
    return Moments(*np.array(seen).T)


def _registers(table: StepTable) -> int:
    return _HISTORY + table.history + 1


def _steps(table: StepTable, x0_hat: Callable[[int], tuple[float, float]]) -> np.ndarray:
    """What each row does to the registers, [nfe, registers, registers]."""
    gain, offset = np.array([x0_hat(k) for k in range(table.nfe)]).T
    return _updates(table) @ _remembered(table, gain, offset)


def _remembered(table: StepTable, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Evaluate at e and shift the history."""
    of_e, of_x0 = np.asarray(table.keep).T
    size = _registers(table)
    matrix = np.zeros((table.nfe, size, size))
    for register in (_E, _B, _ONE):
        matrix[:, register, register] = 1.0
    matrix[:, _HISTORY, _E] = of_e + of_x0 * gain
    matrix[:, _HISTORY, _ONE] = of_x0 * offset
    older = np.arange(_HISTORY + 1, size - 1)
    matrix[:, older, older - 1] = 1.0
    return matrix


def _updates(table: StepTable) -> np.ndarray:
    """The new e and b from all registers; the rest stays."""
    matrix = np.tile(np.eye(_registers(table)), (table.nfe, 1, 1))
    matrix[:, _E, :_ONE] = np.delete(table.e, NOISE, axis=1)
    matrix[:, _B, :_ONE] = np.delete(table.b, NOISE, axis=1)
    return matrix
