"""Whole pipelines: a published folder through `pretrained`, our solvers and the recorded noise."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.diffusion.clipping import clipped
from scorediff.diffusion.guidance import classifier_free
from scorediff.interop import files, formats
from scorediff.interop.formats import Published
from scorediff.pretrained import Pretrained, load_pipeline, pretrained
from scorediff.solvers import ancestral, ddim, dpmpp_multistep, leading, make_grid, sample
from scorediff.solvers.grid import Grid
from scorediff.solvers.sample import ROWS
from scorediff.types import DenoiseFn
from tests.parity.case import Case, Fixture, Result, compared, nchw, nhwc


def ddpm(fixture: Fixture) -> Iterator[Result]:
    """Images from a U-Net without condition, by ancestral sampling and DDIM."""
    unet = formats.load(fixture.folder / "unet")
    for case in fixture.cases:
        config = case.kwargs["scheduler_config"]
        model = pretrained(unet, config)
        denoise = model.denoiser.bind(model.params)
        if config["clip_sample"]:
            denoise = clipped(denoise, limit=config["clip_sample_range"])
        x = _sampled(denoise, _table(case, _grid(case, model, config)), case)
        image = np.clip(x / 2 + 0.5, 0, 1)
        yield compared(fixture, case, {"sample": nchw(x), "image": image}, "float32")


def dit(fixture: Fixture) -> Iterator[Result]:
    """Images from a transformer in the latents of an autoencoder, guided by class."""
    model = load_pipeline(fixture.folder)
    scheduler = files.read_json(fixture.folder / "scheduler" / "scheduler_config.json")
    vae = formats.load(fixture.folder / "vae").with_dtype("float32")
    null = {"label": model.denoiser.network.num_classes}
    for case in fixture.cases:
        scale = case.kwargs["guidance_scale"]
        denoise = classifier_free(model.denoiser.bind(model.params), null_cond=null, scale=scale)
        cond = {"label": jnp.asarray(case.kwargs["class_labels"])}
        table = _table(case, _grid(case, model, scheduler))
        z = _sampled(denoise, table, case, cond)
        image = _decoded(vae, z)
        yield compared(fixture, case, {"image": np.clip(image / 2 + 0.5, 0, 1)}, "float32")


def _decoded(vae: Published, z: np.ndarray) -> np.ndarray:
    """Latents of the diffusion model -> images."""
    apply = partial(vae.network.apply, {"params": vae.params})
    unscaled = apply(z, method="from_latents")
    return np.asarray(jax.jit(partial(apply, method="decode"))(unscaled))


def _grid(case: Case, model: Pretrained, config) -> Grid:
    """The scheduler's timesteps, and the step to data behind the last."""
    n, steps = case.kwargs["num_inference_steps"], config["num_train_timesteps"]
    process = model.denoiser.process
    if case.kwargs["scheduler"] == "DPMSolverMultistepScheduler":
        # its own default spacing, n + 1 timesteps without the last, which is 0
        times = (np.round(np.linspace(0, steps - 1, n + 1))[:0:-1] + 1) / steps
        return make_grid(process, lambda *_: times, n)
    spacing = partial(leading, train_steps=steps, offset=config["steps_offset"])
    return make_grid(process, spacing, n)


def _table(case: Case, grid: Grid):
    scheduler = case.kwargs["scheduler"]
    if scheduler == "DDPMScheduler":
        variance = case.kwargs["scheduler_config"]["variance_type"].removeprefix("fixed_")
        return ancestral(grid, variance=variance)
    if scheduler == "DDIMScheduler":
        return ddim(grid, eta=case.kwargs.get("eta", 0.0))
    return dpmpp_multistep(grid)


def _sampled(denoise: DenoiseFn, table, case: Case, cond=None) -> np.ndarray:
    """The samples from the recorded start and noise, NHWC."""
    x = jnp.asarray(nhwc(case.inputs["initial"]))
    recorded = [
        nhwc(case.inputs[f"noise.{i}"]) for i in range(table.nfe) if f"noise.{i}" in case.inputs
    ]
    draws = jnp.zeros((table.nfe, *x.shape)).at[: len(recorded)].set(jnp.asarray(recorded or 0.0))

    def noise(keys, stream, over, x):
        return draws[stream - ROWS]

    keys = jax.random.split(jax.random.key(0), len(x))
    run = jax.jit(lambda x: sample(denoise, table, x, keys=keys, cond=cond, noise=noise))
    return np.asarray(run(x))
