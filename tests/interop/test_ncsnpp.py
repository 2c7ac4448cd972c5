"""NCSNpp in EDM's layout: configs both ways, names, sizes, refusals."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop import edm, files, formats, layout

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
SONG = files.read_json(FIXTURES / "original" / "edm_ncsnpp" / "config.json")
PLAIN = files.read_json(FIXTURES / "original" / "edm_ddpmpp" / "config.json")
OTHER_SONGS = {
    "pyramids": {"encoder_type": "skip", "decoder_type": "skip", "channel_mult": [1, 2, 2]},
    "labels": {"label_dim": 4, "augment_dim": 3, "num_blocks": 2, "attn_resolutions": [16, 8]},
}


def check_there_and_back(format, config):
    """The config comes back as an equal network, and every parameter has exactly one name."""
    network = format.network(config)
    assert format.network(format.config(network)) == network
    shapes = formats.shapes(format, network)
    links = layout.links(format.entries(network), shapes)
    names = [name for link in links.values() for row in link.names for name in row]
    assert len(names) == len(set(names)) >= len(shapes)
    return names


@pytest.mark.parametrize("kind", OTHER_SONGS)
@pytest.mark.parametrize("format", [edm.VP, edm.EDM, edm.IDDPM], ids=lambda f: f.name)
def test_configs_of_song_unet_go_there_and_back(format, kind):
    names = check_there_and_back(format, SONG | OTHER_SONGS[kind])
    skips = [name for name in names if "aux_skip" in name or "8x8_aux_conv" in name]
    assert bool(skips) == (kind == "pyramids")
    assert ("model.map_augment.weight" in names) == (kind == "labels")


# DDPM++ as Karras et al. train it, arXiv 2206.00364: 55.7 and 61.8 million parameters
TRAINED = {"augment_dim": 9, "model_channels": 128, "num_blocks": 4, "attn_resolutions": [16]}
CIFAR = TRAINED | {"img_resolution": 32, "channel_mult": [2, 2, 2], "label_dim": 10}


def count(format, config):
    return sum(map(math.prod, formats.shapes(format, format.network(config)).values()))


def test_ddpmpp_for_cifar10_has_the_published_number_of_parameters():
    assert round(count(edm.VP, PLAIN | CIFAR) / 1e6, 1) == 55.7


@pytest.mark.slow
def test_ddpmpp_for_64_pixels_has_the_published_number_of_parameters():
    faces = TRAINED | {"img_resolution": 64, "channel_mult": [1, 2, 2, 2]}
    assert round(count(edm.VP, PLAIN | faces) / 1e6, 1) == 61.8


def test_queries_keys_and_values_of_edm_are_interleaved():
    theirs = np.arange(12 * 4).reshape(12, 4, 1, 1)  # row 3 c + part, of 4 channels
    ours = edm.INTERLEAVED.read(theirs)
    for part in range(3):
        for channel in range(4):
            row = theirs[3 * channel + part, :, 0, 0]
            np.testing.assert_array_equal(ours[:, 4 * part + channel], row)
            assert edm.INTERLEAVED_BIAS.read(np.arange(12))[4 * part + channel] == (
                3 * channel + part
            )
    np.testing.assert_array_equal(edm.INTERLEAVED.write(ours), theirs)


def test_iddpm_levels_are_those_of_the_cosine_schedule():
    # With alpha_bar the squared scale of x0, u^2 = 1 / alpha_bar - 1 where no step was clipped
    u = edm.iddpm_levels(dtype="float64")
    j = np.arange(1001)
    alpha_bar = np.sin(np.pi / 2 * j / (1000 * 1.008)) ** 2
    assert u.shape == (1001,) and u[-1] == 0 and (np.diff(u) < 0).all()
    relative = alpha_bar / alpha_bar[-1]
    np.testing.assert_allclose(1 / (1 + u[1:] ** 2), relative[1:], rtol=1e-9)


def test_edm_configs_that_are_not_supported_are_refused_by_name():
    with pytest.raises(UserError, match="model_type='DhariwalUNet' is not supported"):
        edm.EDM.network(SONG | {"model_type": "DhariwalUNet"})
    with pytest.raises(UserError, match="lacks img_resolution"):
        edm.EDM.network({k: v for k, v in SONG.items() if k != "img_resolution"})
    with pytest.raises(UserError, match="not known here: sigma_datum; did you mean"):
        edm.EDM.network(SONG | {"sigma_datum": 1})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rescale": 1.0}, "cannot have rescale=1.0, it would be 1.414"),
        ({"image_size": None}, "NCSNpp.image_size must be known"),
        ({"noise_features": 12}, "no width of 12 with 8 channels"),
    ],
)
def test_networks_that_edm_does_not_have_are_not_written(fields, message):
    network = dataclasses.replace(edm.EDM.network(SONG), **fields)
    with pytest.raises(UserError, match=message):
        edm.EDM.config(network)


def test_missing_extra_and_misfit_tensors_are_refused():
    folder = FIXTURES / "original" / "edm_ncsnpp"
    tensors, _ = files.read_safetensors(folder / "model.safetensors")
    name = "model.enc.8x8_aux_residual.weight"
    with pytest.raises(UserError, match=f"lacks: {name}"):
        formats.from_tensors(edm.EDM, SONG, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(UserError, match=r"beyond the network of its config: model.more \(2,\)"):
        formats.from_tensors(edm.EDM, SONG, tensors | {"model.more": np.zeros(2)})
    with pytest.raises(UserError, match=r"of shape \(8, 3, 3, 2\) does not fit"):
        formats.from_tensors(edm.EDM, SONG, tensors | {name: tensors[name][..., :2]})
    wrong = {"model.enc.8x8_down.conv0.resample_filter": np.full((1, 1, 4, 4), 1 / 16)}
    with pytest.raises(UserError, match="resample_filter is not what this network computes with"):
        formats.from_tensors(edm.EDM, SONG, tensors | wrong)
