"""Our solvers against recorded runs of the field's own codes, in float64, on the exact test-beds.

tests/fixtures/solvers holds 3,048 runs of LuChengTHU/dpm-solver (52bc3fbc), wl-zhao/UniPC
(cf9de85b), crowsonkb/k-diffusion (4601bf08), NVlabs/edm (008a4e53), openai/guided-diffusion,
facebookresearch/flow_matching with willisma/SiT, huggingface/diffusers (58eb52c0) and
yang-song/score_sde (0acb9e0e): numbers only, with the exact denoiser in the place of a network.
"""

import importlib
import shutil

import numpy as np
import pytest

from scorediff.diffusion import VPLinear
from scorediff.solvers import make_grid, spacing
from tests.oracles import FIXTURES
from tests.solver_vectors.__main__ import FAMILIES, main, sampler_of, tolerance
from tests.solver_vectors.replay import difference, read

FOLDER = FIXTURES / "solvers"
EVERY = 9  # of the runs of one sampler; the slow test takes all
ADAPTIVE = ("adaptive", "dopri5", "RK45", "dpm_adaptive")  # each compiles its own loop


def some(runs):
    """Every ninth run of each sampler, none of the adaptive ones."""
    seen = {}
    for run in runs:
        name = sampler_of(run)
        seen[name] = seen.get(name, -1) + 1
        if seen[name] % EVERY == 0 and not any(word in name for word in ADAPTIVE):
            yield run


@pytest.mark.parametrize("family", FAMILIES)
def test_solvers_reproduce_the_original_codes(family, x64):
    module, file = importlib.import_module(f"tests.solver_vectors.{family}"), read(FOLDER, family)
    runs = list(some(file.meta["runs"]))
    assert len(runs) >= 10
    for run in runs:
        ours = module.replay(run, file)
        assert ours.nfe == run["nfe"], run
        assert difference(ours.x, file.final(run)) <= tolerance(run), run


@pytest.mark.slow
def test_every_recorded_run(capsys, x64):
    assert main([str(FOLDER)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3048 passed, 0 failed"


def test_a_wrong_result_is_counted_as_failed(tmp_path, capsys, x64):
    shutil.copy(FOLDER / "testbed.npz", tmp_path)
    with np.load(FOLDER / "guided_diffusion.npz", allow_pickle=False) as file:
        arrays = dict(file)
    arrays["final_A"] = (
        arrays["final_A"] + 1e-8 * (np.arange(len(arrays["final_A"])) == 3)[:, None, None]
    )
    np.savez(tmp_path / "guided_diffusion.npz", **arrays)
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "121 passed, 1 failed"


def test_a_folder_without_runs_is_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("skip", "mine"),
    [("logSNR", "logsnr"), ("time_uniform", "uniform"), ("time_quadratic", "quadratic")],
)
def test_grids_are_those_of_dpm_solver(skip, mine):
    file = read(FOLDER, "dpm_solver")
    wanted = {"schedule": "vp_linear", "skip": skip, "method": "multistep", "steps": 10}
    run = next(r for r in file.meta["runs"] if wanted.items() <= r.items())
    grid = make_grid(VPLinear(), getattr(spacing, mine), 10, to_data=False)
    np.testing.assert_allclose(
        [node.t for node in grid.nodes], file.arrays[run["grid"]][:, 0], rtol=1e-12
    )
