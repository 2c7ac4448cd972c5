"""Better solvers by least squares: the numbers of a table, fitted to where the exact flow ends.

A table is differentiable in its numbers (`table_numbers`), so any can be a starting point. Each
evaluation point may be any linear combination of the noise and every earlier x0_hat: the rows need
not keep the marginal of the level that the network is told, and the last need not end at x0_hat.
With r(theta) the samples from shared noise less those of the reference, the mean r^2 is minimised
by Levenberg and Marquardt's damped Gauss-Newton step,

    (J^T J + mu diag(J^T J)) step = -J^T r,    J = dr/dtheta,                                   (1)

whose scaling by the diagonal makes it blind to the units of the coefficients; tens of steps do,
though the problem is as badly conditioned as any extrapolation. There are few numbers (75 at 10
evaluations), so J^T J need not see every component of every sample: with directions v of a sample's
own and E[v v^T] = 1, it is the mean of (J^T v)(J^T v)^T, and a few v a sample leave more
equations than unknowns by far. J^T r is exact. What is saved is spent on more samples: errors have
long tails, and a fit to few follows the worst of those.

At the minimum r is not small, so J^T J is not the curvature there, and the steps of (1) creep. The
last ones are therefore L-BFGS's (Nocedal and Wright, Numerical Optimization, section 7.2), which
starts from (1)'s curvature and learns the rest from the slopes it meets; it forgets none of them.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from scorediff.counting import measured
from scorediff.diffusion.process import Process
from scorediff.evaluation.table_numbers import Numbers, differentiable_table, free_of, moved
from scorediff.solvers import StepTable, sample, sample_keys
from scorediff.types import Array, Cond, DenoiseFn

_TURN = 10**0.5  # ratio of one damping tried to the next
_DAMPINGS = 1e-9, 1e4
_EQUATIONS = 8  # for each number that is free: so many directions, over all samples,
_DIRECTIONS = 2  # and at least so many of each
_FLOOR = 1e-3  # of the curvature that L-BFGS starts from, in units in which its diagonal is 1
_GAINED = 1e-5  # L-BFGS ends with a step that makes the mean square less by a smaller share
_TRIES = 8  # points at most that one of its steps tries: float32 costs have noise
_HOPELESS = 1e6  # what stands for an infinite cost, times the first
# The most that a place moves in a step: one that leaps to an end feels no slope there.
_STRIDE = 0.5
_AT_ONCE = 2**11  # components of x whose slopes one call takes: bounds a network's memory
_compiled = functools.partial(jax.jit, static_argnums=(0, 1))


class Problem(NamedTuple):
    """Noise at the process's t_max, what each is conditioned on, and where the exact flow ends."""

    x: Array  # [b, *d]
    cond: Cond
    target: Array  # [b, *d]
    weight: Array  # [b], of each sample's square error, 1 in the mean

    def part(self, start: int, stop: int) -> "Problem":
        """Some of them."""
        return jax.tree.map(lambda leaf: leaf[start:stop], self)

    def drawn(self, share: np.ndarray, samples: int, *, seed: int) -> "Problem":
        """So many, their chances in proportion to `share` [b]; weights keep means what they are.

        With shares near those that samples have in a mean, few give nearly the mean of all.
        """
        chance, rng = _chances(share, samples), np.random.default_rng(seed)
        order = rng.permutation(len(self))
        ticks = rng.uniform() + np.arange(samples)  # systematic: nothing is drawn twice
        found = np.searchsorted(np.cumsum(chance[order]), ticks)
        index = np.sort(order[np.minimum(found, len(self) - 1)])
        part = jax.tree.map(lambda leaf: leaf[index], self)
        weight = np.asarray(part.weight) * samples / (len(self) * chance[index])
        return Problem(part.x, part.cond, part.target, jnp.asarray(weight, part.weight.dtype))

    def __len__(self) -> int:
        return self.x.shape[0]


def _chances(share: np.ndarray, samples: int) -> np.ndarray:
    """In proportion to `share`, but no larger than 1; their sum is the number of samples."""
    certain = np.zeros(len(share), bool)
    while True:
        rest = samples - certain.sum()
        chance = np.ones(len(share))
        chance[~certain] = rest * share[~certain] / share[~certain].sum()
        if not (chance > 1).any():
            return chance
        certain |= chance > 1


class Progress(NamedTuple):
    """Where a search stands after so many steps."""

    steps: int
    error: float  # root mean square
    numbers: Numbers


def samples(denoise: DenoiseFn, table: StepTable, problem: Problem) -> Array:
    """Where a table without noise takes the problem's x."""
    keys = sample_keys(jax.random.key(0), jnp.arange(len(problem)))
    return sample(denoise, table, problem.x, keys=keys, cond=problem.cond)


