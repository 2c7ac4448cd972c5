"""Between published models and run folders, in both directions.

A published model becomes a run folder that `experiments.sample` takes: a config of its denoiser,
and one checkpoint. A run becomes a folder of the hub's or of a paper's own layout, if that class
can say everything that the network does.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from scorediff import experiment
from scorediff.config import bind, spec, to_json
from scorediff.data.transforms import to_unit_range
from scorediff.diffusion import Denoiser, DenoisingLoss
from scorediff.errors import UserError
from scorediff.evaluation.generate import Sampling
from scorediff.interop import files, formats, layout
from scorediff.interop.formats import Format, Published
from scorediff.models import UNet
from scorediff.pretrained import Pretrained, pretrained
from scorediff.solvers import ddim, logsnr
from scorediff.training.checkpoint import Checkpoints
from scorediff.training.optimizers import adamw
from scorediff.training.plan import Plan
from scorediff.training.state import TrainState
from scorediff.training.workdir import open_workdir
from scorediff.types import Params

# Of a network: how it computes, not what; and where Linen keeps its own.
FREE = ("dtype", "remat", "attention_kernel", "parent", "name")


class Summary(NamedTuple):
    """What was converted."""

    name: str
    parameters: int
    tensors: int


def summary(name: str, params: Params) -> Summary:
    """Counts of a tree of parameters."""
    leaves = jax.tree.leaves(params)
    return Summary(name, sum(math.prod(leaf.shape) for leaf in leaves), len(leaves))


def write_run(workdir: str | Path, model: Published, scheduler: files.Config | None) -> Summary:
    """A run folder with the model as its only checkpoint, of step 0.

    It has no data set: it can be sampled, with every solver and guidance rule, and its config is a
    start for one that trains. Raises UserError where the model's process is not known (see
    `pretrained`), or the folder is there already.
    """
    if Path(workdir).exists():
        raise UserError(f"{workdir} is there already; nothing is overwritten")
    loaded = pretrained(model, scheduler)
    config = run_config(Path(workdir).name, model, loaded)
    folder = open_workdir(workdir, to_json(config))
    state = TrainState.create(jax.tree.map(jnp.asarray, loaded.params), optax.identity(), {})
    checkpoints = Checkpoints(folder.checkpoints, keep_last=1, keep_every=None, pipeline={})
    checkpoints.save(state)
    checkpoints.wait()
    return summary(model.format.name, loaded.params)


def run_config(name: str, model: Published, loaded: Pretrained) -> ConfigDict:
    """The config of a published model: its denoiser, and DDIM on 50 steps of logSNR."""
    x = model.format.example(model.network)[0]
    classes = getattr(model.network, "num_classes", None)
    config = ConfigDict({"name": name, "seed": 0, "ema": {}, "compare": {}, "evaluation": None})
    config.data = ConfigDict({"shape": tuple(x.shape[1:])})
    fields = ("network", "process", "target", "scale_in", "noise_in", "learned_variance")
    config.denoiser = spec(Denoiser, **{f: getattr(loaded.denoiser, f) for f in fields})
    config.loss = bind(
        DenoisingLoss,
        to_x0=bind(to_unit_range, high=255.0),
        cond_keys=("label",) if classes else (),
        null_cond={"label": classes} if classes else {},
    )
    config.optimizer = spec(adamw, learning_rate=1e-5)
    config.train = spec(Plan, steps=1)
    config.solver = bind(ddim)
    config.sampling = spec(Sampling, grid=bind(logsnr), nfe=50)
    return config


def read_run(workdir: str | Path, overrides: Sequence[str] = ()) -> tuple[nn.Module, Params]:
    """The network of a run folder and its parameters, of the average that its config samples."""
    wired = experiment.Experiment.of_run(workdir, overrides=overrides)
    params, _ = experiment.load(wired, workdir)
    return sized(wired.denoiser.network, wired.shape), jax.tree.map(np.asarray, params)


def sized(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The network with the size of its data written down, where its class has room for that.

    Ours take any size; a published config names one.
    """
    known = {"image_size": shape[0], "in_channels": shape[-1]}
    open_ = {k: v for k, v in known.items() if getattr(network, k, 0) is None}
    return network.clone(**open_)


def publish(folder: str | Path, name: str, network: nn.Module, params: Params) -> Summary:
    """A folder of the class `name`: config.json and safetensors.

    Raises UserError where the class cannot say what the network does.
    """
    format = formats.known(name)
    config = published_config(format, network)
    try:
        tensors = formats.to_tensors(format, network, params)
    except ValueError as error:  # the table of names lacks a parameter of this network
        raise UserError(f"{name} has no place for this network: {error}") from None
    files.write_folder(folder, config, tensors, stem=format.stem)
    return summary(name, params)


def published_config(format: Format, network: nn.Module) -> dict:
    """The config under which the class builds a network with the same parameters."""
    try:
        config = format.config(network)
        back = format.network(config)
        again, ours = formats.shapes(format, back), formats.shapes(format, network)
    except (AttributeError, TypeError, KeyError):  # another family's network
        raise UserError(
            f"{format.name} is not a class for a {type(network).__name__}; name another with --to"
        ) from None
    if again != ours:
        odd = sorted(set(again.items()) ^ set(ours.items()))[: layout.SHOWN]
        raise UserError(f"{format.name} cannot say all of this network: {odd}")
    if not isinstance(network, UNet):  # whose formats compare by themselves
        _check_fields(format, network, back)
    return config


def _check_fields(format: Format, network: nn.Module, back: nn.Module) -> None:
    """UserError for the first setting of a network that its class has forgotten."""
    for field in dataclasses.fields(network):
        ours, theirs = getattr(network, field.name), getattr(back, field.name)
        if field.name not in FREE and ours != theirs:
            raise UserError(
                f"{format.name} cannot say {field.name}={ours!r}: it would be {theirs!r}"
            )
