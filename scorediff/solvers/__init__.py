"""Grids, solvers as tables, and the one loop that runs them."""

from scorediff.solvers.clock import euler, euler_maruyama, heun
from scorediff.solvers.ddim import ancestral, ddim
from scorediff.solvers.dpm import dpmpp_multistep
from scorediff.solvers.grid import Grid, make_grid, upward
from scorediff.solvers.sample import Sampler, sample, sample_keys, sample_prior
from scorediff.solvers.spacing import karras, logsnr, quadratic, uniform
from scorediff.solvers.table import StepTable

__all__ = [
    "Grid",
    "Sampler",
    "StepTable",
    "ancestral",
    "ddim",
    "dpmpp_multistep",
    "euler",
    "euler_maruyama",
    "heun",
    "karras",
    "logsnr",
    "make_grid",
    "quadratic",
    "sample",
    "sample_keys",
    "sample_prior",
    "uniform",
    "upward",
]
