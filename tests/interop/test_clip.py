"""CLIP's text encoders in the hub's layout: old and new names, configs, refusals."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop import files, formats
from scorediff.interop.clip import CLIP_TEXT, CLIP_TEXT_WITH_PROJECTION
from scorediff.models.clip import CLIPText

PARITY = Path(__file__).parents[1] / "fixtures" / "parity"
CONFIG = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 11,
}


def tensors_of(format=CLIP_TEXT, config=CONFIG):
    """Tensors of random numbers for a config."""
    network = format.network(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(size=s.shape).astype(np.float32),
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"],
    )
    return formats.to_tensors(format, network, params)


def loaded(tensors, format=CLIP_TEXT, config=CONFIG):
    return formats.from_tensors(format, config, tensors, where="FILE")


@pytest.mark.parametrize("name", ["clip_l", "clip_g", "clip_new"])
def test_a_folder_is_read_written_and_read_again(name, tmp_path):
    model = formats.load(PARITY / name)
    formats.save(tmp_path / "copy", model)
    again = formats.load(tmp_path / "copy")
    assert again.network == model.network
    same = jax.tree.map(np.array_equal, again.params, model.params)
    assert all(jax.tree.leaves(same))
    written = files.read_json(tmp_path / "copy" / "config.json")
    assert written["architectures"] == [formats.class_of(model.config or written, name)]


def test_queries_keys_and_values_keep_their_order():
    tensors = tensors_of()
    qkv = loaded(tensors).params["layers"]["attention"]["qkv"]["kernel"]
    for i, part in enumerate("qkv"):
        theirs = tensors[f"text_model.encoder.layers.1.self_attn.{part}_proj.weight"]
        np.testing.assert_array_equal(qkv[1][:, 8 * i : 8 * (i + 1)], theirs.T)


def test_names_without_prefix_and_position_ids_are_the_same_model():
    tensors = tensors_of()
    short = {name.removeprefix("text_model."): a for name, a in tensors.items()}
    short["embeddings.position_ids"] = np.arange(77)[None]
    want, got = loaded(tensors).params, loaded(short).params
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, want, got)))


def test_absent_fields_are_those_of_the_class():
    network = CLIP_TEXT.network({})
    assert network == CLIPText(width=512, hidden=2048, heads=8, eos=49407)
    assert CLIP_TEXT_WITH_PROJECTION.network({}).projection == 512
    assert CLIP_TEXT.network({"eos_token_id": 2}).eos is None


@pytest.mark.parametrize(
    "network",
    [
        CLIPText(),
        CLIPText(eos=7, activation="gelu", epsilon=1e-6, positions=9, depth=3),
        CLIPText(projection=32),
    ],
)
def test_a_config_gives_its_network_back(network):
    format = CLIP_TEXT if network.projection is None else CLIP_TEXT_WITH_PROJECTION
    assert format.network(CLIP_TEXT.config(network)) == network


def test_a_projection_belongs_to_its_own_class():
    projected = {**CONFIG, "projection_dim": 5}
    tensors = tensors_of(CLIP_TEXT_WITH_PROJECTION, projected)
    assert tensors["text_projection.weight"].shape == (5, 8)
    with pytest.raises(UserError, match=r"has beyond .*: text_projection.weight \(5, 8\)"):
        loaded(tensors)
    with pytest.raises(UserError, match=r"FILE lacks: text_projection\.weight"):
        loaded(tensors_of(), CLIP_TEXT_WITH_PROJECTION, projected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported here, only 'quick_gelu'"),
        ({"hidden_sise": 8}, "hidden_sise.*hidden_size"),
        ({"num_attention_heads": 3}, "heads=3 do not divide"),
    ],
)
def test_unsupported_configs_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        CLIP_TEXT.network({**CONFIG, **config})
