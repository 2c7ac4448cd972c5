"""The generator of the tiny digits: one compilation for all solvers, samples by their index."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest

from scorediff.diffusion import Denoiser
from scorediff.evaluation.generate import Generator, Sampling
from scorediff.experiment import load
from scorediff.solvers import (
    Sampler,
    ancestral,
    ddim,
    dpmpp_multistep,
    euler,
    euler_maruyama,
    heun,
    karras,
    logsnr,
    quadratic,
    uniform,
)

NFE, N = 5, 6
pytestmark = pytest.mark.slow  # make test has the same on exact denoisers: tests/solvers
SOLVERS = {
    "ddim": ddim,
    "ddim eta=0.3": functools.partial(ddim, eta=0.3),
    "ddim eta=1": functools.partial(ddim, eta=1.0),
    "ancestral": ancestral,
    "euler": euler,
    "euler-maruyama": euler_maruyama,
    "heun": heun,
    "heun churned": functools.partial(heun, churn=2.0),
    "dpm++ 1": functools.partial(dpmpp_multistep, order=1),
    "dpm++ 2": functools.partial(dpmpp_multistep, order=2),
    "dpm++ 3": functools.partial(dpmpp_multistep, order=3),
}
GRIDS = {"logsnr": logsnr, "karras": karras, "quadratic": quadratic, "uniform": uniform}


@dataclass(frozen=True, kw_only=True)
class Counted(Denoiser):
    """A denoiser that notes each time that it is traced."""

    traces: list

    def predict(self, *args, **options):
        self.traces.append(1)
        return super().predict(*args, **options)


@pytest.fixture(scope="module")
def digits(undisturbed):
    """(make a generator, its parameters, traces so far)."""
    from scorediff.configfile import load_run
    from scorediff.experiment import Experiment

    experiment, traces = Experiment(config=load_run(undisturbed, None)), []
    counted = Counted(**vars(experiment.denoiser), traces=traces)
    params, _ = load(experiment, undisturbed)
    make = functools.cache(
        lambda batch_size: Generator(
            denoiser=counted,
            shape=experiment.shape,
            null_cond=experiment.loss.null_cond,
            sampling=Sampling(guidance_scale=1.5, batch_size=batch_size),
        )
    )
    return make, params, traces


def table(process, solver=ddim, grid=logsnr):
    found = Sampler(solver=solver, grid=grid, nfe=NFE).table(process)
    assert found.nfe == NFE
    return found


def test_no_solver_eta_churn_order_or_grid_compiles_again(digits):
    make, params, traces = digits
    generate = make(N)
    first = generate(params, table(generate.denoiser.process), N, seed=0).x0
    before, seen = len(traces), {"ddim logsnr": first}
    assert before > 0
    for name, solver in SOLVERS.items():
        for where, grid in GRIDS.items():
            rows = table(generate.denoiser.process, solver, grid)
            seen[f"{name} {where}"] = generate(params, rows, N, seed=0).x0
    assert len(traces) == before
    assert len(seen) == len(SOLVERS) * len(GRIDS)
    assert all(np.isfinite(x0).all() for x0 in seen.values())
    # Another table is really another table; order 1 of DPM-Solver++ is DDIM.
    assert np.abs(seen["heun logsnr"] - first).max() > 1e-3
    assert np.abs(seen["ddim eta=1 logsnr"] - first).max() > 1e-3
    np.testing.assert_allclose(seen["dpm++ 1 logsnr"], first, atol=2e-5)


def test_a_sample_depends_on_seed_and_index_only(digits):
    make, params, _ = digits
    generate = make(N)
    rows = table(generate.denoiser.process, SOLVERS["ancestral"])
    whole = generate(params, rows, 2 * N + 1, seed=5)
    assert whole.x0.shape == (2 * N + 1, 8, 8, 1)
    assert whole.labels.tolist() == [*range(10), 0, 1, 2]
    few = generate(params, rows, 3, seed=5)
    np.testing.assert_allclose(few.x0, whole.x0[:3], atol=1e-5)
    others = make(4)(params, rows, 2 * N + 1, seed=5)
    np.testing.assert_allclose(others.x0, whole.x0, atol=1e-5)
    np.testing.assert_array_equal(generate(params, rows, 3, seed=5).x0, few.x0)
    assert np.abs(generate(params, rows, 3, seed=6).x0 - few.x0).min(axis=0).max() > 1e-2
    assert len({x0.tobytes() for x0 in whole.x0}) == len(whole.x0)
