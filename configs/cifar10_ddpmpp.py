"""CIFAR-10 at paper size: the continuous DDPM++ recipe of Song et al. (arXiv 2011.13456).

Expect FID 2.55 with 1,000 Euler-Maruyama steps, and 3.93 with the probability-flow ODE (both from
the README of the authors' code), after 1.3 million steps with batch 128: Adam 2e-4, warm-up 5,000,
clipping 1, dropout 0.1, EMA 0.9999, continuous VP with beta 0.1 to 20, "simple" weighting.

Their network is DDPM++: this one has its size (128 channels, 4 residual blocks a level, attention
at 16) on DDPM's blocks, without its BigGAN resampling and rescaled skips, so their number is a goal
and not a promise. Evaluation here is in the features of a small classifier trained on the training
split, which is not the FID of the literature. Nothing of this config has been trained to the end.
"""

import optax
from ml_collections import ConfigDict

from scorediff.config import bind, spec
from scorediff.data.pipeline import Pipeline
from scorediff.data.source import TFDS, RandomImages
from scorediff.data.transforms import RandomFlip, to_unit_range
from scorediff.diffusion import Denoiser, DenoisingLoss, TimeSampler, VPLinear, target, weighting
from scorediff.evaluation.evaluators import ImageQuality
from scorediff.evaluation.generate import Sampling
from scorediff.models import UNet
from scorediff.solvers import ddim, dpmpp_multistep, euler_maruyama, uniform
from scorediff.training.ema import ConstantEMA
from scorediff.training.optimizers import adamw
from scorediff.training.plan import Plan


def get_config(variant: str = "full") -> ConfigDict:
    """variant: full, or tiny (random images and a few steps, for tests)."""
    if variant not in ("full", "tiny"):
        raise ValueError(f"cifar10_ddpmpp has the variants full and tiny, not {variant!r}")
    config = ConfigDict()
    config.name = "cifar10_ddpmpp"
    config.seed = 0

    config.data = ConfigDict()
    config.data.shape = (32, 32, 3)
    config.data.pipeline = spec(
        Pipeline,
        source=spec(TFDS, name="cifar10"),
        batch_size=128,
        seed=config.get_ref("seed"),
        augment=(spec(RandomFlip),),
    )

    config.denoiser = spec(
        Denoiser,
        network=spec(
            UNet, channels=128, multipliers=(1, 2, 2, 2), blocks=4, attention=(16,), dropout=0.1
        ),
        process=spec(VPLinear, t_min=1e-5),
        target=bind(target.eps),
    )
    config.loss = bind(
        DenoisingLoss,
        to_x0=bind(to_unit_range),
        times=spec(TimeSampler, u="independent"),
        weighting=bind(weighting.eps_uniform),
    )

    config.train = spec(
        Plan, steps=1_300_000, log_every=500, save_every=10_000, sample_every=50_000
    )
    config.optimizer = spec(
        adamw,
        learning_rate=spec(
            optax.linear_schedule, init_value=0.0, end_value=2e-4, transition_steps=5000
        ),
        weight_decay=0.0,
        clip_norm=1.0,
    )
    config.ema = {"main": spec(ConstantEMA, decay=0.9999)}

    config.solver = bind(euler_maruyama)
    config.compare = {"ddim": bind(ddim), "dpmpp_multistep": bind(dpmpp_multistep)}
    config.sampling = spec(Sampling, grid=bind(uniform), nfe=1000, t_end=1e-3, ema="main")
    config.evaluation = spec(
        ImageQuality,
        train=spec(TFDS, name="cifar10"),
        test=spec(TFDS, name="cifar10", split="test"),
        samples=50_000,
        seeds=(0,),
    )
    if variant == "tiny":
        make_tiny(config)
    return config


def make_tiny(config: ConfigDict) -> None:
    """A few steps on small random images; every part is still there."""
    config.data.shape = (16, 16, 3)
    images = spec(RandomImages, shape=config.data.shape, classes=10, size=64)
    config.data.pipeline.source = images  # assigned: update() would merge the fields of the two
    config.data.pipeline.batch_size = 4
    config.denoiser.network.update(channels=8, multipliers=(1, 2), blocks=1, attention=(8,))
    config.train.update(steps=2, log_every=1, save_every=2, sample_every=None)
    config.sampling.update(nfe=2, batch_size=16)
    config.evaluation.train = config.evaluation.test = images
    config.evaluation.update(samples=16, seeds=(0,), classifier_steps=2)
