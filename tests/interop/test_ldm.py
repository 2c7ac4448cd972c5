"""Stable Diffusion's original single files: the same networks under other names."""

from pathlib import Path

import jax
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop import autoencoder, files, formats, layout, ldm, text_unet
from tests.interop.test_autoencoder import F8
from tests.interop.test_text_unet import SD15, SDXL

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

ROOT = Path(__file__).parents[1] / "fixtures/parity"
SLOW = pytest.mark.slow
PAIRS = {
    "unet_sd15": (ldm.TEXT_UNET, text_unet.TEXT_UNET),
    "unet_sdxl": (ldm.TEXT_UNET, text_unet.TEXT_UNET),
    "vae_sd": (ldm.AUTOENCODER_KL, autoencoder.AUTOENCODER_KL),
    "vae_sd3": (ldm.AUTOENCODER_KL, autoencoder.AUTOENCODER_KL),
}


@pytest.mark.parametrize(
    "name", ["vae_sd", *(pytest.param(n, marks=SLOW) for n in PAIRS if n != "vae_sd")]
)
def test_a_model_under_either_name_is_the_same(name):
    original, hub = PAIRS[name]
    model = formats.load(ROOT / name)
    written = formats.to_tensors(original, model.network, model.params)
    again = formats.from_tensors(original, hub.config(model.network), written)
    for a, b in zip(*map(jax.tree.leaves, (again.params, model.params)), strict=True):
        np.testing.assert_array_equal(a, b)
    theirs = hub.modern(files.read_folder(ROOT / name))
    assert sorted(a.size for a in written.values()) == sorted(a.size for a in theirs.values())


def names(format, config):
    network = format.network(config)
    table = layout.links(format.entries(network), formats.shapes(format, network))
    return {name for link in table.values() for row in link.names for name in row}


@pytest.mark.parametrize(
    ("format", "config", "count", "some"),
    [  # numbers of tensors and names as v1-5-pruned.safetensors and sd_xl_base_1.0 have them
        pytest.param(
            ldm.TEXT_UNET,
            SD15,
            686,
            {
                "input_blocks.3.0.op.weight",
                "input_blocks.4.0.skip_connection.weight",
                "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight",
                "input_blocks.11.0.out_layers.3.bias",
                "middle_block.1.proj_in.weight",
                "output_blocks.2.1.conv.weight",
                "output_blocks.5.2.conv.weight",
                "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.bias",
                "out.2.weight",
            },
            marks=SLOW,
        ),
        pytest.param(
            ldm.TEXT_UNET,
            SDXL,
            1680,
            {
                "label_emb.0.2.weight",
                "input_blocks.7.1.transformer_blocks.9.norm3.weight",
                "input_blocks.6.0.op.weight",
                "output_blocks.2.2.conv.weight",
                "output_blocks.5.2.conv.weight",
                "output_blocks.8.0.skip_connection.weight",
            },
            marks=SLOW,
        ),
        (
            ldm.AUTOENCODER_KL,
            F8,
            248,
            {
                "encoder.down.2.downsample.conv.weight",
                "encoder.down.1.block.0.nin_shortcut.weight",
                "decoder.up.3.upsample.conv.bias",
                "decoder.up.0.block.2.conv2.weight",
                "decoder.mid.attn_1.proj_out.weight",
                "post_quant_conv.weight",
            },
        ),
    ],
)
def test_names_of_the_published_files(format, config, count, some):
    found = names(format, config)
    assert len(found) == count
    assert some - found == set()


def test_a_file_is_cut_at_its_prefixes_and_joined_again():
    one, two = np.zeros(1), np.ones(2)
    tensors = {
        "model.diffusion_model.out.0.bias": one,
        "first_stage_model.quant_conv.bias": two,
        "cond_stage_model.transformer.text_model.final_layer_norm.bias": one,
        "model_ema.decay": one,
        "alphas_cumprod": two,
    }
    parts = ldm.split(tensors)
    assert {part: list(named) for part, named in parts.items()} == {
        "unet": ["out.0.bias"],
        "vae": ["quant_conv.bias"],
        "text_encoder": ["transformer.text_model.final_layer_norm.bias"],
    }
    assert set(ldm.join(parts)) == set(tensors) - {"model_ema.decay", "alphas_cumprod"}
    assert ldm.split({"conditioner.embedders.1.model.ln_final.bias": one}) == {
        "text_encoder_2": {"model.ln_final.bias": one}
    }
    with pytest.raises(UserError, match=r"control_model\.x belongs to no part"):
        ldm.split({"control_model.x": one})


def test_an_embedding_of_the_guidance_scale_has_no_name_there():
    network = ldm.TEXT_UNET.network(files.read_json(ROOT / "unet_lcm/config.json"))
    with pytest.raises(UserError, match="no name for an embedding of the guidance scale"):
        ldm.TEXT_UNET.entries(network)
