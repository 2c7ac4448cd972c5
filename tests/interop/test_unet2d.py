"""UNet2DModel: configs both ways, names old and new, and what is refused by name."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop import files, formats, layout
from scorediff.interop.unet2d import UNET2D, modern
from scorediff.interop.unets import refuse_difference
from scorediff.models import UNet

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
NAMES = ["unet2d_ddpm", "unet2d_class", "unet2d_adm", "unet2d_modern", "unet2d_ncsnpp"]
SKIP = files.read_json(FIXTURES / "unet2d_ncsnpp_skip" / "config.json")


def config_of(name, **changed):
    return files.read_json(FIXTURES / name / "config.json") | changed


@pytest.mark.parametrize("name", NAMES)
def test_a_config_and_its_network_say_the_same(name):
    config = config_of(name)
    network = UNET2D.network(config)
    written = UNET2D.config(network)
    assert UNET2D.network(written) == network
    known = {k: v for k, v in config.items() if k in written}
    assert known == {k: written[k] for k in known}


def test_every_block_says_whether_it_attends_and_how_it_steps():
    config = config_of(
        "unet2d_adm",
        block_out_channels=[8, 16, 16, 24],
        down_block_types=[
            "AttnDownBlock2D",
            "ResnetDownsampleBlock2D",
            "DownBlock2D",
            "AttnDownBlock2D",
        ],
        up_block_types=["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "UpBlock2D"],
        downsample_type="resnet",
        upsample_type="conv",
    )
    network = UNET2D.network(config)
    assert network.attend_down == (True, False, False, True)
    assert network.attend_up == (False, False, True, False)
    assert network.halve == ("block", "block", "conv")
    assert network.double == ("block", "conv", "conv")
    assert network.widths == (8, 16, 16, 24)
    assert UNET2D.network(UNET2D.config(network)) == network


SIDES = ("down_block_types", "up_block_types")
SKIPS = {
    "three levels": {
        "block_out_channels": [32, 32, 48],
        "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"],
        "up_block_types": ["SkipUpBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"],
        "layers_per_block": 2,
        "attention_head_dim": 8,
    },
    "classes": {"num_class_embeds": 5, "act_fn": "gelu", "center_input_sample": True},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "norm_num_groups": 4},
    "positions": {"time_embedding_type": "positional", "add_attention": False, "out_channels": 6},
    "beside others": {
        "block_out_channels": [32, 32, 16],
        "down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D", "SkipDownBlock2D"],
        "up_block_types": ["ResnetUpsampleBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"],
        "norm_num_groups": 4,
        "downsample_type": "resnet",
    },
}


@pytest.mark.parametrize("kind", SKIPS)
def test_configs_with_skip_blocks_go_there_and_back(kind):
    config = SKIP | SKIPS[kind]
    network = UNET2D.network(config)
    written = UNET2D.config(network)
    assert UNET2D.network(written) == network
    assert [written[side] for side in SIDES] == [config[side] for side in SIDES]
    shapes = formats.shapes(UNET2D, network)
    links = layout.links(UNET2D.entries(network), shapes)
    names = [name for link in links.values() for row in link.names for name in row]
    assert len(names) == len(set(names)) >= len(shapes)
    assert ("class_embedding.weight" in names) == (kind == "classes")
    # diffusers leaves the middle's normalisation out where scale and shift have no own groups
    normalised = "mid_block.attentions.0.group_norm.weight" in names
    assert normalised == (kind not in ("positions", "scale and shift"))


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (
            {"class_embed_type": "timestep"},
            {"class_embedding.linear_1", "class_embedding.linear_2"},
        ),
        ({"class_embed_type": "identity"}, set()),
        ({"num_class_embeds": 3}, {"class_embedding"}),
    ],
)
def test_what_stands_in_place_of_a_class_goes_there_and_back(fields, names):
    network = UNET2D.network(config_of("unet2d_class", num_class_embeds=None) | fields)
    assert UNET2D.network(UNET2D.config(network)) == network
    shapes = formats.shapes(UNET2D, network)
    links = layout.links(UNET2D.entries(network), shapes).values()
    found = {name.rpartition(".")[0] for link in links for row in link.names for name in row}
    assert {name for name in found if name.startswith("class_embedding")} == names


def test_heads_that_leave_channels_out_make_narrow_queries():
    fields = {"attention_head_dim": 5, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}
    network = UNET2D.network(config_of("unet2d_class") | fields)
    assert UNET2D.network(UNET2D.config(network)) == network
    shapes = formats.shapes(UNET2D, network)
    assert shapes["down1_0_attention/attention/qkv/kernel"] == (16, 3 * 15)
    assert shapes["down1_0_attention/attention/out/kernel"] == (15, 16)


def test_the_oldest_names_of_blocks_are_read():
    fields = {"down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"]}
    network = UNET2D.network(config_of("unet2d_class") | fields)
    assert network.attend_down == (False, True)


def test_a_level_of_ncsnpp_does_not_fit_below_another_kind():
    with pytest.raises(UserError, match="skip_down: a skip level below another kind"):
        UNET2D.network(
            SKIP
            | SKIPS["beside others"]
            | {"down_block_types": ["DownBlock2D", "SkipDownBlock2D", "DownBlock2D"]}
        )
    with pytest.raises(UserError, match="norm_num_groups must be a number unless"):
        UNET2D.network(SKIP | SKIPS["beside others"] | {"norm_num_groups": None})


def test_a_network_with_levels_of_ncsnpp_is_no_other_class():
    network = UNET2D.network(SKIP | SKIPS["beside others"])
    plain = UNet(**{f.name: getattr(network, f.name) for f in dataclasses.fields(UNet)})
    with pytest.raises(UserError, match="a class cannot have skip levels"):
        refuse_difference("a class", network, plain)


@pytest.mark.parametrize(
    ("name", "groups", "want"),
    [
        ("unet2d_class", None, None),  # as everywhere
        ("unet2d_class", 2, 2),
        ("unet2d_adm", None, 0),  # with scale-shift: no normalisation in the middle's attention
        ("unet2d_adm", 2, 2),
    ],
)
def test_groups_of_the_middle_attention(name, groups, want):
    network = UNET2D.network(config_of(name, attn_norm_num_groups=groups))
    assert network.middle_groups == want
    assert UNET2D.config(network)["attn_norm_num_groups"] == groups


def test_absent_fields_have_the_defaults_of_the_class():
    network = UNET2D.network({"_class_name": "UNet2DModel"})
    assert network.widths == (224, 448, 672, 896)
    assert network.attend_down == (False, True, True, True) == network.attend_up
    assert (network.head_width, network.groups, network.epsilon) == (8, 32, 1e-5)
    assert network.halve_padding == "both" and not network.sin_first


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norm_groups": 4}, "not known here: norm_groups.*norm_num_groups"),
        ({"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}, "'CrossAttnDownBlock2D'"),
        ({"up_block_types": ["UpBlock2D"]}, "got 2, 1 and 2"),
        ({"attention_head_dim": 32}, "attention_head_dim=32 is more than a level's 16"),
        ({"norm_num_groups": None}, "norm_num_groups must be a number unless"),
        ({"class_embed_type": "projection"}, "class_embed_type='projection' is not supported"),
        ({"time_embedding_type": "learned"}, "time_embedding_type='learned' is not supported"),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift='ada_group'"),
    ],
)
def test_what_no_network_here_computes_is_refused_by_name(changed, message):
    with pytest.raises(UserError, match=message):
        UNET2D.network(config_of("unet2d_class", **changed))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"halve": "pool"}, "UNet2DModel cannot have levels"),
        ({"stem": 16}, "UNet2DModel cannot have stem 16, it would be 8"),
        ({"multipliers": (2, 2)}, "UNet2DModel cannot have channels 8"),
        ({"groups": None}, "UNet2DModel cannot have .*norm.*/scale"),
        ({"heads": 2, "head_width": None}, "UNet2DModel cannot have heads"),
        ({"in_channels": None}, "set UNet.in_channels"),
    ],
)
def test_a_network_that_the_class_cannot_be_is_refused_by_name(fields, message):
    network = UNET2D.network(
        config_of("unet2d_class", add_attention=True, down_block_types=["AttnDownBlock2D"] * 2)
    )
    with pytest.raises(UserError, match=message):
        UNET2D.config(network.clone(**fields))


def test_missing_and_extra_tensors_are_refused_by_name():
    tensors = files.read_folder(FIXTURES / "unet2d_class")
    lacking = {k: v for k, v in tensors.items() if k != "class_embedding.weight"}
    with pytest.raises(UserError, match=r"lacks: class_embedding\.weight"):
        formats.from_tensors(UNET2D, config_of("unet2d_class"), lacking)
    with pytest.raises(UserError, match=r"has beyond .*: class_embedding\.weight \(7, 32\)"):
        formats.from_tensors(UNET2D, config_of("unet2d_class", num_class_embeds=None), tensors)
    with pytest.raises(UserError, match=r"class_embedding\.weight of shape \(7, 32\) .*\(8, 32\)"):
        formats.from_tensors(UNET2D, config_of("unet2d_class", num_class_embeds=8), tensors)


def test_attention_under_its_old_names_is_read_as_under_todays():
    old = files.read_folder(FIXTURES / "unet2d_ddpm")
    model = formats.load(FIXTURES / "unet2d_ddpm")
    written = formats.to_tensors(UNET2D, model.network, model.params)
    assert "mid_block.attentions.0.to_q.weight" in written
    today = {name for name in old if name in written}
    assert len(written) - len(today) == len(old) - len(today) > 0  # only names differ
    for name, tensor in modern(old).items():
        np.testing.assert_array_equal(written[name], tensor)


@pytest.mark.slow
def test_a_network_of_ours_with_a_null_class_loads_as_one_more_class():
    network = UNet(
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(2,),
        num_classes=3,
        groups=2,
        in_channels=2,
        image_size=4,
    )
    x, noise = jnp.ones((4, 4, 4, 2)), jnp.arange(4.0)
    cond = {"label": jnp.arange(4)}  # 3 is the null class
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda l: rng.normal(size=l.shape).astype(l.dtype) / math.sqrt(l.shape[-1]),
        jax.eval_shape(network.init, jax.random.key(0), x, noise, cond)["params"],
    )
    config = UNET2D.config(network)
    assert config["num_class_embeds"] == 4
    loaded = formats.from_tensors(UNET2D, config, formats.to_tensors(UNET2D, network, params))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    want = jax.jit(network.apply)({"params": params}, x, noise, cond)
    same = jax.jit(loaded.network.apply)({"params": loaded.params}, x, noise, cond)
    np.testing.assert_array_equal(same, want)
    assert np.abs(want).max() > 0.1
