"""Handwritten digits, class-conditional, in minutes on two CPU cores: the first thing to run.

A DDPM-type U-Net (arXiv 2006.11239) predicting v on the cosine schedule (arXiv 2202.00512,
2102.09672), with classifier-free guidance (arXiv 2207.12598), on the 1,497 training images of the
bundled data set. No paper has numbers for it; README has the measured ones.
"""

import optax
from ml_collections import ConfigDict

from scorediff.config import bind, spec
from scorediff.data.pipeline import Pipeline
from scorediff.data.source import TFDS
from scorediff.data.transforms import to_unit_range
from scorediff.diffusion import Denoiser, DenoisingLoss, TimeSampler, VPCosine, target, weighting
from scorediff.evaluation.evaluators import ImageQuality
from scorediff.evaluation.generate import Sampling
from scorediff.models import UNet
from scorediff.solvers import ancestral, ddim, dpmpp_multistep, heun, logsnr
from scorediff.training.ema import WarmupEMA
from scorediff.training.optimizers import adamw
from scorediff.training.plan import Plan

CLASSES, WHITE = 10, 16


def get_config(variant: str = "full") -> ConfigDict:
    """variant: full, or tiny (seconds, for tests)."""
    if variant not in ("full", "tiny"):
        raise ValueError(f"digits has the variants full and tiny, not {variant!r}")
    config = ConfigDict()
    config.name = "digits"
    config.seed = 0

    config.data = ConfigDict()
    config.data.shape = (8, 8, 1)
    config.data.pipeline = spec(
        Pipeline,
        source=spec(TFDS, name="digits"),
        batch_size=64,
        seed=config.get_ref("seed"),
    )

    config.denoiser = spec(
        Denoiser,
        network=spec(
            UNet,
            channels=16,
            multipliers=(1, 2),
            blocks=1,
            attention=(4,),
            heads=2,
            num_classes=CLASSES,
            scale_shift=True,
        ),
        process=spec(VPCosine),
        target=bind(target.v),
    )
    config.loss = bind(
        DenoisingLoss,
        to_x0=bind(to_unit_range, high=float(WHITE)),
        times=spec(TimeSampler),
        weighting=bind(weighting.velocity_uniform),
        cond_keys=("label",),
        null_cond={"label": CLASSES},
        drop_rate=0.1,
    )

    config.train = spec(Plan, steps=2000, log_every=20, save_every=500, sample_every=1000)
    config.optimizer = spec(
        adamw,
        learning_rate=spec(
            optax.warmup_cosine_decay_schedule,
            init_value=0.0,
            peak_value=2e-3,
            warmup_steps=100,
            decay_steps=config.train.get_ref("steps"),
        ),
    )
    config.ema = {"main": spec(WarmupEMA, decay=0.999)}

    config.solver = bind(ddim)
    config.compare = {
        "ancestral": bind(ancestral),
        "dpmpp": bind(dpmpp_multistep),
        "heun": bind(heun),
    }
    config.sampling = spec(Sampling, grid=bind(logsnr), nfe=20, guidance_scale=1.5, ema="main")
    config.evaluation = spec(
        ImageQuality,
        train=spec(TFDS, name="digits"),
        test=spec(TFDS, name="digits", split="test"),
        white=WHITE,
    )
    if variant == "tiny":
        make_tiny(config)
    return config


def make_tiny(config: ConfigDict) -> None:
    """Seconds instead of minutes; every part is still there."""
    config.data.pipeline.batch_size = 16
    config.denoiser.network.update(channels=8, blocks=1, heads=1)
    config.train.update(steps=6, log_every=1, save_every=2, sample_every=6)
    config.optimizer.learning_rate.warmup_steps = 2
    config.sampling.update(nfe=5, batch_size=40)
    config.evaluation.update(samples=80, seeds=(0, 1), classifier_steps=5)
