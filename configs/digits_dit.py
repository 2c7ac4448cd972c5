"""The digits with a transformer and flow matching: what changes from configs/digits.py.

DiT (Peebles & Xie, arXiv 2212.09748) predicting the velocity on the straight path (Lipman et al.,
arXiv 2210.02747), with logit-normal times (Esser et al., arXiv 2403.03206). No paper has numbers
for this data set; README has the measured ones.
"""

from ml_collections import ConfigDict

from configs import digits
from scorediff.config import bind, spec
from scorediff.diffusion import Denoiser, FlowMatching, TimeSampler, target, times
from scorediff.models import DiT
from scorediff.solvers import ddim, euler, heun, uniform


def get_config(variant: str = "full") -> ConfigDict:
    """variant: full, or tiny (seconds, for tests)."""
    config = digits.get_config(variant)
    config.name = "digits_dit"
    config.denoiser = spec(
        Denoiser,
        network=spec(DiT, patch_size=2, width=96, depth=4, heads=4, num_classes=digits.CLASSES),
        process=spec(FlowMatching),
        target=bind(target.velocity),
    )
    config.loss.times = spec(TimeSampler, distribution=bind(times.logit_normal))

    config.solver = bind(heun)
    config.compare = {"euler": bind(euler), "ancestral": bind(ddim, eta=1.0)}
    config.sampling.grid = bind(uniform)
    if variant == "tiny":
        config.denoiser.network.update(width=16, depth=2, heads=2)
    return config
