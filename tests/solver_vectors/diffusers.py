"""huggingface/diffusers: every scheduler, on the sigmas that it worked out.

A scheduler's options choose the grid, which is recorded, and the orders of its steps, which follow
from the options here.
"""

import itertools
from functools import partial

import numpy as np

from scorediff.solvers.adams import deis
from scorediff.solvers.ancestral_sde import euler_ancestral
from scorediff.solvers.ddim import ancestral, ddim
from scorediff.solvers.dpm import dpm_multistep, dpmpp_multistep
from scorediff.solvers.grid import Grid, Node
from scorediff.solvers.reverse_sde import flow_stochastic
from scorediff.solvers.runge_kutta import heun
from scorediff.solvers.singlestep import dpm_singlestep_mixed
from scorediff.solvers.table import NOISE, Row, StepTable, make_table
from scorediff.solvers.unipc import unipc
from tests.solver_vectors.replay import (
    FLOW,
    STRAIGHT,
    TOLERANCE,
    VP,
    Recorded,
    Replayed,
    evaluations_differ,
    recorded_grid,
    run_table,
)

FEW = 15  # steps below which lower_order_final acts
CLAMPED_VARIANCE = 1e-20  # of DDPM's fixed_small, on the step to data


def replay(run: dict, file: Recorded) -> Replayed:
    scheduler = run["scheduler"].removesuffix("Scheduler").removesuffix("Discrete")
    grid = recorded_grid(file.arrays[run["grid"]], process_of(scheduler))
    if "grid_to" in run:
        table = table_to(grid, file.arrays[run["grid_to"]], run["step"]["eta"])
    else:
        table = TABLES[scheduler](grid, run["config"])
    if not evaluations_differ(table, file.arrays[run["evals"]]) <= TOLERANCE:
        return Replayed(np.full_like(file.final(run), np.nan), table.nfe)
    bed = file.bed(run)
    first = grid.nodes[0].sigma if grid.process is STRAIGHT else 1.0
    return run_table(table, bed, first * bed.z, dict(enumerate(file.noise(run))))


def process_of(scheduler: str):
    """Only what interpolates in t, or moves in it, asks the process."""
    if scheduler.startswith("FlowMatch"):
        return FLOW
    return STRAIGHT if scheduler in VARIANCE_EXPLODING else VP


VARIANCE_EXPLODING = (
    "Euler",
    "Heun",
    "EulerAncestral",
    "EDMEuler",
    "EDMDPMSolverMultistep",
)


def table_to(grid: Grid, landings: np.ndarray, eta: float) -> StepTable:
    """DDIM as diffusers steps: to 1000 // n training steps below, wherever the next node is."""
    ends = recorded_grid(landings, grid.process).nodes
    pairs = zip(grid.nodes[:-1], ends, strict=True)
    steps = [ddim(Grid(process=grid.process, nodes=pair), eta=eta) for pair in pairs]
    rows = [Row(node, e=step.e[0]) for node, step in zip(grid.nodes[:-1], steps, strict=True)]
    return make_table(rows, ends[-1])


def ddpm(grid: Grid, config: dict) -> StepTable:
    """Noise is added unless t is 0, even on the step to data; its variance is clamped there."""
    variance = config.get("variance_type", "fixed_small").removeprefix("fixed_")
    table = ancestral(grid, variance=variance)
    last = grid.nodes[-2]
    if last.t == 0:
        return table
    left = CLAMPED_VARIANCE**0.5 if variance == "small" else last.sigma
    table.e[-1, NOISE] = left
    return table


def dpm(grid: Grid, config: dict) -> StepTable:
    kind = config.get("algorithm_type", "dpmsolver++")
    stochastic = kind.startswith("sde-")
    solver = dpmpp_multistep if kind.endswith("++") else dpm_multistep
    return solver(
        grid,
        order=config["solver_order"],
        eta=float(stochastic),
        form={"midpoint": "midpoint", "heun": "taylor"}[config.get("solver_type", "midpoint")],
        third_order="diffusers_sde" if stochastic else "published",
        orders=multistep_orders(grid, config),
    )


def multistep_orders(grid: Grid, config: dict) -> tuple[int, ...]:
    n, order = len(grid), config["solver_order"]
    falls = config.get("lower_order_final", True) and n < FEW
    orders = [min(order, k + 1) for k in range(n)]
    if falls:
        orders = [min(p, n - k) for k, p in enumerate(orders)]
    if config.get("euler_at_final", False):
        orders[-1] = 1
    return tuple(orders)


def singlestep(grid: Grid, config: dict) -> StepTable:
    kind = config.get("algorithm_type", "dpmsolver++")
    form = {"midpoint": "midpoint", "heun": "taylor"}[config.get("solver_type", "midpoint")]
    return dpm_singlestep_mixed(
        grid,
        order=config["solver_order"],
        prediction="x0" if kind.endswith("++") else "eps",
        form=form,
        stages=form,
        orders=groups(grid, config),
    )


def groups(grid: Grid, config: dict) -> tuple[int, ...]:
    """The order list 1, 2, 3, 1, 2, 3, ... as sizes of groups; a 1 starts a new one."""
    n, order = len(grid), config["solver_order"]
    levels = [1 + k % order for k in range(n)]
    if config.get("lower_order_final", False):
        if order == 3 and n % 3 == 0:
            levels[-1] = 1
        if order == 2 and n % 2 == 0:
            levels[-1] = 1
    if config.get("final_sigmas_type", "zero") == "zero":
        levels[-1] = 1
    starts = [k for k, level in enumerate(levels) if level == 1]
    return tuple(np.diff([*starts, n]).tolist())


def unified(grid: Grid, config: dict) -> StepTable:
    return unipc(
        grid,
        order=config["solver_order"],
        variant=config.get("solver_type", "bh2"),
        prediction="x0" if config.get("predict_x0", True) else "eps",
        lower_order_final=config.get("lower_order_final", True),
    )


def log_rho(grid: Grid, config: dict) -> StepTable:
    orders = multistep_orders(grid, config)
    return deis(grid, order=config["solver_order"], variable="log_rho", orders=orders)


def flow_euler(grid: Grid, config: dict) -> StepTable:
    """Euler on the straight path is DDIM; stochastic, each step noises x0_hat afresh."""
    if not config.get("stochastic_sampling", False):
        return ddim(grid)
    return flow_stochastic(grid)


def heun_in_sigma(grid: Grid, config: dict) -> StepTable:
    """The clock is sigma, on which a flow's alpha = 1 - sigma falls; nodes are listed twice."""
    fall = -1.0 if grid.process is FLOW else 0.0
    nodes = [next(same) for _, same in itertools.groupby(grid.nodes, lambda node: node.sigma)]
    nodes = [n if n.is_data else Node(n.sigma, n.alpha, n.sigma, fall, 1.0) for n in nodes]
    return heun(Grid(process=grid.process, nodes=tuple(nodes)))


def plain(solver):
    """A scheduler whose options only concern the grid."""
    return lambda grid, config: solver(grid)


TABLES = {
    "DDPM": ddpm,
    "DPMSolverMultistep": dpm,
    "EDMDPMSolverMultistep": dpm,
    "DPMSolverSinglestep": singlestep,
    "UniPCMultistep": unified,
    "DEISMultistep": log_rho,
    "Euler": plain(ddim),
    "EDMEuler": plain(ddim),
    "EulerAncestral": plain(partial(euler_ancestral, eta=1.0)),
    "Heun": heun_in_sigma,
    "FlowMatchEuler": flow_euler,
    "FlowMatchHeun": heun_in_sigma,
}
