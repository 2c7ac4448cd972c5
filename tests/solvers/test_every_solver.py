"""All table solvers together: one compilation, and every combination is finite or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.diffusion import target as targets
from scorediff.errors import UserError
from scorediff.solvers import karras, logsnr, make_grid, pndm, sample, sample_bounded, uniform
from scorediff.solvers.table import pad
from tests.oracles import bed_a, testbed
from tests.solvers.catalogue import ALL, ROWS, table_of
from tests.solvers.test_order import PROCESSES

TARGETS = {
    "x0": targets.x0,
    "eps": targets.eps,
    "score": targets.score,
    "v": targets.v,
    "velocity": targets.velocity,
    "edm": targets.edm(sigma_data=0.5),
}
KEYS = jax.random.split(jax.random.key(0), 8)
TRACES = []


def by_row(table, row_of, a, b):
    """The exact denoiser by way of a target: x0_hat said as a x0 + b eps and solved for again."""

    def denoise(x, t, cond=None):
        k = row_of(t)
        alpha, sigma = table.alpha[k], table.sigma[k]
        x0_hat = bed_a().x0_hat(x, alpha, sigma)
        y = a[k] * x0_hat + b[k] * (x - alpha * x0_hat) / sigma
        det = alpha * b[k] - sigma * a[k]
        return b[k] / det * x - sigma / det * y

    return denoise


@jax.jit
def run(table, a, b, x):
    """One compilation for all solvers and processes; a, b [targets, rows] are mapped over."""
    TRACES.append(1)
    rows = table._replace(t=jnp.arange(table.t.shape[0]) * 1.0)

    def one(a, b):
        denoise = by_row(table, lambda t: t.astype(int), a, b)
        return sample(denoise, rows, x, keys=KEYS)

    return jax.vmap(one)(a, b)


def target_rows(process, table):
    """(a, b) [targets, rows] of each target, and which determine x0_hat at every row."""
    m = process.host(table.t[:-1])
    with np.errstate(all="ignore"):
        a, b = np.array(
            [np.broadcast_arrays(*row(m), m.alpha)[:2] for row in TARGETS.values()]
        ).swapaxes(0, 1)
        det = np.abs(m.alpha * b - m.sigma * a)
    sound = (np.isfinite(det) & (det > 1e-6)).all(axis=1)
    return np.where(sound[:, None], a, 1.0), np.where(sound[:, None], b, 0.0), sound


@pytest.mark.parametrize("process", PROCESSES)
def test_every_solver_process_and_target_is_finite_or_refused(process):
    """From the process's own start, pure noise included, where some divide by alpha."""
    name, process = process, PROCESSES[process]
    refused = {}
    x = process.host([process.t_max]).sigma[0] * testbed()["z_A"]
    for solver in ALL:
        try:
            table = table_of(solver, process, uniform)
        except UserError as error:
            refused[solver] = str(error)
            continue
        a, b, sound = target_rows(process, table)
        out = run(jax.tree.map(jnp.asarray, table), a, b, x)
        assert np.isfinite(out).all(), (solver, out)
        same = np.asarray(out)[sound] - np.asarray(out)[0]  # x0 first, which is always sound
        assert np.abs(same).max() < 0.05 * np.abs(out).max(), solver  # float32, det small at ends
    starts_at_noise = process.host([process.t_max]).alpha[0] == 0
    assert all("alpha" in reason for reason in refused.values()), refused
    assert bool(refused) == starts_at_noise, (name, refused)
    assert len(refused) < len(ALL) / 2


def test_one_compilation_serves_them_all():
    """Thirty solvers and more, on several spacings, of equal NFE."""
    traces = []

    @jax.jit
    def run(table, x):
        traces.append(table.nfe)
        return sample(bed_a().denoiser(PROCESSES["edm"]), table, x, keys=KEYS)

    x = 80.0 * testbed()["z_A"]
    for name in ALL:
        for spacing in (logsnr, karras):
            assert np.isfinite(run(table_of(name, PROCESSES["edm"], spacing), x)).all(), name
    assert np.isfinite(run(pndm(make_grid(PROCESSES["edm"], karras, ROWS - 1)), x)).all()
    assert len(ALL) >= 30 and traces == [ROWS]


def test_one_compilation_serves_every_nfe_up_to_a_bound():
    traces = []

    @jax.jit
    def run(table, rows, x):
        traces.append(1)
        return sample_bounded(bed_a().denoiser(PROCESSES["vp_linear"]), table, rows, x, keys=KEYS)

    process, x = PROCESSES["vp_linear"], testbed()["z_A"].astype(np.float32)
    found = {}
    for nfe in (1, 2, 5, 12, 24):
        for name in ("ddim", "unipc 3", "ancestral"):
            found[name, nfe] = run(pad(table_of(name, process, logsnr, rows=nfe), 24), nfe, x)
            assert np.isfinite(found[name, nfe]).all()
    table = table_of("ancestral", process, logsnr, rows=5)
    exactly = sample(bed_a().denoiser(process), table, x, keys=KEYS)
    np.testing.assert_allclose(found["ancestral", 5], exactly, rtol=2e-4, atol=2e-5)
    assert traces == [1]
    with pytest.raises(ValueError, match="24"):
        pad(table_of("ddim", process, logsnr, rows=25), 24)
