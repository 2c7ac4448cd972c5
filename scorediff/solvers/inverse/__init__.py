"""Inverse problems: linear operators, and samplers of images that agree with a measurement."""

from scorediff.solvers.inverse.ddrm import ddrm
from scorediff.solvers.inverse.editing import invert, sdedit
from scorediff.solvers.inverse.operators import (
    BlockAverage,
    Dense,
    Grey,
    Inpainting,
    LinearOperator,
)
from scorediff.solvers.inverse.posterior import dps, dps_steps, pigdm, unit_data
from scorediff.solvers.inverse.replacement import repaint, replacement

__all__ = [
    "BlockAverage",
    "Dense",
    "Grey",
    "Inpainting",
    "LinearOperator",
    "ddrm",
    "dps",
    "dps_steps",
    "invert",
    "pigdm",
    "repaint",
    "replacement",
    "sdedit",
    "unit_data",
]
