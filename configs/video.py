"""Video of shapes that bounce off walls: the research backbone, factorised in space and time.

Factorised attention (Bertasius et al., arXiv 2102.05095), predicting the velocity on the straight
path (Lipman et al., arXiv 2210.02747) with logit-normal times (Esser et al., arXiv 2403.03206). The
data are made, not read, so it runs anywhere. No paper has numbers for it, and none are claimed; it
is trained and sampled, not measured.
"""

import optax
from ml_collections import ConfigDict

from scorediff.config import bind, spec
from scorediff.data.pipeline import Pipeline
from scorediff.data.source import Sampled
from scorediff.data.toy.synthetic import MovingShapes
from scorediff.data.transforms import as_x0
from scorediff.diffusion import (
    Denoiser,
    DenoisingLoss,
    FlowMatching,
    TimeSampler,
    target,
    times,
    weighting,
)
from scorediff.evaluation.generate import Sampling
from scorediff.models.backbone import Backbone
from scorediff.solvers import euler, heun, uniform
from scorediff.training.ema import WarmupEMA
from scorediff.training.optimizers import adamw
from scorediff.training.plan import Plan

FRAMES, SIZE, CLASSES = 8, 16, 2
SPACE, TIME = (1, 2), (0,)  # axes of [t, h, w]


def get_config(variant: str = "full") -> ConfigDict:
    """variant: full, or tiny (seconds, for tests)."""
    if variant not in ("full", "tiny"):
        raise ValueError(f"there are the variants full and tiny, not {variant!r}")
    config = ConfigDict()
    config.name = "video"
    config.seed = 0

    config.data = ConfigDict()
    config.data.shape = (FRAMES, SIZE, SIZE, 1)
    config.data.pipeline = spec(
        Pipeline,
        source=spec(Sampled, distribution=MovingShapes(frames=FRAMES, size=SIZE), size=10_000),
        batch_size=32,
        seed=config.get_ref("seed"),
    )

    config.denoiser = spec(
        Denoiser,
        network=spec(
            Backbone,
            patch_size=(1, 4, 4),
            width=96,
            depth=4,
            heads=4,
            axes=(SPACE, TIME),
            num_classes=CLASSES,
        ),
        process=spec(FlowMatching),
        target=bind(target.velocity),
    )
    config.loss = bind(
        DenoisingLoss,
        to_x0=bind(as_x0),
        times=spec(TimeSampler, distribution=bind(times.logit_normal)),
        weighting=bind(weighting.velocity_uniform),
        cond_keys=("label",),
        null_cond={"label": CLASSES},
        drop_rate=0.1,
    )

    config.train = spec(Plan, steps=4000, log_every=50, save_every=1000)
    config.optimizer = spec(
        adamw,
        learning_rate=spec(
            optax.warmup_cosine_decay_schedule,
            init_value=0.0,
            peak_value=1e-3,
            warmup_steps=200,
            decay_steps=config.train.get_ref("steps"),
        ),
    )
    config.ema = {"main": spec(WarmupEMA, decay=0.999)}

    config.solver = bind(heun)
    config.compare = {"euler": bind(euler)}
    config.sampling = spec(Sampling, grid=bind(uniform), nfe=20, guidance_scale=1.5, ema="main")
    config.evaluation = None  # there is no measure for videos here
    if variant == "tiny":
        make_tiny(config)
    return config


def make_tiny(config: ConfigDict) -> None:
    """Seconds instead of minutes; every part is still there."""
    config.data.pipeline.batch_size = 8
    config.data.pipeline.source.size = 256
    config.denoiser.network.update(width=16, depth=2, heads=2)
    config.train.update(steps=6, log_every=1, save_every=3)
    config.optimizer.learning_rate.warmup_steps = 2
    config.sampling.update(nfe=4, batch_size=8)
