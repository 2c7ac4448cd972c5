"""Where a search of tables starts: levels are drawn, and the paths of the exact flow give the rest.

Which noise levels a table's rows have is the hard part of a search: steps along slopes hardly move
them, since the error has a minimum near almost any. Once they are chosen, good coefficients cost no
search. Sent out from shared noise, each row's combination of the start and of every earlier x0_hat
should be where the exact flow's path from that noise passes the next level, and after the last row
where the path ends: row after row a linear least-squares problem, and no gradient of the network.
So a choice of levels is judged by as many network evaluations as it has rows, on few noises. Many
are drawn, and the best go through differential evolution (Storn and Price, J. Global Optimization
11, 1997).
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import differential_evolution

from scorediff.evaluation.solver_bench import Bench
from scorediff.evaluation.table_numbers import Numbers, numbers_at, table_of
from scorediff.evaluation.table_search import Problem, rms
from scorediff.solvers import StepTable
from scorediff.solvers.table import NOISE

# Shares of the way from t_max to t_min in log(alpha/sigma) between which the first and the last row
# are drawn. Beyond, x0_hat is near the mean of the data, or near x. Evolution may go there.
_FIRST, _LAST = (0.0, 0.4), (0.55, 0.9)
_APART = 0.02  # in some share, of choices that do not count as the same
_SMALLEST = 1e-6  # singular value that counts, of the largest: x0_hats of near levels are alike


class Paths(NamedTuple):
    """Where the exact flow passes from the problem's noises on their way to its targets."""

    problem: Problem
    angle: np.ndarray  # [n], atan2(sigma, alpha), falling: finite at both ends
    x: np.ndarray  # [n, b, *d], over hypot(alpha, sigma)

    def at(self, alpha: float, sigma: float) -> np.ndarray:
        """The states [b, *d] at a marginal, between the two nearest ones known."""
        angle = np.arctan2(sigma, alpha)
        k = int(np.clip(np.searchsorted(-self.angle, -angle), 1, len(self.angle) - 1))
        share = (self.angle[k - 1] - angle) / (self.angle[k - 1] - self.angle[k])
        return np.hypot(alpha, sigma) * ((1 - share) * self.x[k - 1] + share * self.x[k])

    def part(self, stop: int) -> "Paths":
        """The first of them."""
        return Paths(self.problem.part(0, stop), self.angle, self.x[:, :stop])


def paths_of(bench: Bench, reference: StepTable, problem: Problem) -> Paths:
    """Followed by the reference, whose every evaluation is kept."""
    n = reference.nfe
    alpha, sigma = reference.alpha[:n], reference.sigma[:n]
    x = bench.points(reference, problem.x, problem.cond)
    unit = np.hypot(alpha, sigma).reshape(n, *[1] * (x.ndim - 1))
    return Paths(problem, np.arctan2(sigma, alpha), x / unit)


class Fit(NamedTuple):
    """A table fitted to paths, and the root mean square distance of its ends from theirs."""

    numbers: Numbers
    error: float


def fitted(bench: Bench, paths: Paths, share: np.ndarray) -> Fit:
    """The table whose rows are at these shares [n] of the way in log(alpha/sigma), rising."""
    process, problem = bench.model.process, paths.problem
    n, target = len(share), np.asarray(problem.target, np.float64)
    root = np.repeat(np.sqrt(np.asarray(problem.weight, np.float64)), target[0].size)
    rows = np.zeros((n, NOISE + 1 + n))
    numbers = numbers_at(process, share, rows)
    nodes = table_of(numbers, process)
    e, history = nodes.start[0] * np.asarray(problem.x, np.float64), []
    for k in range(n):
        history.insert(0, bench.estimate(e, nodes.t[k], problem.cond))
        goal = target if k == n - 1 else paths.at(nodes.alpha[k + 1], nodes.sigma[k + 1])
        known = np.stack([a.ravel() for a in (e, *history)], axis=1)
        by = np.linalg.lstsq(known * root[:, None], goal.ravel() * root, rcond=_SMALLEST)[0]
        rows[k, 0], rows[k, NOISE + 1 : NOISE + 2 + k] = by[0], by[1:]
        e = (known @ by).reshape(goal.shape)
    return Fit(numbers._replace(e=rows), rms(e, target, problem.weight))


def evolved(
    bench: Bench,
    paths: Paths,
    nfe: int,
    *,
    drawn: int,
    population: int,
    rounds: int,
    seed: int,
) -> list[Fit]:
    """The last population of tables of nfe rows, the best first; of those alike the best is left.

    The first are the best of the `drawn`, by half of the noises.
    """
    rng, half = np.random.default_rng(seed), paths.part(-(-len(paths.problem) // 2))

    def error(share: np.ndarray, along: Paths = paths) -> float:
        return fitted(bench, along, np.sort(share)).error

    first = sorted((_draw(rng, nfe) for _ in range(drawn)), key=lambda share: error(share, half))
    end = differential_evolution(
        error,
        [(0.0, 1.0)] * nfe,
        init=np.stack(first[:population]),
        maxiter=rounds,
        tol=0.0,
        polish=False,
        rng=rng,
    )
    by_error = np.sort(end.population, axis=1)[np.argsort(end.population_energies)]
    return [fitted(bench, paths, share) for share in _apart(by_error)]


def _draw(rng: np.random.Generator, n: int) -> np.ndarray:
    """Shares [n] of n rows, rising."""
    first, last = rng.uniform(*_FIRST), rng.uniform(*_LAST)
    between = np.sort(rng.uniform(first, last, max(0, n - 2)))
    return np.array([first, *between, last])[:n]


def _apart(choices: np.ndarray) -> list[np.ndarray]:
    """Those that differ from each one before."""
    left: list[np.ndarray] = []
    for share in choices:
        if all(np.abs(share - other).max() > _APART for other in left):
            left.append(share)
    return left
