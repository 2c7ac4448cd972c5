"""UNet2DConditionModel: published sizes, configs and names there and back, and what is refused."""

from pathlib import Path

import jax
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop import files, formats
from scorediff.interop.controlnet import CONTROLNET
from scorediff.interop.text_unet import TEXT_UNET
from tests.parity.case import fixture, round_trip

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

ROOT = Path(__file__).parents[1] / "fixtures/parity"
SLOW = pytest.mark.slow
FIXTURES = ("unet_sd15", "unet_sd21", "unet_sdxl", "unet_lcm", "controlnet")
SD15 = {"cross_attention_dim": 768}
SD21 = {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
# (format, config, parameters): counts of the published files, the fields that are not the defaults.
PUBLISHED = {
    "Stable Diffusion 1.5": (TEXT_UNET, SD15, 859_520_964),
    "Stable Diffusion 2.1": (TEXT_UNET, SD21, 865_910_724),
    "Stable Diffusion XL base 1.0": (TEXT_UNET, SDXL, 2_567_463_684),
    # Nine channels in: 5 x 320 x 9 weights more.
    "Stable Diffusion 1.5 inpainting": (TEXT_UNET, SD15 | {"in_channels": 9}, 859_535_364),
    "ControlNet 1.1 for Stable Diffusion 1.5": (CONTROLNET, SD15, 361_279_120),
}


QUICK = "Stable Diffusion XL base 1.0"  # the others take as long each


@pytest.mark.parametrize(
    "name", [n if n == QUICK else pytest.param(n, marks=SLOW) for n in PUBLISHED]
)
def test_published_sizes(name):
    format, config, count = PUBLISHED[name]
    shapes = formats.shapes(format, format.network(config))
    assert sum(np.prod(shape, dtype=np.int64) for shape in shapes.values()) == count


def config(name):
    return files.read_json(ROOT / name / "config.json")


@pytest.mark.parametrize("name", FIXTURES)
def test_a_config_comes_back_as_the_same_network(name):
    format = formats.known(config(name)["_class_name"])
    network = format.network(config(name))
    assert format.network(format.config(network)) == network


@pytest.mark.parametrize(
    "fields",
    [
        {"down_block_types": ["DownBlock2D"] * 3, "transformer_layers_per_block": [1, 1, 3]},
        {"transformer_layers_per_block": [1, 2, 3], "layers_per_block": [1, 2, 1]},
        {"reverse_transformer_layers_per_block": [3, 2, 1]},
        {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"]},
        {"num_class_embeds": 5, "in_channels": 9, "act_fn": "gelu", "downsample_padding": 0},
        {"resnet_time_scale_shift": "scale_shift", "flip_sin_to_cos": False, "freq_shift": 1},
        {"mid_block_type": None, "conv_in_kernel": 5, "conv_out_kernel": 1},
        {"mid_block_type": "UNetMidBlock2D", "time_embedding_dim": 20, "center_input_sample": True},
        {"mid_block_scale_factor": 2, "dropout": 0.1, "upcast_attention": True},
    ],
)
def test_other_configs_come_back_too(fields):
    network = TEXT_UNET.network(config("unet_sd15") | fields)
    assert network != TEXT_UNET.network(config("unet_sd15")) or "dropout" in fields
    assert TEXT_UNET.network(TEXT_UNET.config(network)) == network


def test_depths_go_up_in_the_reverse_order():
    ups = ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]
    fields = {"up_block_types": ups, "transformer_layers_per_block": [1, 2, 3]}
    network = TEXT_UNET.network(config("unet_sd15") | fields)
    assert (network.depth, network.middle_depth, network.up_depth) == ((1, 2, 0), 3, (0, 2, 3))
    fields["reverse_transformer_layers_per_block"] = [5, 4, 7]
    assert TEXT_UNET.network(config("unet_sd15") | fields).up_depth == (0, 4, 5)


def test_the_original_files_have_one_kind_of_middle():
    network = TEXT_UNET.network(config("unet_sd15") | {"mid_block_type": None})
    with pytest.raises(UserError, match="have a middle that reads the text"):
        formats.known("ldm/UNetModel").entries(network)


def test_a_middle_of_its_own_depth_cannot_be_written():
    network = TEXT_UNET.network(SDXL).clone(middle_depth=4)
    with pytest.raises(UserError, match="the middle has 4 layers and the last level 10"):
        TEXT_UNET.config(network)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["unet_lcm", *(pytest.param(n, marks=SLOW) for n in ("unet_sdxl", "controlnet"))]
)
def test_a_folder_is_written_as_it_was_read(name, tmp_path):
    model = formats.load(ROOT / name)
    formats.save(tmp_path / "copy", model)
    again = formats.load(tmp_path / "copy")
    assert again.network == model.network
    for a, b in zip(*map(jax.tree.leaves, (again.params, model.params)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert round_trip(fixture(ROOT / name, ROOT), model).passed


@pytest.mark.slow
def test_missing_and_extra_tensors_are_refused_by_name():
    tensors = files.read_folder(ROOT / "unet_lcm")
    lacking = {k: v for k, v in tensors.items() if k != "mid_block.attentions.0.norm.weight"}
    with pytest.raises(UserError, match=r"lacks: mid_block\.attentions\.0\.norm\.weight$"):
        formats.from_tensors(TEXT_UNET, config("unet_lcm"), lacking)
    more = tensors | {"up_blocks.0.attentions.0.proj_in.weight": np.zeros((8, 8))}
    with pytest.raises(UserError, match=r"has beyond.*up_blocks\.0\.attentions\.0.*\(8, 8\)"):
        formats.from_tensors(TEXT_UNET, config("unet_lcm"), more)
    short = tensors | {"conv_in.weight": np.zeros((8, 9, 3, 3))}
    with pytest.raises(UserError, match=r"conv_in\.weight of shape \(8, 9, 3, 3\) does not fit"):
        formats.from_tensors(TEXT_UNET, config("unet_lcm"), short)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_out_chanels": [8]}, "not known here: block_out_chanels; did you mean block_out_"),
        ({"class_embed_type": "projection"}, "class_embed_type='projection' is not supported"),
        ({"encoder_hid_dim": 4096}, "encoder_hid_dim=4096 is not supported"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type='UNetMid.*is not"),
        ({"num_attention_heads": 4}, "num_attention_heads=4 is not supported"),
        ({"act_fn": "tanh"}, "act_fn='tanh' is not supported"),
        ({"attention_head_dim": [2, 4]}, "attention_head_dim should have 3 values"),
        ({"transformer_layers_per_block": [1, [1, 2], 1]}, "should be a whole number a level"),
        ({"cross_attention_dim": [8, 16, 16]}, "cross_attention_dim must be the same everywhere"),
        ({"up_block_types": ["AttnUpBlock2D"] * 3}, "up_block_types: AttnUpBlock2D is not supp"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields, message):
    with pytest.raises(UserError, match=message):
        TEXT_UNET.network(config("unet_sd15") | fields)
