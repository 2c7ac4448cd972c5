"""ADM's U-Net in guided-diffusion's and EDM's layout: sizes, orders of qkv, names, refusals."""

import math
from pathlib import Path

import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop import adm, edm_adm, files, formats, layout
from scorediff.interop.adm import ADM, ADM_PARTS_FIRST

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity" / "original"


def config_of(name, **changed):
    return files.read_json(FIXTURES / name / "config.json") | changed


def tensors_of(name):
    return files.read_safetensors(FIXTURES / name / "model.safetensors")[0]


def count(format, config):
    return sum(map(math.prod, formats.shapes(format, format.network(config)).values()))


RELEASED = {  # guided-diffusion's README: the flags of its class-conditional models
    "in_channels": 3,
    "out_channels": 6,
    "num_classes": 1000,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "num_head_channels": 64,
    "num_res_blocks": 2,
    "model_channels": 256,
}


@pytest.mark.parametrize(
    ("side", "multipliers", "changed", "millions"),
    [
        # Dhariwal & Nichol, arXiv 2105.05233, hyperparameters of the diffusion models: model size
        (
            64,
            (1, 2, 3, 4),
            {"model_channels": 192, "num_res_blocks": 3, "use_new_attention_order": True},
            296,
        ),
        (128, (1, 1, 2, 3, 4), {"num_head_channels": -1, "num_heads": 4}, 422),
        (256, (1, 1, 2, 2, 4, 4), {}, 554),
        (512, (0.5, 1, 1, 2, 2, 4, 4), {}, 559),
    ],
)
@pytest.mark.slow
def test_published_models_have_the_published_size(side, multipliers, changed, millions):
    config = {
        **RELEASED,
        "image_size": side,
        "channel_mult": multipliers,
        "attention_resolutions": [side // height for height in (32, 16, 8)],
        **changed,
    }
    assert round(count(adm.format_of(config), config) / 1e6) == millions


@pytest.mark.slow
def test_edm_imagenet_network_is_adm_without_learned_variances():
    # 296 million, as ADM at 64 x 64, but for the three output channels of its variances
    config = {"img_resolution": 64, "img_channels": 3, "label_dim": 1000}
    found = count(edm_adm.EDM, config)
    theirs = {
        **RELEASED,
        "image_size": 64,
        "channel_mult": (1, 2, 3, 4),
        "attention_resolutions": [2, 4, 8],
        "model_channels": 192,
        "num_res_blocks": 3,
    }
    assert round(found / 1e6) == 296
    assert count(ADM, theirs) - found == 3 * (9 * 192 + 1)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_first_rows_are_reordered_to_parts_first(heads):
    channels, width = 8, 8 // heads
    kernel, bias = adm.heads_first(heads)
    theirs = np.random.default_rng(0).normal(size=(3 * channels, channels, 1))
    ours, offset = kernel.read(theirs), bias.read(theirs[:, 0, 0])
    for part in range(3):
        for head in range(heads):
            for i in range(width):
                row = (head * 3 + part) * width + i  # of the file
                column = part * channels + head * width + i  # of ours
                np.testing.assert_array_equal(ours[:, column], theirs[row, :, 0])
                assert offset[column] == theirs[row, 0, 0]
    np.testing.assert_array_equal(kernel.write(ours), theirs)
    np.testing.assert_array_equal(bias.write(offset), theirs[:, 0, 0])


def test_the_two_orders_are_two_readings_of_one_file():
    config, tensors = config_of("adm", num_head_channels=4), tensors_of("adm")
    first = formats.from_tensors(ADM, config, tensors)
    second = formats.from_tensors(
        ADM_PARTS_FIRST, config | {"use_new_attention_order": True}, tensors
    )
    kernels = [
        m.params["middle_0_attention"]["attention"]["qkv"]["kernel"] for m in (first, second)
    ]
    assert first.network == second.network
    assert not np.array_equal(*kernels)
    np.testing.assert_array_equal(*[np.sort(kernel, axis=1) for kernel in kernels])
    with pytest.raises(UserError, match="use_new_attention_order=True is not supported"):
        ADM.network(config | {"use_new_attention_order": True})


def names_of(network):
    """What the file of a network calls its tensors."""
    links = layout.links(ADM.entries(network), formats.shapes(ADM, network))
    return {name for link in links.values() for row in link.names for name in row}


@pytest.mark.parametrize(
    ("changed", "steps"),
    [
        ({}, {"input_blocks.2.0.in_layers.0.weight", "output_blocks.1.2.in_layers.0.weight"}),
        (
            {"resblock_updown": False},
            {"input_blocks.2.0.op.weight", "output_blocks.1.2.conv.weight"},
        ),
        ({"resblock_updown": False, "conv_resample": False}, set()),
    ],
)
def test_steps_between_levels_have_the_number_of_their_place(changed, steps):
    network = ADM.network(config_of("adm", **changed))
    places = ("input_blocks.2.0.", "output_blocks.1.2.")
    names = {name for name in names_of(network) if name.startswith(places)}
    assert steps <= names and bool(names) == bool(steps)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"resblock_updown": False, "conv_resample": False},
        {"use_scale_shift_norm": False, "num_classes": None, "channel_mult": [0.5, 1, 2]},
        {"num_head_channels": -1, "num_heads": 2},
    ],
)
def test_a_guided_diffusion_config_and_its_network_say_the_same(changed):
    config = config_of("adm", model_channels=16, **changed)
    network = ADM.network(config)
    written = ADM.config(network)
    assert ADM.network(written) == network
    assert {k: written[k] for k in config} == config


