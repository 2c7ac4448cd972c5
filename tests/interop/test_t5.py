"""T5's encoder in the hub's layout: shards, one table under two names, activations, refusals."""

from pathlib import Path

import jax
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop import files, formats
from scorediff.interop.t5 import T5_ENCODER
from scorediff.models.t5 import T5Encoder

PARITY = Path(__file__).parents[1] / "fixtures" / "parity"
TABLE, TWIN = "shared.weight", "encoder.embed_tokens.weight"


@pytest.fixture(scope="module")
def v10():
    """Config and tensors of the recorded v1.0 model, which holds its table twice."""
    folder = PARITY / "t5_v1"
    return files.read_json(folder / "config.json"), files.read_folder(folder)


@pytest.mark.parametrize("name", ["t5_v1", "t5_v11"])
def test_a_folder_is_read_written_and_read_again(name, tmp_path):
    model = formats.load(PARITY / name)
    formats.save(tmp_path / "copy", model)
    again = formats.load(tmp_path / "copy")
    assert again.network == model.network
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again.params, model.params)))


def test_the_gate_comes_before_the_value():
    tensors = files.read_folder(PARITY / "t5_v11")
    kernel = formats.load(PARITY / "t5_v11").params["layers"]["mlp_in"]["kernel"]
    for part, ours in zip(("wi_0", "wi_1"), np.split(kernel[2], 2, axis=-1), strict=True):
        theirs = tensors[f"encoder.block.2.layer.1.DenseReluDense.{part}.weight"]
        np.testing.assert_array_equal(ours, theirs.T)


def test_one_table_under_either_name(v10):
    config, tensors = v10
    assert np.array_equal(tensors[TABLE], tensors[TWIN])
    models = [
        formats.from_tensors(T5_ENCODER, config, {n: a for n, a in tensors.items() if n != other})
        for other in (TABLE, TWIN)
    ]
    first, second = (m.params["tokens"]["embedding"] for m in models)
    np.testing.assert_array_equal(first, second)
    with pytest.raises(UserError, match="differ, where T5 has one table of tokens"):
        formats.from_tensors(T5_ENCODER, config, {**tensors, TWIN: tensors[TWIN] + 1})


def test_distances_are_read_from_the_first_layer_alone(v10):
    config, tensors = v10
    other = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    with pytest.raises(UserError, match=f"has beyond .*{other}"):
        formats.from_tensors(T5_ENCODER, config, {**tensors, other: np.zeros((8, 4))})


@pytest.mark.parametrize(
    ("fields", "activation", "gated"),
    [
        ({}, "relu", False),
        ({"feed_forward_proj": "gated-gelu"}, "gelu_tanh", True),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new"}, "gelu_tanh", True),
        ({"feed_forward_proj": "gelu"}, "gelu", False),
        ({"feed_forward_proj": "gated-silu", "is_gated_act": True}, "silu", True),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "gelu", True),
    ],
)
def test_activations_and_gates(fields, activation, gated):
    network = T5_ENCODER.network(fields)
    assert (network.activation, network.gated) == (activation, gated)
    assert T5_ENCODER.network(T5_ENCODER.config(network)) == network


def test_absent_fields_are_those_of_the_class():
    assert T5_ENCODER.network({}) == T5Encoder()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"feed_forward_proj": "swish"}, "feed_forward_proj='swish'"),
        ({"feed_forward_proj": "gated-tanh-gelu"}, "feed_forward_proj='gated-tanh-gelu'"),
        ({"feed_forward_proj": "relu", "is_gated_act": True}, "is_gated_act=True"),
        ({"is_decoder": True}, "is_decoder=True is not supported"),
        ({"num_layer": 3}, "num_layer.*num_layers"),
    ],
)
def test_unsupported_configs_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        T5_ENCODER.network(config)