def least_squares(
    denoise: DenoiseFn,
    process: Process,
    numbers: Numbers,
    problem: Problem,
    *,
    steps: int,
    damping: float = 1e-2,
    enough: float = 2e-3,
) -> Iterator[Progress]:
    """Steps of equation (1), each with less error than the one before, starting with none.

    Every step takes the best damping near the last one's (at first `damping`): a step that merely
    helps creeps along curved valleys. Ends after `steps`, when no damping makes the error smaller,
    or when five steps in a row have made the mean square less by no more than the share `enough`.
    """
    free = free_of(numbers)
    costs = [_cost(denoise, process, numbers, problem)]
    yield Progress(0, costs[0] ** 0.5, numbers)
    for step in range(1, steps + 1):
        square, slope = _normal_equations(denoise, process, numbers, free, problem)

        def cost_at(mu: float, start=numbers, square=square, slope=slope) -> float:
            there = _stepped(start, free, square, slope, mu)
            return _cost(denoise, process, there, problem)

        cost, damping = _best_damping(cost_at, damping, costs[-1])
        if not cost < costs[-1]:
            return
        numbers = _stepped(numbers, free, square, slope, damping)
        costs.append(cost)
        yield Progress(step, cost**0.5, numbers)
        if step >= 5 and costs[-6] - cost < enough * costs[-6]:
            return


