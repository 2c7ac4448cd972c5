"""AutoencoderKL: published sizes, configs and names there and back, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop import files, formats
from scorediff.interop.autoencoder import AUTOENCODER_KL
from tests.parity.case import fixture, round_trip

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

ROOT = Path(__file__).parents[1] / "fixtures/parity"
F8 = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "layers_per_block": 2,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
# Of the published files of kl-f8, the autoencoder of Stable Diffusion 1, 2 and XL.
KL_F8 = 83_653_863


@pytest.mark.slow
def test_published_size():
    network = AUTOENCODER_KL.network(F8)
    shapes = formats.shapes(AUTOENCODER_KL, network)
    assert sum(np.prod(shape, dtype=np.int64) for shape in shapes.values()) == KL_F8
    assert (network.scale, network.shift) == (0.18215, 0.0)  # where the config does not say


def config(name):
    return files.read_json(ROOT / name / "config.json")


@pytest.mark.parametrize("fields", [{}, {"mid_block_add_attention": False, "act_fn": "relu"}])
@pytest.mark.parametrize("name", ["vae_sd", "vae_sd3"])
def test_a_config_comes_back_as_the_same_network(name, fields):
    network = AUTOENCODER_KL.network(config(name) | fields)
    assert AUTOENCODER_KL.network(AUTOENCODER_KL.config(network)) == network


@pytest.mark.parametrize("name", ["vae_sd", "vae_sd3"])
def test_tensors_come_back_bit_for_bit(name):
    assert round_trip(fixture(ROOT / name, ROOT), formats.load(ROOT / name)).passed


def test_old_names_of_the_attention_are_written_as_todays():
    old = files.read_folder(ROOT / "vae_sd")
    new = formats.to_tensors(AUTOENCODER_KL, *_network_and_params("vae_sd"))
    place = "decoder.mid_block.attentions.0"
    assert f"{place}.proj_attn.bias" in old and f"{place}.to_out.0.bias" not in old
    for theirs, ours in (("query", "to_q"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        np.testing.assert_array_equal(
            new[f"{place}.{ours}.weight"], old[f"{place}.{theirs}.weight"]
        )


def _network_and_params(name):
    model = formats.load(ROOT / name)
    return model.network, model.params


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latents_mean": [0.0] * 4}, r"latents_mean=\[0.0, 0.0, 0.0, 0.0\] is not supported"),
        ({"down_block_types": ["DownEncoderBlock2D"]}, "DownEncoderBlock2D at each of the 3"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 3}, "must be UpDecoderBlock2D at each"),
        ({"scaling_facto": 1.0}, "not known here: scaling_facto; did you mean scaling_factor"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields, message):
    with pytest.raises(UserError, match=message):
        AUTOENCODER_KL.network(config("vae_sd") | fields)