def test_an_edm_config_and_its_network_say_the_same():
    config = config_of("edm_adm")
    network = edm_adm.EDM.network(config)
    written = edm_adm.EDM.config(network)
    assert edm_adm.EDM.network(written) == network
    assert {k: written[k] for k in config} == config


def test_edm_levels_narrower_than_a_head_do_not_attend():
    network = edm_adm.EDM.network(config_of("edm_adm", channels_per_head=64))
    assert network.attend_down == (False, False) and network.middle == "blocks"
    wide = edm_adm.EDM.network(
        config_of("edm_adm", model_channels=32, channel_mult=[1, 3], channels_per_head=64)
    )
    assert wide.attend_down == (False, True) and wide.heads_of(96) == 1


def test_networks_preconditioned_as_iddpm_have_variances_and_their_noise_levels():
    config = config_of("edm_adm", **{"class": "iDDPMPrecond"})
    network = edm_adm.IDDPM.network(config)
    assert network.out_channels == 6
    assert edm_adm.IDDPM.buffers(network)["u"].shape == (1001,)
    assert edm_adm.IDDPM.config(network)["class"] == "iDDPMPrecond"


def test_a_filter_other_than_the_mean_of_four_is_refused():
    name = "model.enc.8x8_down.conv0.resample_filter"
    tensors = tensors_of("edm_adm")
    tensors[name] = np.full((1, 1, 2, 2), 0.5, np.float16)
    with pytest.raises(UserError, match=f"{name} is not what this network computes with"):
        formats.from_tensors(edm_adm.EDM, config_of("edm_adm"), tensors)


@pytest.mark.parametrize(
    ("read", "changed", "message"),
    [
        (ADM.network, {"dims": 1}, "dims=1 is not supported"),
        (ADM.network, {"num_heads_upsample": 3}, "num_heads_upsample=3 is not supported"),
        (ADM.network, {"model_channels": None}, "lacks model_channels"),
        (ADM.network, {"chanel_mult": (1,)}, "not known here: chanel_mult.*channel_mult"),
        (edm_adm.EDM.network, {"augment_dim": 9}, "augment_dim=9 is not supported"),
        (edm_adm.EDM.network, {"img_resolution": None}, "lacks img_resolution"),
    ],
)
def test_bad_configs_are_refused_by_name(read, changed, message):
    name = "adm" if read is ADM.network else "edm_adm"
    with pytest.raises(UserError, match=message):
        read(config_of(name) | changed)


def test_networks_that_the_classes_cannot_be_are_refused_by_name():
    network = ADM.network(config_of("adm"))
    with pytest.raises(UserError, match="UNetModel cannot have sin_first True"):
        ADM.config(network.clone(sin_first=True))
    with pytest.raises(UserError, match="DhariwalUNet cannot have"):
        edm_adm.EDM.config(network)
    with pytest.raises(UserError, match="image_size must be a number"):
        edm_adm.EDM.config(network.clone(image_size=None))