def quasi_newton(
    denoise: DenoiseFn,
    process: Process,
    numbers: Numbers,
    problem: Problem,
    *,
    steps: int,
    seen: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """At most `steps` steps of L-BFGS, each told to `seen`: where they end."""
    free = free_of(numbers)
    square, _ = _normal_equations(denoise, process, numbers, free, problem)
    first = _cost(denoise, process, numbers, problem)
    units = (first / 2) ** 0.5 * _whitening(square)  # so that the curvature of `scaled` is 1

    def at(z: np.ndarray) -> Numbers:
        return moved(numbers, free, units @ z)

    def scaled(z: np.ndarray) -> tuple[float, np.ndarray]:
        cost, slope = _cost_and_slope(denoise, process, at(z), free, problem)
        if not np.isfinite(cost) or not np.isfinite(slope).all():
            return _HOPELESS, np.zeros_like(z)
        return cost / first, units.T @ slope / first

    def after(k: int, z: np.ndarray, cost: float) -> Progress:
        return Progress(k, (cost * first) ** 0.5, at(z))

    path = []

    def report(intermediate_result) -> None:  # scipy goes by the argument's name
        path.append(after(len(path) + 1, intermediate_result.x, intermediate_result.fun))
        seen(path[-1])

    start = np.zeros(free.size)
    options = {"maxiter": steps, "maxcor": steps, "maxls": _TRIES, "ftol": _GAINED, "gtol": 0.0}
    end = minimize(scaled, start, jac=True, method="L-BFGS-B", callback=report, options=options)
    return after(len(path), end.x, end.fun)


def _best_damping(
    cost_at: Callable[[float], float], damping: float, limit: float
) -> tuple[float, float]:
    """(cost, damping) where the cost has a minimum, walked to from `damping`.

    The way is upward where that alone brings the cost below `limit`, and else wherever it falls.
    """
    cost_at = functools.cache(cost_at)
    least, most = _DAMPINGS
    here = damping
    while not cost_at(here) < limit and here < most:
        here *= _TURN
    while here < most and cost_at(here * _TURN) < cost_at(here):
        here *= _TURN
    while here > least and cost_at(here / _TURN) < cost_at(here):
        here /= _TURN
    return cost_at(here), here


def _stepped(
    numbers: Numbers, free: np.ndarray, square: np.ndarray, slope: np.ndarray, damping: float
) -> Numbers:
    """The numbers after the step of equation (1), in which no place moves far."""
    by, places = _solve(square, slope, damping), len(numbers.place)
    by[:places] = np.clip(by[:places], -_STRIDE, _STRIDE)
    return moved(numbers, free, by)


def _solve(square: np.ndarray, slope: np.ndarray, damping: float) -> np.ndarray:
    """The step of equation (1), in units in which the diagonal is 1."""
    unit = 1 / np.sqrt(np.maximum(np.diag(square), 1e-30))
    scaled = square * unit[:, None] * unit + damping * np.eye(len(unit))
    return -unit * np.linalg.solve(scaled, unit * slope)


def _whitening(square: np.ndarray) -> np.ndarray:
    """Coordinates in which J^T J, raised a little where it is flat, is the identity."""
    unit = 1 / np.sqrt(np.maximum(np.diag(square), 1e-30))
    values, vectors = np.linalg.eigh(square * unit[:, None] * unit)
    return unit[:, None] * vectors / np.sqrt(np.maximum(values, 0) + _FLOOR)


@_compiled
def _residual(denoise: DenoiseFn, process: Process, numbers: Numbers, part: Problem) -> Array:
    """What its samples are off, times the root of each one's weight."""
    off = samples(denoise, differentiable_table(numbers, process), part) - part.target
    return off * jnp.sqrt(part.weight).reshape(-1, *[1] * (off.ndim - 1))


def _remade(denoise: DenoiseFn) -> DenoiseFn:
    """`denoise` whose activations are made again on the way back: those of all rows would not fit.

    Its evaluations are not counted.
    """

    @jax.checkpoint
    def remade(x: Array, t: Array, cond: Cond) -> Array:
        return measured(lambda: denoise(x, t, cond), x.shape[0])[0]

    return remade


@_compiled
def _slopes(
    denoise: DenoiseFn,
    process: Process,
    numbers: Numbers,
    free: Array,
    part: Problem,
    directions: Array,
) -> tuple[Array, Array]:
    """J^T v of each sample and direction, [b, directions, free], and J^T r, [b, free]."""

    denoise = _remade(denoise)

    def of_one(one: Problem, v: Array) -> Array:
        one = jax.tree.map(lambda leaf: leaf[None], one)

        def residual(by: Array) -> Array:
            return _residual(denoise, process, moved(numbers, free, by), one).ravel()

        r, pull = jax.vjp(residual, jnp.zeros(free.size, one.x.dtype))
        return jax.vmap(lambda w: pull(w)[0])(jnp.concatenate([v, r[None]]))

    slopes = jax.vmap(of_one)(part, directions)
    return slopes[:, :-1], slopes[:, -1]


def _normal_equations(
    denoise: DenoiseFn, process: Process, numbers: Numbers, free: np.ndarray, problem: Problem
) -> tuple[np.ndarray, np.ndarray]:
    """J^T J and J^T r, summed in float64: the squares of float32 would lose the small ones."""
    square, slope = np.zeros((free.size, free.size)), np.zeros(free.size)
    rng, size = np.random.default_rng(0), problem.target[0].size
    most = min(size, max(_DIRECTIONS, -(-_EQUATIONS * free.size // len(problem))))
    for part in _parts(problem, _AT_ONCE):
        directions = _directions(rng, len(part), size, most)
        found = _slopes(denoise, process, numbers, free, part, directions)
        j, r = (np.asarray(a, np.float64) for a in found)
        j = j.reshape(-1, free.size)
        square += j.T @ j
        slope += r.sum(axis=0)
    return square / problem.target.size, slope / problem.target.size


@_compiled
def _square_sum(
    denoise: DenoiseFn, process: Process, numbers: Numbers, free: Array, part: Problem
) -> tuple[Array, Array]:
    """The sum of r^2 and its slope [free]."""

    def total(by: Array) -> Array:
        return jnp.sum(_residual(_remade(denoise), process, moved(numbers, free, by), part) ** 2)

    return jax.value_and_grad(total)(jnp.zeros(free.size, part.x.dtype))


def _cost_and_slope(
    denoise: DenoiseFn, process: Process, numbers: Numbers, free: np.ndarray, problem: Problem
) -> tuple[float, np.ndarray]:
    """The mean of r^2 and its slope [free], summed over the samples in float64."""
    cost, slope = 0.0, np.zeros(free.size)
    for part in _parts(problem, _AT_ONCE):
        more, along = _square_sum(denoise, process, numbers, free, part)
        cost, slope = cost + float(more), slope + np.asarray(along, np.float64)
    return cost / problem.target.size, slope / problem.target.size


def _directions(rng: np.random.Generator, samples: int, size: int, most: int) -> np.ndarray:
    """Orthogonal ones of each sample, [b, most, size]; their sum of v v^T is 1 in the mean."""
    drawn = rng.standard_normal((samples, size, most))
    return np.swapaxes(np.linalg.qr(drawn)[0], 1, 2) * (size / most) ** 0.5


def _cost(denoise: DenoiseFn, process: Process, numbers: Numbers, problem: Problem) -> float:
    residuals = [_residual(denoise, process, numbers, p) for p in _parts(problem, _AT_ONCE)]
    mean = sum(float(np.sum(np.square(r, dtype=np.float64))) for r in residuals)
    mean /= problem.target.size
    return mean if np.isfinite(mean) else np.inf


def _parts(problem: Problem, numbers_at_once: int) -> Iterator[Problem]:
    """Equal parts, so that one compilation serves all."""
    most = max(1, numbers_at_once * len(problem) // problem.target.size)
    size = next(k for k in range(min(most, len(problem)), 0, -1) if len(problem) % k == 0)
    return (problem.part(start, start + size) for start in range(0, len(problem), size))


def square_errors(values: Array, target: Array) -> np.ndarray:
    """Mean square of the difference over the components of each sample, [b]."""
    squares = (np.asarray(values, np.float64) - np.asarray(target, np.float64)) ** 2
    return np.mean(squares.reshape(len(squares), -1), axis=1)


def rms(values: Array, target: Array, weight: Array | None = None) -> float:
    """Root mean square of the difference over samples and components; infinite if not finite.

    weight: [b], of each sample's square.
    """
    squares = square_errors(values, target)
    mean = float(np.mean(squares if weight is None else squares * np.asarray(weight)))
    return mean**0.5 if np.isfinite(mean) else np.inf
