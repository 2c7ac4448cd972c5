"""crowsonkb/k-diffusion: every sampler, on its own sigmas, with alpha = 1 and t = sigma."""

from functools import partial

import numpy as np

from scorediff.solvers.adams import lms
from scorediff.solvers.ancestral_sde import (
    dpm2_ancestral,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    euler_ancestral,
)
from scorediff.solvers.dpm import dpmpp_multistep
from scorediff.solvers.runge_kutta import dpm2, euler, heun
from scorediff.solvers.sample import Solver
from scorediff.solvers.singlestep import dpm_singlestep
from scorediff.solvers.table import NOISE, StepTable
from tests.solver_vectors.replay import Recorded, Replayed, run_table, straight_grid

CHURNED = {"euler": euler, "heun": heun, "dpm_2": dpm2}
ANCESTRAL = {
    "euler_ancestral": euler_ancestral,
    "dpm_2_ancestral": dpm2_ancestral,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
}
NAMES = {
    "s_churn": "churn",
    "s_tmin": "churn_min",
    "s_tmax": "churn_max",
    "s_noise": "noise_scale",
}
SIGMA_MIN = 0.002
FORMS = {"midpoint": "midpoint", "heun": "taylor"}


def replay(run: dict, file: Recorded) -> Replayed:
    if run["sampler"] == "dpm_adaptive":
        from tests.solver_vectors.adaptive import k_diffusion_adaptive

        return k_diffusion_adaptive(run, file)
    sigmas, bed = file.arrays[run["grid"]][:, 2], file.bed(run)
    if run["sampler"] == "dpm_fast":  # recorded without its end: equal steps in log sigma go on
        end = sigmas[-1] ** 2 / sigmas[-2] if len(sigmas) > 1 else SIGMA_MIN
        sigmas = np.append(sigmas, end)
    grid = straight_grid(sigmas)
    table = solver_of(run)(grid)
    return run_table(table, bed, grid.nodes[0].sigma * bed.z, placed(run, table, file.noise(run)))


def solver_of(run: dict) -> Solver:
    """Our solver with a run's options."""
    name, options = run["sampler"], {NAMES.get(k, k): v for k, v in run["kw"].items()}
    if name in CHURNED:
        if "noise_scale" in options:
            options["churn_noise"] = options.pop("noise_scale")
        return partial(CHURNED[name], **options)
    if name in ANCESTRAL:
        return partial(ANCESTRAL[name], **options)
    if name == "dpmpp_sde":  # two draws a step, used as they are: those of a Brownian tree overlap
        return partial(dpmpp_sde, independent=True, **options)
    if name == "lms":
        return partial(lms, order=options.get("order", 4), extrapolate_to_data=True)
    if name == "dpm_fast":
        return lambda grid: dpm_singlestep(
            grid, prediction="eps", orders=fast_orders(run["steps"]), **options
        )
    return multistep_of(name, options)


def multistep_of(name: str, options: dict) -> Solver:
    """dpmpp_2m, dpmpp_2m_sde (eta = 1 unless given) and dpmpp_3m_sde, whose second step is heun."""
    order = 3 if name == "dpmpp_3m_sde" else 2
    if name == "dpmpp_2m":
        options = {"eta": 0.0, **options}
    form = "taylor" if order == 3 else FORMS[options.pop("solver_type", "midpoint")]
    return partial(
        dpmpp_multistep,
        order=order,
        form=form,
        third_order="published",
        lower_order_final=False,
        **{"eta": 1.0, **options},
    )


def fast_orders(n: int) -> tuple[int, ...]:
    """Orders of dpm_fast's outer steps, for n evaluations."""
    m = n // 3 + 1
    return (3,) * (m - 2) + (2, 1) if n % 3 == 0 else (3,) * (m - 1) + (n % 3,)


def placed(run: dict, table: StepTable, draws: np.ndarray) -> dict[int, np.ndarray]:
    """The recorded draws by the row that uses them; -1 is the start.

    Churn draws at every step, used or not, and the draw of a step belongs to the row before it. All
    other samplers draw where a row has noise, in order.
    """
    if not len(draws):
        return {}
    if run["sampler"] in CHURNED:
        per_step = 1 if run["sampler"] == "euler" else 2
        return {per_step * k - 1: draw for k, draw in enumerate(draws)}
    noisy = np.flatnonzero(table.e[:, NOISE] + table.b[:, NOISE])
    return dict(zip(noisy.tolist(), draws, strict=False))
