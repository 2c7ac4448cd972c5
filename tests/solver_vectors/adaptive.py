"""Runs with adaptive steps, of four upstreams, through scorediff's own drivers.

All of them have one step size for the whole batch, and each its own control (`coupled=True`, and
the original's name). A family's `replay` hands its adaptive runs to the function of its name here.
"""

import functools

import jax
import numpy as np

from scorediff.data.toy import ExactDistribution
from scorediff.diffusion import EDM, VE, FlowMatching, Process, SubVP, Trigonometric, VPLinear
from scorediff.solvers.adaptive_dpm import dpm_adaptive
from scorediff.solvers.adaptive_ode import adaptive_ode
from scorediff.solvers.step_control import Adaptive, check_finished
from tests.solver_vectors.dpm_solver import PiecewiseLinear, process_of
from tests.solver_vectors.replay import Recorded, Replayed

SCORE_SDE_NODES = 1000  # its discretisation, to which the last noise-free step belongs


def dpm_solver_adaptive(run: dict, file: Recorded) -> Replayed:
    """LuChengTHU/dpm-solver, method "adaptive": from t = 1 to t_end, started at z."""
    bed, process = file.bed(run), process_of(run, file)
    steps = len(process.log_alpha) if isinstance(process, PiecewiseLinear) else 1000
    out = _dpm_adaptive(
        bed.z,
        distribution=bed.distribution,
        process=process,
        order=run["order"],
        prediction="x0" if run["alg"] == "dpmsolver++" else "eps",
        t_end=run.get("t_end", 1 / steps),
        rtol=run["rtol"],
        atol=run["atol"],
        control="dpm_solver",
        to_data=run["denoise_to_zero"],
    )
    return _replayed(out)


def k_diffusion_adaptive(run: dict, file: Recorded) -> Replayed:
    """crowsonkb/k-diffusion sample_dpm_adaptive: from sigma 80 to 0.002, noise form."""
    bed, kw = file.bed(run), run["kw"]
    process = EDM(t_min=0.002, t_max=80.0)
    out = _dpm_adaptive(
        process.t_max * bed.z,
        distribution=bed.distribution,
        process=process,
        order=kw.get("order", 3),
        prediction="eps",
        rtol=kw.get("rtol", 0.05),
        atol=kw.get("atol", 0.0078),
        h_init=kw.get("h_init", 0.05),
        control="k_diffusion",
        pid=(kw.get("pcoeff", 0.0), kw.get("icoeff", 1.0), kw.get("dcoeff", 0.0)),
        accept_safety=kw.get("accept_safety", 0.81),
    )
    return _replayed(out)


def flow_adaptive(run: dict, file: Recorded) -> Replayed:
    """torchdiffeq's dopri5, as flow_matching and SiT call it.

    Their clock is 1 - t. SiT leaves out 1e-3 at both ends unless the model predicts velocity.
    """
    bed = file.bed(run)
    margin = 0.0 if run.get("prediction", "velocity") == "velocity" else 1e-3
    out = _adaptive_ode(
        bed.z,
        distribution=bed.distribution,
        process=Trigonometric() if run.get("path") == "GVP" else FlowMatching(),
        t_start=1 - margin,
        t_end=margin,
        rtol=run["rtol"],
        atol=run["atol"],
        control="torchdiffeq",
    )
    return _replayed(out)


def score_sde_adaptive(run: dict, file: Recorded) -> Replayed:
    """yang-song/score_sde get_ode_sampler: scipy's RK45 from t = 1 to eps, then perhaps one step.

    That step, `denoise`, is the noise-free reverse_diffusion step of its discretisation, which is
    not a solver of ours since it starts at eps and ends at no node.
    """
    bed, process = file.bed(run), {"vp": VPLinear(), "subvp": SubVP(), "ve": VE()}[run["sde"]]
    start = process.sigma_max if run["sde"] == "ve" else 1.0
    out = _adaptive_ode(
        start * bed.z,
        distribution=bed.distribution,
        process=process,
        t_start=1.0,
        t_end=run["eps"],
        rtol=run["rtol"],
        atol=run["atol"],
        control="scipy",
    )
    x, nfe = _replayed(out)
    if not run["denoise"]:
        return Replayed(x, nfe)
    m = process.host(np.array([run["eps"]]))
    score = np.asarray(bed.distribution.score(x, m.alpha[0], m.sigma[0]))
    return Replayed(_reverse_diffusion(run["sde"], x, score, run["eps"]), nfe + 1)


def _reverse_diffusion(sde: str, x: np.ndarray, score: np.ndarray, t: float) -> np.ndarray:
    k = int(t * (SCORE_SDE_NODES - 1))
    if sde == "vp":
        beta = np.linspace(0.1, 20, SCORE_SDE_NODES)[k] / SCORE_SDE_NODES
        return (2 - np.sqrt(1 - beta)) * x + beta * score
    sigmas = np.exp(np.linspace(np.log(0.01), np.log(50), SCORE_SDE_NODES))
    return x + (sigmas[k] ** 2 - (sigmas[k - 1] ** 2 if k else 0.0)) * score


def _replayed(out: Adaptive) -> Replayed:
    check_finished(out)
    return Replayed(np.asarray(out.x), int(out.nfe[0]))


_APART = ("distribution", "process", "t_start", "t_end", "control")  # tolerances share a program


@functools.partial(jax.jit, static_argnames=_APART)
def _adaptive_ode(
    x: jax.Array, *, distribution: ExactDistribution, process: Process, **options
) -> Adaptive:
    return adaptive_ode(distribution.denoiser(process), process, x, coupled=True, **options)


@functools.partial(
    jax.jit, static_argnames=(*_APART, "order", "prediction", "h_init", "pid", "to_data")
)
def _dpm_adaptive(
    x: jax.Array, *, distribution: ExactDistribution, process: Process, **options
) -> Adaptive:
    return dpm_adaptive(distribution.denoiser(process), process, x, coupled=True, **options)
