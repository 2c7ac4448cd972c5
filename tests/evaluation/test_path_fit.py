"""Tables fitted to the paths of the exact flow, on beds that know where the flow passes."""

import numpy as np
import pytest

from scorediff.data.toy import Gaussian
from scorediff.diffusion import FlowMatching, VPLinear
from scorediff.evaluation.path_fit import evolved, fitted, paths_of
from scorediff.evaluation.solver_bench import BEDS, Bench, Model, bed_model, reference_table
from scorediff.evaluation.table_numbers import differentiable_table, table_of
from scorediff.evaluation.table_search import Problem, samples
from scorediff.solvers import Sampler, dpmpp_multistep, logsnr

pytestmark = pytest.mark.slow  # compilation; make test has no minute left for it

PROCESS = VPLinear()


def paths_on(bench, n):
    reference = reference_table(bench.model.process, 200)
    return paths_of(bench, reference, bench.problem(reference, n, seed=0))


@pytest.fixture(scope="module")
def bench():
    return Bench(bed_model("A", PROCESS), rows=200, batch=64)


@pytest.fixture(scope="module")
def paths(bench):
    return paths_on(bench, 64)


@pytest.mark.parametrize("t", [0.9, 0.5, 0.2, 0.05])
def test_paths_are_those_of_the_exact_flow_at_any_level_between(paths, t):
    here, first = marginal(t), marginal(PROCESS.t_max)
    exact = BEDS["A"].flow(np.asarray(paths.problem.x), first, here)
    np.testing.assert_allclose(paths.at(*here), exact, atol=3e-3 * here[1])


def marginal(t):
    alpha, sigma, *_ = PROCESS.host(np.array([t]))
    return float(alpha[0]), float(sigma[0])


@pytest.mark.parametrize("process", [PROCESS, FlowMatching()], ids=lambda p: type(p).__name__)
def test_a_linear_flow_is_fitted_exactly_by_one_row(process):
    """Where a path ends is a multiple of where it starts, the same for all."""
    bed = Gaussian(mean=(0.0, 0.0), stds=(0.7, 0.7))
    bench = Bench(
        Model(bed.denoiser(process), process, (2,), lambda index: None), rows=200, batch=64
    )
    fit = fitted(bench, paths_on(bench, 64), np.array([0.5]))
    assert fit.error < 1e-5


def test_a_fit_says_where_its_table_ends(bench, paths):
    fit = fitted(bench, paths, np.array([0.2, 0.5, 0.7]))
    table = table_of(fit.numbers, PROCESS)
    assert (np.diff(table.t) < 0).all()
    assert bench.error(table, paths.problem) == pytest.approx(fit.error, rel=1e-3)
    ends = samples(bench.model.denoise, differentiable_table(fit.numbers, PROCESS), paths.problem)
    assert np.isfinite(ends).all()


def test_coefficients_fitted_to_paths_beat_those_of_a_solver_at_its_own_levels(bench, paths):
    table = Sampler(solver=dpmpp_multistep, grid=logsnr, nfe=5).table(PROCESS)
    ratio = np.log(table.alpha[:5] / table.sigma[:5])
    fit = fitted(bench, paths, (ratio - ratio[0]) / (ratio[-1] - ratio[0]))
    assert fit.error < bench.error(table, paths.problem)


def test_a_fit_follows_the_weights(bench, paths):
    share, problem = np.array([0.2, 0.5, 0.7]), paths.problem
    weight = np.where(np.arange(64) < 32, 2.0, 0.0)
    weighted = paths._replace(problem=Problem(problem.x, problem.cond, problem.target, weight))
    half, same = fitted(bench, paths.part(32), share), fitted(bench, weighted, share)
    assert same.error == pytest.approx(half.error, rel=1e-6)
    np.testing.assert_allclose(same.numbers.e, half.numbers.e, rtol=1e-4, atol=1e-6)


def test_evolution_keeps_the_best_first_and_improves_on_what_it_drew(bench, paths):
    drawn, later = (
        evolved(bench, paths, 3, drawn=20, population=10, rounds=rounds, seed=0)
        for rounds in (0, 4)
    )
    errors = [fit.error for fit in later]
    assert errors == sorted(errors)
    assert errors[0] < drawn[0].error
    places = np.stack([fit.numbers.place for fit in later])
    assert (np.diff(places, axis=1) >= 0).all()
