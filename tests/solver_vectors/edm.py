"""NVlabs/edm: edm_sampler, and ablation_sampler with its schedules sigma(t) and scalings s(t)."""

import math
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import numpy as np

from scorediff.diffusion import Process
from scorediff.solvers.grid import DATA, Grid, nodes_at
from scorediff.solvers.runge_kutta import euler, heun
from tests.solver_vectors.replay import Recorded, Replayed, run_table

CHURN = {
    "S_churn": "churn",
    "S_min": "churn_min",
    "S_max": "churn_max",
    "S_noise": "churn_noise",
}
# noise levels between which a discretisation runs, unless a run names others
RANGES = {
    "vp": (math.sqrt(math.expm1(9.95e-6 + 1e-4)), math.sqrt(math.expm1(10.05))),
    "ve": (0.02, 100.0),
    "iddpm": (0.002, 81.0),
    "edm": (0.002, 80.0),
}
FIRST_VP_TIME = 1e-3  # where their vp schedule takes its smallest noise level


@dataclass(frozen=True, kw_only=True)
class Ablation(Process):
    """alpha = s(t) and sigma = s(t) sigma(t), for their schedules and scalings."""

    schedule: str
    scaling: str
    beta: float  # of the vp schedule: 1 + sigma(t)^2 = exp(beta t^2 / 2 + beta_min t)
    beta_min: float
    t_min: float = 0.0
    t_max: float = 1e6

    def level(self, t):
        if self.schedule == "vp":
            return jnp.sqrt(jnp.expm1(t * (self.beta_min + 0.5 * self.beta * t)))
        return jnp.sqrt(t) if self.schedule == "ve" else t

    def alpha(self, t):
        return 1 / jnp.sqrt(1 + self.level(t) ** 2) if self.scaling == "vp" else jnp.ones_like(t)

    def sigma(self, t):
        return self.alpha(t) * self.level(t)

    def when(self, alpha, sigma):
        level = sigma / alpha
        if self.schedule == "vp":
            value = jnp.log1p(level**2)
            return 2 * value / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * self.beta * value))
        return level**2 if self.schedule == "ve" else level


def replay(run: dict, file: Recorded) -> Replayed:
    options, bed = run["kw"], file.bed(run)
    churn = {CHURN[name]: value for name, value in options.items() if name in CHURN}
    grid = ablation_grid(file.arrays[run["grid"]][:, 2], options)
    method = options.get("solver", "heun")
    solver = partial(heun, alpha=options.get("alpha", 1.0)) if method == "heun" else euler
    table = solver(grid, last_step="euler", **churn)
    per_step = 2 if method == "heun" else 1
    noise = {per_step * k - 1: draw for k, draw in enumerate(file.noise(run))}
    return run_table(table, bed, grid.nodes[0].sigma * bed.z, noise)


def ablation_grid(levels: np.ndarray, options: dict) -> Grid:
    """The recorded noise levels on the process of a run's options."""
    low, high = RANGES[options.get("discretization", "edm")]
    low, high = options.get("sigma_min", low), options.get("sigma_max", high)
    ends = math.log1p(low**2), math.log1p(high**2)
    beta = 2 * (ends[0] / FIRST_VP_TIME - ends[1]) / (FIRST_VP_TIME - 1)
    process = Ablation(
        schedule=options.get("schedule", "linear"),
        scaling=options.get("scaling", "none"),
        beta=beta,
        beta_min=ends[1] - 0.5 * beta,
    )
    noisy = levels[levels > 0]
    nodes = nodes_at(process, process.host_when(np.ones_like(noisy), noisy))
    return Grid(process=process, nodes=nodes + (DATA,) * (len(noisy) < len(levels)))
