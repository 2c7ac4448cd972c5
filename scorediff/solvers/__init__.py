"""Grids, solvers as tables, and the one loop that runs them.

What is no table has a module of its own: adaptive_ode, adaptive_dpm, learned_variance, likelihood,
elbo, inverse. `program` is what tables and the first three of those have in common.
"""

from scorediff.solvers.adams import deis, ipndm, lms, pndm
from scorediff.solvers.adaptive_dpm import dpm_adaptive
from scorediff.solvers.adaptive_ode import adaptive_ode
from scorediff.solvers.ancestral_sde import (
    dpm2_ancestral,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    euler_ancestral,
)
from scorediff.solvers.ddim import ancestral, ddim
from scorediff.solvers.dpm import dpm_multistep, dpmpp_multistep
from scorediff.solvers.found import found
from scorediff.solvers.grid import Grid, make_grid, upward
from scorediff.solvers.learned_variance import learned_variance
from scorediff.solvers.noise import brownian_path, independent
from scorediff.solvers.restart import restart
from scorediff.solvers.reverse_sde import (
    discrete_ancestral,
    euler_maruyama,
    flow_sde,
    flow_stochastic,
    reverse_diffusion,
)
from scorediff.solvers.runge_kutta import dpm2, euler, heun, midpoint, rk3, rk4
from scorediff.solvers.sample import Sampler, run, sample, sample_bounded, sample_keys, sample_prior
from scorediff.solvers.singlestep import dpm_singlestep, dpm_singlestep_mixed
from scorediff.solvers.spacing import (
    beta,
    exponential,
    karras,
    leading,
    linspace,
    listed,
    logsnr,
    quadratic,
    shifted,
    trailing,
    trigonometric,
    uniform,
)
from scorediff.solvers.stochastic_adams import sa_solver
from scorediff.solvers.table import StepTable, describe, pad
from scorediff.solvers.unipc import unipc

__all__ = [
    "Grid",
    "Sampler",
    "StepTable",
    "adaptive_ode",
    "ancestral",
    "beta",
    "brownian_path",
    "ddim",
    "deis",
    "describe",
    "discrete_ancestral",
    "dpm2",
    "dpm2_ancestral",
    "dpm_adaptive",
    "dpm_multistep",
    "dpm_singlestep",
    "dpm_singlestep_mixed",
    "dpmpp_2s_ancestral",
    "dpmpp_multistep",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "exponential",
    "flow_sde",
    "flow_stochastic",
    "found",
    "heun",
    "independent",
    "ipndm",
    "karras",
    "leading",
    "learned_variance",
    "linspace",
    "listed",
    "lms",
    "logsnr",
    "make_grid",
    "midpoint",
    "pad",
    "pndm",
    "quadratic",
    "restart",
    "reverse_diffusion",
    "rk3",
    "rk4",
    "run",
    "sa_solver",
    "sample",
    "sample_bounded",
    "sample_keys",
    "sample_prior",
    "shifted",
    "trailing",
    "trigonometric",
    "uniform",
    "unipc",
    "upward",
]
