"""Restoring under a model whose posterior is known, and what each method refuses."""

from types import SimpleNamespace

import numpy as np
import pytest

from scorediff.data.toy import Gaussian
from scorediff.diffusion import EDM
from scorediff.errors import UserError
from scorediff.evaluation.examples import Examples
from scorediff.evaluation.generate import Generator, Sampling
from scorediff.evaluation.inverse_tasks import parse_task
from scorediff.evaluation.restoration import METHODS, Setting, parse_method, prepare, restore
from scorediff.solvers import (
    adaptive_ode,
    ancestral,
    brownian_path,
    heun,
    karras,
    learned_variance,
    make_grid,
)
from scorediff.solvers.corrector import langevin

STD, NOISE, N, DIM = 0.5, 0.1, 400, 4
BED, PROCESS = Gaussian(mean=(0.0,) * DIM, stds=(STD,) * DIM), EDM(t_max=20.0)


def setting(*, solver=ancestral, noise_std=NOISE, task="random_pixels", nfe=30, **options):
    model = SimpleNamespace(process=PROCESS, bind=lambda params: BED.denoiser(PROCESS))
    sampling = Sampling(grid=karras, nfe=nfe, batch_size=250, **options)
    generator = Generator(denoiser=model, shape=(DIM,), null_cond={}, sampling=sampling)
    operator = parse_task(task)((DIM,))
    return Setting(generator=generator, solver=solver, operator=operator, noise_std=noise_std)


def restored(method, n=N, **options):
    examples = Examples(BED.sample_host(np.random.default_rng(0), n)[0], None, None, None)
    work = setting(**options)
    return restore(work, prepare(parse_method(method), work), None, examples, seed=0)


@pytest.mark.parametrize(
    ("solver", "nfe"), [(heun, 29), pytest.param(adaptive_ode, None, marks=pytest.mark.slow)]
)
def test_pigdm_draws_the_exact_posterior_of_isotropic_data(solver, nfe):
    """Half the numbers are known to 0.1, of the others nothing is."""
    found = restored(f"pigdm:data_std={STD}", solver=solver)
    variance = STD**2 * NOISE**2 / (STD**2 + NOISE**2)  # of what is known
    numbers = found.numbers()
    expected = np.sqrt(0.5 * (2 * variance + 2 * STD**2))
    assert numbers["rmse"] == pytest.approx(expected, rel=0.05)
    missed = NOISE**4 / (STD**2 + NOISE**2) + variance
    assert numbers["inconsistency"] == pytest.approx(np.sqrt(missed / 2), rel=0.1)
    assert set(numbers) == {"rmse", "inconsistency"}  # no image, so no peak
    known = found.measured != 0
    assert known.sum(axis=1).tolist() == [2] * N
    error = (found.measured - found.original)[known].std()
    assert error == pytest.approx(NOISE, rel=0.1)
    assert found.nfe == nfe if nfe else found.nfe > 30


def test_ddrm_agrees_with_a_measurement_without_noise():
    found = restored("ddrm:eta=0.0", noise_std=0.0, n=300)
    assert found.numbers()["inconsistency"] < 1e-6
    assert found.nfe == 30 and len(found.restored) == 300
    unknown = found.restored[found.measured == 0]
    # Of what is not seen, eta = 0 is DDIM, whose deviation for a Gaussian is a product of steps.
    q = np.array([node.sigma for node in make_grid(PROCESS, karras, 30).nodes])
    keep = STD**2 / (STD**2 + q[:-1] ** 2)
    expected = q[0] * np.prod(keep + (1 - keep) * q[1:] / q[:-1])
    assert unknown.std() == pytest.approx(expected, rel=0.08)  # 3 standard errors of 600 numbers


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_comes_nearer_than_a_draw_of_the_prior(method):
    noise_std = 0.0 if method in ("replacement", "repaint", "dps_steps") else 0.2
    options = {"dps_steps": ":step=0.05", "repaint": ":jump=5:resamplings=3", "sdedit": ":t=0.3"}
    found = restored(method + options.get(method, ""), noise_std=noise_std)
    assert found.numbers()["rmse"] < 0.85 * np.sqrt(2) * STD
    assert found.nfe == {"repaint": 30 + 2 * 5 * 5}.get(method, 30)
    if method in ("replacement", "repaint"):
        assert found.numbers()["inconsistency"] < 1e-6


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("dps", {"noise_std": 0.0}, "dps_steps has no such"),
        ("dps_steps", {"solver": heun}, "one evaluation a step"),
        ("replacement", {"solver": adaptive_ode}, "one evaluation a step"),
        ("repaint:jump=0", {}, "jump=0"),
        ("repaint", {"noise": brownian_path, "nfe": 30}, "leads back up"),
        ("ddrm:eta=2", {}, "eta and eta_b in"),
        ("ddrm", {"noise": brownian_path}, "draws its own noise"),
        ("sdedit", {"solver": adaptive_ode}, "a solver with a table"),
        ("pigdm", {"solver": learned_variance}, "no learned variance"),
        ("pigdm", {"corrector": langevin}, "no corrector"),
        ("pigdm", {"noise_std": -0.1}, "noise_std must be at least 0"),
        ("pigdm:step=1", {}, "no option 'step'"),
        ("pigmd", {}, "did you mean pigdm"),
        ("pigdm,ddrm", {}, "one at a time"),
    ],
)
def test_what_makes_no_sense_is_one_line(method, options, message):
    with pytest.raises(UserError, match=message):
        prepare(parse_method(method), setting(**options))
