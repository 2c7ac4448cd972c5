"""Published models as denoisers: their x0_hat against the recorded answers of the original code."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.diffusion import VE, FlowMatching, ZeroTerminalSNR, target
from scorediff.errors import UserError
from scorediff.interop import files, formats, score_sde
from scorediff.interop.sources import named
from scorediff.pretrained import of_edm, of_scheduler, pretrained

ORIGINAL = Path(__file__).parent / "fixtures" / "parity" / "original"


def load(name):
    folder = ORIGINAL / name
    config = files.read_json(folder / "config.json")
    if (folder / "checkpoint_1").exists():
        tensors = score_sde.read_checkpoint(folder / "checkpoint_1")
    else:
        tensors = files.read_folder(folder)
    return formats.from_tensors(formats.known(named(config)), config, tensors)


def recorded(name):
    with np.load(ORIGINAL / name / "io.npz") as arrays:
        return dict(arrays)


def tolerance(name, output):
    case = json.loads((ORIGINAL / name / "meta.json").read_text())["cases"][0]
    return case["outputs"][output]["atol"]


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def conditions(io):
    """Class and augmentation of a recorded case; EDM has its classes one-hot."""
    cond = {}
    if "a.in.class_labels" in io:
        cond["label"] = jnp.asarray(io["a.in.class_labels"].argmax(-1))
    if "a.in.augment_labels" in io:
        cond["augment"] = jnp.asarray(io["a.in.augment_labels"])
    return cond


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edm_adm", "edm_ncsnpp", "edm_ddpmpp"])
def test_an_edm_network_is_its_own_denoiser(name):
    io, model = recorded(name), pretrained(load(name))
    sigma = io["a.in.sigma"].astype(np.float64)
    process = model.denoiser.process
    t = process.host_when(np.ones_like(sigma), sigma)
    alpha = process.host(t).alpha
    x = nhwc(io["a.in.x"]) * jnp.asarray(alpha, jnp.float32)[:, None, None, None]
    x0_hat = jax.jit(model.denoiser.bind(model.params))(
        x, jnp.asarray(t, jnp.float32), conditions(io)
    )
    # twice the network's own tolerance: the time of a noise level is one more rounding
    np.testing.assert_allclose(x0_hat, nhwc(io["a.out.D"]), atol=2 * tolerance(name, "D"))


def test_sit_walks_from_noise_to_data():
    io, model = recorded("sit"), pretrained(load("sit"))
    t = 1 - jnp.asarray(io["a.in.t"])  # our clock
    x, velocity = nhwc(io["a.in.x"]), nhwc(io["a.out.sample"])
    cond = {"label": jnp.asarray(io["a.in.y"])}
    x0_hat = jax.jit(model.denoiser.bind(model.params))(x, t, cond)
    want = x + t[:, None, None, None] * velocity  # x_t = (1 - t) x0 + t eps, velocity = x0 - eps
    np.testing.assert_allclose(x0_hat, want, atol=2 * tolerance("sit", "sample"))


@pytest.mark.slow
def test_score_sde_answers_with_the_score():
    io, model = recorded("score_sde_ncsnpp"), pretrained(load("score_sde_ncsnpp"))
    sigma = io["a.in.time_cond"].astype(np.float64)
    assert isinstance(model.denoiser.process, VE)
    t = model.denoiser.process.host_when(np.ones_like(sigma), sigma)
    x, score = jnp.asarray(io["a.in.x"]), io["a.out.sample"]
    x0_hat = jax.jit(model.denoiser.bind(model.params))(x, jnp.asarray(t, jnp.float32))
    square = (sigma**2)[:, None, None, None]
    want = np.asarray(x, np.float64) + square * score  # Tweedie's formula
    # sigma is read off a float32 time, and the Fourier features multiply its logarithm by 2 pi 16
    np.testing.assert_allclose(x0_hat, want, rtol=1e-3, atol=1e-3 * square.max())


@pytest.mark.parametrize(
    ("config", "process", "predicts"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, FlowMatching, target.velocity),
        ({"_class_name": "ScoreSdeVeScheduler"}, VE, target.score),
        (
            {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
            ZeroTerminalSNR,
            target.v,
        ),
    ],
)
def test_what_a_scheduler_says(config, process, predicts):
    found = of_scheduler(config)
    assert isinstance(found.process, process) and found.target is predicts


def test_stable_diffusions_schedule():
    """alphas_cumprod[999] of scaled_linear 0.00085 .. 0.012, and the timestep of t = 1."""
    found = of_scheduler(
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    )
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    m = found.process.host(np.array([1.0]))
    np.testing.assert_allclose(m.alpha**2, np.cumprod(1 - betas)[-1], rtol=1e-9)
    assert float(found.noise_in(jnp.float32(1.0), m)) == 999


def test_what_is_not_known_is_refused():
    with pytest.raises(UserError, match="beta_schedule is 'sigmoid'"):
        of_scheduler({"beta_schedule": "sigmoid"})
    with pytest.raises(UserError, match="iDDPMPrecond"):
        of_edm({"class": "iDDPMPrecond"})
    with pytest.raises(UserError, match="config of its scheduler"):
        pretrained(load("dit"))
