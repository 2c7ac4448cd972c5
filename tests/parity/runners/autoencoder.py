"""Replays of AutoencoderKL: images to moments, latents to images."""

import jax.numpy as jnp

from scorediff.interop.formats import Published
from tests.parity.case import Arrays, Case, answer, forward, nchw, nhwc


def _outputs(model: Published, case: Case) -> Arrays:
    image, latent = nhwc(case.inputs["image"]), nhwc(case.inputs["latent"])
    mean, logvar = answer(model, image, method="encode")
    outputs = {
        "moments": answer(model, image, method="moments"),
        "mean": mean,
        "logvar": logvar,
        "std": jnp.exp(logvar / 2),
        "decoded": answer(model, latent, method="decode"),
    }
    return {name: nchw(array) for name, array in outputs.items()}


AUTOENCODER_KL = forward(_outputs)
