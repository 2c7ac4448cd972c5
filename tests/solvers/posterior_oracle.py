"""The exact posterior of a Gaussian mixture under y = A x0 + n, n ~ N(0, noise_std^2 I); NumPy.

Each component N(mu, Sigma) becomes N(mu + K (y - A mu), Sigma - K A Sigma) with K = Sigma A^T C^-1,
C = A Sigma A^T + noise_std^2 I, and its weight is multiplied by N(y; A mu, C). noise_std = 0 is
allowed where A has independent rows.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Posterior(NamedTuple):
    """A mixture of k Gaussians in d dimensions."""

    weights: np.ndarray  # [k]
    means: np.ndarray  # [k, d]
    covariances: np.ndarray  # [k, d, d]

    @property
    def mean(self) -> np.ndarray:
        return self.weights @ self.means

    @property
    def covariance(self) -> np.ndarray:
        away = self.means - self.mean
        spread = self.covariances + away[:, :, None] * away[:, None, :]
        return np.einsum("k,kij->ij", self.weights, spread)

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        pick = rng.choice(len(self.weights), size=n, p=self.weights)
        values, vectors = np.linalg.eigh(self.covariances)
        roots = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
        noise = rng.standard_normal((n, self.means.shape[1]))
        return self.means[pick] + np.einsum("nij,nj->ni", roots[pick], noise)


def prior_of(mixture) -> Posterior:
    """The components of an exact distribution of scorediff."""
    weights, means, axes, stds, _ = mixture.components
    return Posterior(weights, means, np.einsum("kij,kj,klj->kil", axes, stds**2, axes))


def posterior(prior: Posterior, matrix: np.ndarray, y: np.ndarray, noise_std: float) -> Posterior:
    """p(x0 | y) for one y [m] and matrix [m, d]."""
    weights, means, covariances = [], [], []
    for weight, mean, covariance in zip(*prior, strict=True):
        seen = matrix @ covariance @ matrix.T + noise_std**2 * np.eye(len(matrix))
        gain = np.linalg.solve(seen, matrix @ covariance).T
        weights.append(np.log(weight) + stats.multivariate_normal.logpdf(y, matrix @ mean, seen))
        means.append(mean + gain @ (y - matrix @ mean))
        covariances.append(covariance - gain @ matrix @ covariance)
    shares = np.exp(np.array(weights) - np.max(weights))
    return Posterior(shares / shares.sum(), np.array(means), np.array(covariances))


def given_noisy(prior: Posterior, x: np.ndarray, alpha: float, sigma: float) -> Posterior:
    """p(x0 | x_t = x) for one x [d]: the measurement with A = alpha I."""
    return posterior(prior, alpha * np.eye(len(x)), x, sigma)


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """sqrt(2 E|a - b| - E|a - a'| - E|b - b'|) of samples [n, d], unbiased; 0 if it is negative."""

    def distances(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(((p[:, None] - q[None]) ** 2).sum(axis=-1), 0))

    n, m = len(a), len(b)
    within = distances(a, a).sum() / (n * (n - 1)) + distances(b, b).sum() / (m * (m - 1))
    return float(np.sqrt(max(0.0, 2 * distances(a, b).mean() - within)))
