"""A two-dimensional mixture that is known exactly: how wrong is a trained network, level by level?

A perceptron learns the denoiser of a class-labelled pinwheel; since the exact one is known, the
evaluation gives its score error at each noise level, which for images nobody can. EDM's process,
preconditioning and training distribution (Karras et al., arXiv 2206.00364, table 1), with
sigma_data the mixture's own. No paper has numbers for it; README has the measured ones.
"""

import optax
from ml_collections import ConfigDict

from scorediff.config import bind, spec
from scorediff.data.pipeline import Pipeline
from scorediff.data.source import Sampled
from scorediff.data.toy import pinwheel
from scorediff.data.transforms import as_x0
from scorediff.diffusion import EDM, Denoiser, DenoisingLoss, TimeSampler, target, weighting
from scorediff.diffusion.denoiser import log_noise, unit_variance
from scorediff.diffusion.times import log_normal_sigma
from scorediff.evaluation.evaluators import PointQuality
from scorediff.evaluation.generate import Sampling
from scorediff.models import MLP
from scorediff.solvers import ddim, dpmpp_multistep, heun, karras
from scorediff.training.ema import PowerEMA
from scorediff.training.optimizers import adamw
from scorediff.training.plan import Plan

CLASSES, SIGMA_DATA = 4, 0.645  # the deviation of the pinwheel along each axis


def get_config(variant: str = "full") -> ConfigDict:
    """variant: full, or tiny (seconds, for tests)."""
    if variant not in ("full", "tiny"):
        raise ValueError(f"gmm2d has the variants full and tiny, not {variant!r}")
    config = ConfigDict()
    config.name = "gmm2d"
    config.seed = 0

    config.data = ConfigDict()
    config.data.shape = (2,)
    distribution = spec(pinwheel, num_classes=CLASSES)
    config.data.pipeline = spec(
        Pipeline,
        source=spec(Sampled, distribution=distribution, size=1_000_000),
        batch_size=1024,
        seed=config.get_ref("seed"),
    )

    config.denoiser = spec(
        Denoiser,
        network=spec(MLP, width=128, depth=3, num_classes=CLASSES),
        process=spec(EDM, t_min=0.005, t_max=60.0),
        target=spec(target.edm, sigma_data=SIGMA_DATA),
        scale_in=bind(unit_variance, sigma_data=SIGMA_DATA),
        noise_in=bind(log_noise, scale=100.0),
    )
    config.loss = bind(
        DenoisingLoss,
        to_x0=bind(as_x0),
        times=spec(TimeSampler, distribution=bind(log_normal_sigma, mean=-1.2, std=1.6)),
        weighting=bind(weighting.edm, sigma_data=SIGMA_DATA),
        cond_keys=("label",),
        null_cond={"label": CLASSES},
        drop_rate=0.2,
    )

    config.train = spec(Plan, steps=8000, log_every=100, save_every=2000, evaluate_every=8000)
    config.optimizer = spec(
        adamw,
        learning_rate=spec(
            optax.warmup_cosine_decay_schedule,
            init_value=0.0,
            peak_value=3e-3,
            warmup_steps=200,
            decay_steps=config.train.get_ref("steps"),
        ),
    )
    config.ema = {"main": spec(PowerEMA, sigma_rel=0.05)}

    config.solver = bind(heun)
    config.compare = {"ddim": bind(ddim), "dpmpp_multistep": bind(dpmpp_multistep)}
    config.sampling = spec(Sampling, grid=bind(karras), nfe=39, ema="main", batch_size=4000)
    config.evaluation = spec(PointQuality, distribution=distribution)
    if variant == "tiny":
        make_tiny(config)
    return config


def make_tiny(config: ConfigDict) -> None:
    """Seconds instead of minutes; every part is still there."""
    config.data.pipeline.update(batch_size=32)
    config.data.pipeline.source.size = 1024
    config.denoiser.network.update(width=16, depth=1)
    config.train.update(steps=6, log_every=1, save_every=2, evaluate_every=6)
    config.optimizer.learning_rate.warmup_steps = 2
    config.sampling.update(nfe=5, batch_size=100)
    config.evaluation.update(samples=100, seeds=(0, 1))
