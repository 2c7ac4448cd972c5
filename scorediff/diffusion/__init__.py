"""Processes, targets, training times, weightings, the denoiser, its loss and its guidance."""

from scorediff.diffusion.denoiser import Denoiser
from scorediff.diffusion.loss import DenoisingLoss
from scorediff.diffusion.process import Marginal, Process
from scorediff.diffusion.processes import (
    EDM,
    VE,
    FlowMatching,
    Shifted,
    SubVP,
    Trigonometric,
    VPCosine,
    VPDiscrete,
    VPLinear,
    ZeroTerminalSNR,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
)
from scorediff.diffusion.times import TimeSampler

__all__ = [
    "EDM",
    "VE",
    "Denoiser",
    "DenoisingLoss",
    "FlowMatching",
    "Marginal",
    "Process",
    "Shifted",
    "SubVP",
    "TimeSampler",
    "Trigonometric",
    "VPCosine",
    "VPDiscrete",
    "VPLinear",
    "ZeroTerminalSNR",
    "cosine_betas",
    "linear_betas",
    "scaled_linear_betas",
]
