"""Transformers' files: configs both ways, folders bit for bit, runs of blocks, what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import traverse_util

from scorediff.errors import UserError
from scorediff.interop import files, formats, layout
from scorediff.models.dit import DiT

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
HUB = ("dit", "pixart", "sd3", "sd35")
OWN = {
    "original/dit": "dit/DiT",
    "original/sit": "sit/SiT",
    "original/uvit": "uvit/UViT",
    "original/uvit_t2i": "uvit/UViT",
}


def config_of(name):
    return files.read_json(FIXTURES / name / "config.json")


def format_of(name):
    return formats.known(OWN.get(name) or formats.class_of(config_of(name), name))


def load(name, config=None, tensors=None):
    config = config_of(name) if config is None else config
    tensors = files.read_folder(FIXTURES / name) if tensors is None else tensors
    return formats.from_tensors(format_of(name), config, tensors, where=name)


def identical(got, want):
    assert sorted(got) == sorted(want)
    for key, array in want.items():
        assert got[key].dtype == array.dtype and got[key].tobytes() == array.tobytes(), key


@pytest.mark.parametrize("name", [*HUB, *OWN])
def test_a_network_gives_its_config_and_its_tensors_back(name):
    model, form = load(name), format_of(name)
    assert form.network(form.config(model.network)) == model.network
    tensors = formats.to_tensors(form, model.network, model.params)
    identical(tensors, files.read_folder(FIXTURES / name))


def test_a_saved_folder_is_the_loaded_one(tmp_path):
    formats.save(tmp_path / "copy", formats.load(FIXTURES / "sd35"))
    assert formats.load(tmp_path / "copy").network == load("sd35").network
    identical(files.read_folder(tmp_path / "copy"), files.read_folder(FIXTURES / "sd35"))


VARIANTS = {
    "dit": [
        {"attention_bias": False},
        {"norm_eps": 1e-6, "patch_size": 4, "out_channels": None},
        {"num_layers": 5, "num_embeds_ada_norm": 3, "in_channels": 3},
    ],
    "pixart": [
        {
            "sample_size": 128,
            "use_additional_conditions": None,
            "interpolation_scale": None,
            "attention_head_dim": 6,
            "cross_attention_dim": 24,
        },
        {"interpolation_scale": 1.5, "norm_eps": 1e-5, "attention_bias": False},
    ],
    "sd35": [
        {"qk_norm": None, "dual_attention_layers": [], "num_layers": 4, "patch_size": 1},
        {"dual_attention_layers": [1, 2, 4], "num_layers": 5, "out_channels": None},
    ],
    "original/dit": [{"class_dropout_prob": 0.0}, {"learn_sigma": False, "mlp_ratio": 2.0}],
    "original/sit": [{"learn_sigma": False}, {"input_size": 12, "patch_size": 3}],
    "original/uvit": [
        {"num_classes": 11, "mlp_time_embed": True, "qkv_bias": True},
        {"conv": False, "skip": False, "depth": 7},
    ],
    "original/uvit_t2i": [{"num_clip_token": 7, "clip_dim": 9, "mlp_time_embed": True}],
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, changes) for name, variants in VARIANTS.items() for changes in variants],
)
def test_every_parameter_of_another_config_has_its_tensor(name, changes):
    form = format_of(name)
    network = form.network(config_of(name) | changes)
    assert form.network(form.config(network)) == network
    rng = np.random.default_rng(0)
    params = {k: rng.normal(size=s) for k, s in formats.shapes(form, network).items()}
    nested = traverse_util.unflatten_dict(params, sep="/")
    tensors = formats.to_tensors(form, network, nested)
    assert sum(t.size for t in tensors.values()) == sum(p.size for p in params.values())
    again = formats.from_tensors(form, form.config(network), tensors)
    identical(formats.to_tensors(form, network, again.params), tensors)


def test_a_run_of_blocks_is_named_by_the_blocks_it_holds():
    form = format_of("sd35")
    network = form.network(config_of("sd35") | {"dual_attention_layers": [2, 3], "num_layers": 6})
    shapes = formats.shapes(form, network)
    links = layout.links(form.entries(network), shapes)
    rows = links["layers_2/image_attention/qkv/kernel"].names
    assert rows == tuple(
        tuple(f"transformer_blocks.{i}.attn2.to_{part}.weight" for part in "qkv") for i in (2, 3)
    )
    assert links["layers_4/text_norm_k/scale"].names == (
        ("transformer_blocks.4.attn.norm_added_k.weight",),
    )


def test_shift_comes_before_scale_here_and_after_it_in_the_file():
    model = load("sd3")
    theirs = files.read_folder(FIXTURES / "sd3")
    kernel = model.params["modulation"]["kernel"]
    weight = theirs["norm_out.linear.weight"]
    np.testing.assert_array_equal(kernel[:, :32], weight[32:].T)
    bias = model.params["last"]["text_modulation"]["bias"]
    np.testing.assert_array_equal(
        bias[:32], theirs["transformer_blocks.1.norm1_context.linear.bias"][32:]
    )


def test_a_patch_is_a_convolution_in_the_file():
    model = load("original/uvit")
    kernel = files.read_folder(FIXTURES / "original/uvit")["patch_embed.proj.weight"]
    ours = model.params["patch_in"]["kernel"].reshape(4, 4, 3, 24)  # row, column, channel, out
    assert ours[1, 2, 0, 5] == kernel[5, 0, 1, 2]


@pytest.mark.parametrize("name", ["dit", "sd35", "pixart", "original/dit", "original/uvit"])
def test_missing_and_extra_tensors_are_refused_by_name(name):
    tensors = files.read_folder(FIXTURES / name)
    first = sorted(tensors)[0]
    with pytest.raises(UserError, match=f"{name} lacks: {first}"):
        load(name, tensors={k: v for k, v in tensors.items() if k != first})
    with pytest.raises(UserError, match=r"has beyond the network of its config: odd.weight \(2,\)"):
        load(name, tensors=tensors | {"odd.weight": np.zeros(2)})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dit", {"num_layer": 2}, "not known here: num_layer"),
        ("dit", {"activation_fn": "geglu"}, "activation_fn='geglu' is not supported"),
        ("pixart", {"cross_attention_dim": 8}, "cross_attention_dim=8 is not supported here, only"),
        ("pixart", {"caption_channels": None}, "caption_channels, the text's width, is missing"),
        ("sd3", {"qk_norm": "layer_norm"}, "qk_norm='layer_norm' is not supported"),
        ("sd3", {"caption_projection_dim": 8}, "caption_projection_dim=8 is not supported"),
        ("original/dit", {"input_size": 9}, "input_size=9"),
        ("original/uvit", {"qk_scale": 1.0}, "qk_scale=1.0 is not supported"),
        ("original/uvit", {"clip_dim": 8}, "not known here: clip_dim"),
        ("original/uvit", {"num_layers": 1}, "not known here: num_layers"),
    ],
)
def test_configs_that_cannot_be_honoured_are_refused(name, changes, message):
    with pytest.raises(UserError, match=message):
        format_of(name).network(config_of(name) | changes)


def test_an_older_class_name_is_understood(tmp_path):
    shutil.copytree(FIXTURES / "dit", tmp_path / "dit")
    config = config_of("dit")
    assert config["_class_name"] == "Transformer2DModel"
    model = formats.load(tmp_path / "dit")
    assert isinstance(model.network, DiT)
    config.pop("norm_eps")  # the class's own default, which is not the paper's
    (tmp_path / "dit" / "config.json").write_text(json.dumps(config))
    assert formats.load(tmp_path / "dit").network.mlp_epsilon == 1e-5
