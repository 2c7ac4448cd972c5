"""Published models as denoisers: what each was trained to see, to be told and to answer.

A checkpoint holds a network. Which process its noise levels belong to, on which clock it is told
them and what its answer means are conventions of the class, or stand in the scheduler's config
beside it. With those, the network is a `Denoiser`, and everything that takes one takes it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from scorediff.diffusion import (
    EDM,
    VE,
    Denoiser,
    FlowMatching,
    Process,
    VPDiscrete,
    VPLinear,
    ZeroTerminalSNR,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
)
from scorediff.diffusion import target as targets
from scorediff.diffusion.denoiser import (
    NoiseIn,
    ScaleIn,
    log_noise,
    noise_level,
    scaled_time,
    time_from_noise,
    timestep_index,
    unit_variance,
    unscaled,
)
from scorediff.diffusion.target import Target
from scorediff.errors import UserError
from scorediff.interop import sources
from scorediff.interop.formats import Config, Published
from scorediff.types import Params


class Convention(NamedTuple):
    """How a network was trained, beside the network."""

    process: Process
    target: Target
    noise_in: NoiseIn
    scale_in: ScaleIn = unscaled


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A published model, ready to be sampled: `denoiser.bind(params)` is its DenoiseFn."""

    denoiser: Denoiser
    params: Params


BETAS: Mapping[str, Callable[[Config], tuple[float, ...]]] = {
    "linear": lambda c: linear_betas(
        num=c["num_train_timesteps"], start=c["beta_start"], end=c["beta_end"]
    ),
    "scaled_linear": lambda c: scaled_linear_betas(
        num=c["num_train_timesteps"], start=c["beta_start"], end=c["beta_end"]
    ),
    "squaredcos_cap_v2": lambda c: cosine_betas(num=c["num_train_timesteps"]),
}
PREDICTIONS = {"epsilon": targets.eps, "v_prediction": targets.v, "sample": targets.x0}
SCHEDULER = {  # what diffusers' schedulers have in common where their config says nothing
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sigma_min": 0.01,
    "sigma_max": 1348.0,
}


def of_scheduler(config: Config) -> Convention:
    """The convention that a diffusers scheduler's config describes.

    Flow matching (FlowMatch*), score_sde's VE (ScoreSdeVe*), or a discrete-time process with betas.
    Raises UserError for a schedule or a prediction that is none of the published ones.
    """
    name = str(config.get("_class_name", ""))
    c = {**SCHEDULER, **config}
    if name.startswith("FlowMatch"):
        scale = float(c["num_train_timesteps"])
        return Convention(FlowMatching(), targets.velocity, partial(scaled_time, scale=scale))
    if name.startswith("ScoreSdeVe"):
        process = VE(sigma_min=c["sigma_min"], sigma_max=c["sigma_max"])
        return Convention(process, targets.score, noise_level)
    for field, choices in (("beta_schedule", BETAS), ("prediction_type", PREDICTIONS)):
        if c[field] not in choices:
            raise UserError(f"the scheduler's {field} is {c[field]!r}, not {' or '.join(choices)}")
    betas = tuple(c["trained_betas"] or BETAS[c["beta_schedule"]](c))
    process: Process = VPDiscrete(betas=betas, t_min=1 / len(betas))
    if c["rescale_betas_zero_snr"]:
        process = ZeroTerminalSNR(process=process, t_min=1 / len(betas))
    noise_in = partial(timestep_index, steps=len(betas))
    return Convention(process, PREDICTIONS[c["prediction_type"]], noise_in)


def of_edm(config: Config) -> Convention:
    """The convention of an NVlabs/edm network, by its preconditioning (arXiv 2206.00364, table 1).

    Raises UserError for one without a continuous noise level (iDDPMPrecond).
    """
    sigma_data, steps = float(config.get("sigma_data", 0.5)), float(config.get("M", 1000))
    name = config.get("class")
    if name == "EDMPrecond":
        scale_in = partial(unit_variance, sigma_data=sigma_data)
        return Convention(EDM(), targets.edm(sigma_data=sigma_data), log_noise, scale_in)
    if name == "VPPrecond":
        start = float(config.get("beta_min", 0.1))
        process = VPLinear(beta_min=start, beta_max=start + float(config.get("beta_d", 19.9)))
        return Convention(process, targets.eps, partial(scaled_time, scale=steps - 1))
    if name == "VEPrecond":
        return Convention(EDM(), targets.scaled_score, partial(log_noise, scale=1.0, unit=2.0))
    raise UserError(f"no convention for EDM's {name}; there are EDMPrecond, VPPrecond, VEPrecond")


def of_score_sde(config: Config) -> Convention:
    """The convention of a network of yang-song/score_sde: VE where it scales by sigma, else VP."""
    model = config["config"]["model"]
    if model["scale_by_sigma"]:
        process = VE(sigma_min=model["sigma_min"], sigma_max=model["sigma_max"])
        return Convention(process, targets.score, noise_level)
    process = VPLinear(beta_min=model["beta_min"], beta_max=model["beta_max"])
    last = 999 if config["config"]["training"]["continuous"] else model["num_scales"] - 1
    return Convention(process, targets.eps, partial(scaled_time, scale=float(last)))


def of_sit(config: Config) -> Convention:
    """SiT's straight path, on a clock that runs from noise to data."""
    return Convention(FlowMatching(), targets.to_data, time_from_noise)


# By the first part of a format's name; the hub's classes have a scheduler beside them.
OWN: Mapping[str, Callable[[Config], Convention]] = {
    "edm": of_edm,
    "score_sde": of_score_sde,
    "sit": of_sit,
}


def convention(model: Published, scheduler: Config | None) -> Convention:
    """How a model was trained: what its own repository fixes, or what its scheduler says.

    Raises UserError where neither is there.
    """
    repository = model.format.name.split("/")[0]
    if repository in OWN:
        return OWN[repository](model.config)
    if scheduler is None:
        raise UserError(
            f"{model.format.name} does not say which process it was trained on: give the config of "
            "its scheduler, such as {'beta_schedule': 'linear'}"
        )
    return of_scheduler(scheduler)


def pretrained(model: Published, scheduler: Config | None = None) -> Pretrained:
    """A published model as a denoiser, with float32 parameters.

    scheduler: the config of a diffusers scheduler, where the class does not fix it.
    """
    model = model.with_dtype("float32")
    found = convention(model, scheduler)
    denoiser = Denoiser(
        network=model.network,
        process=found.process,
        target=found.target,
        noise_in=found.noise_in,
        scale_in=found.scale_in,
        learned_variance=_answers_twice(model),
    )
    return Pretrained(denoiser=denoiser, params=model.params)


def _answers_twice(model: Published) -> bool:
    """Whether the network has twice the channels of its input: a mean and a variance."""
    x, *rest = model.format.example(model.network)
    y = jax.eval_shape(model.network.apply, {"params": model.params}, x, *rest)
    return y.shape[-1] == 2 * x.shape[-1]


def load_pipeline(folder: str | Path, *, variant: str | None = None) -> Pretrained:
    """The denoiser of a whole pipeline folder: its U-Net or transformer, and its scheduler."""
    found = sources.read_pipeline(Path(folder), variant)
    return pretrained(found.model, found.scheduler)
