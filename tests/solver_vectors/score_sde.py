"""yang-song/score_sde: predictors, correctors and the probability-flow ODE on VP, VE and sub-VP.

Each of N nodes has a corrector, then a predictor, which evaluates again at the same node. The last
predictor step overshoots the last node; what it would reach is no node of the process.
"""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.diffusion import VE, SubVP, VPLinear
from scorediff.solvers.corrector import langevin
from scorediff.solvers.grid import Grid, Node
from scorediff.solvers.reverse_sde import (
    Transition,
    discrete_ancestral,
    euler_maruyama,
    reverse_diffusion,
)
from scorediff.solvers.sample import Point
from scorediff.solvers.sample import run as run_loop
from scorediff.solvers.table import StepTable, without_last_noise
from tests.solver_vectors.replay import Recorded, Replayed, recorded_grid, run_table

PROCESSES = {"vp": VPLinear(), "ve": VE(), "subvp": SubVP()}
RULES = {"langevin": "norms", "ald": "annealed"}
BEYOND = Node(np.nan, 1.0, 1e-3, np.nan, np.nan)  # where the last step ends; nothing reads it


def replay(run: dict, file: Recorded) -> Replayed:
    if run["kind"] == "ode":
        from tests.solver_vectors.adaptive import score_sde_adaptive

        return score_sde_adaptive(run, file)
    process = PROCESSES[run["sde"]]
    nodes = recorded_grid(file.arrays[run["grid"]], process, derivatives=True).nodes
    grid, bed = Grid(process=process, nodes=(*nodes, BEYOND)), file.bed(run)
    x = bed.z if run["sde"] != "ve" else process.sigma_max * bed.z
    corrector = run["corrector"]
    if run["predictor"] == "none":
        return Replayed(correct_only(run, file, grid, x), len(nodes))
    table = predictor_table(run, grid)
    drawn = run.get("noise_idx") or {"corrector": [], "predictor": []}
    predicted = {k: bed.noise[i] for k, i in enumerate(drawn["predictor"]) if i >= 0}
    if corrector == "none":
        return run_table(table, bed, x, predicted)
    noise = np.zeros((2, len(nodes), *x.shape))
    noise[0] = [bed.noise[i] for i in drawn["corrector"]]
    for k, draw in predicted.items():
        noise[1, k] = draw
    out, nfe = _corrected(
        jax.tree.map(jnp.asarray, table),
        jnp.asarray(x),
        noise,
        factors(run, grid),
        run["snr"],
        distribution=bed.distribution,
        rule=RULES[corrector],
    )
    return Replayed(np.asarray(out), int(nfe))


def predictor_table(run: dict, grid: Grid) -> StepTable:
    eta = 0.0 if run.get("probability_flow") else 1.0
    if run["predictor"] == "euler_maruyama":
        table = euler_maruyama(grid, eta=eta, step_size=1 / run["N"])
    else:
        transition = partial(discrete_transition, sde=run["sde"], n=run["N"])
        if run["predictor"] == "reverse_diffusion":
            table = reverse_diffusion(grid, eta=eta, transition=transition)
        else:
            variance = "large" if run["sde"] == "vp" else "small"
            table = discrete_ancestral(grid, variance=variance, transition=transition)
    return without_last_noise(table) if run["denoise"] else table


def discrete_transition(now: Node, new: Node, *, sde: str, n: int) -> Transition:
    """Step k = int(t (N - 1)) of the discretisation in N betas or sigmas."""
    k = int(now.t * (n - 1))
    if sde == "vp":
        beta = discrete_betas(n)[k]
        return Transition(np.sqrt(1 - beta), beta, beta)
    ve = PROCESSES["ve"]
    sigmas = np.exp(np.linspace(np.log(ve.sigma_min), np.log(ve.sigma_max), n))
    before = sigmas[k - 1] if k else 0.0
    variance = sigmas[k] ** 2 - before**2
    return Transition(1.0, variance, variance * before**2 / sigmas[k] ** 2)


def discrete_betas(n: int) -> np.ndarray:
    vp = PROCESSES["vp"]
    return np.linspace(vp.beta_min / n, vp.beta_max / n, n)


def factors(run: dict, grid: Grid) -> np.ndarray:
    """The corrector's a at each node: 1 - beta_k for VP."""
    n = run["N"]
    k = [int(node.t * (n - 1)) for node in grid.nodes[:-1]]
    return 1 - discrete_betas(n)[k] if run["sde"] == "vp" else np.ones(len(k))


def _corrector(denoise, noise, factor, snr, rule: str):
    return langevin(
        denoise,
        snr=snr,
        rule=rule,
        coupled=rule == "norms",
        factor=lambda point: jnp.asarray(factor)[point.k],
        noise=lambda keys, stream, over, x: noise[stream],
    )


@functools.partial(jax.jit, static_argnames=("distribution", "rule"))
def _corrected(table, x, noise, factor, snr, *, distribution, rule):
    """The table with a corrector before each row; noise [2, n, b, d]: corrector's, predictor's."""

    def denoise(x, k, cond=None):
        k = k.astype(int)
        return distribution.x0_hat(x, table.alpha[k], table.sigma[k])

    out = run_loop(
        denoise,
        table._replace(t=jnp.arange(table.t.shape[0]) * 1.0),
        x,
        keys=jax.random.split(jax.random.key(0), x.shape[0]),
        noise=lambda keys, stream, over, x: noise[1, stream - 2],
        adjust=_corrector(denoise, noise[0], factor, snr, rule),
    )
    return out.x, out.nfe


def correct_only(run: dict, file: Recorded, grid: Grid, x: np.ndarray) -> np.ndarray:
    """No predictor: the corrector alone at each node, one evaluation each."""
    bed = file.bed(run)
    alpha, sigma = (np.array([getattr(n, name) for n in grid.nodes]) for name in ("alpha", "sigma"))
    noise = jnp.asarray(np.array([bed.noise[i] for i in run["noise_idx"]["corrector"]]))

    def denoise(x, k, cond=None):
        return bed.distribution.x0_hat(x, jnp.asarray(alpha)[k], jnp.asarray(sigma)[k])

    rule = RULES[run["corrector"]]
    adjust = _corrector(denoise, noise, factors(run, grid), run["snr"], rule)

    def step(x, k):
        keys = jax.random.split(jax.random.key(0), x.shape[0])
        point = Point(x, k, jnp.asarray(alpha)[k], jnp.asarray(sigma)[k], k)
        return adjust(point, keys), None

    return np.asarray(jax.lax.scan(step, jnp.asarray(x), jnp.arange(len(noise)))[0])
