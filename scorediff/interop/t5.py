"""T5EncoderModel, as transformers saves it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.errors import UserError
from scorediff.interop import settings
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import SAME, Entry, Tensors, within
from scorediff.models.t5 import T5Encoder

DEFAULTS = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "dense_act_fn": None,  # both follow from feed_forward_proj, and newer files repeat them
    "is_gated_act": None,
    "is_decoder": False,
}
UNUSED = (
    "architectures",
    "classifier_dropout",
    "decoder_start_token_id",
    "dropout_rate",
    "dtype",
    "eos_token_id",
    "initializer_factor",
    "is_encoder_decoder",
    "model_type",
    "n_positions",
    "num_decoder_layers",
    "output_past",
    "pad_token_id",
    "scale_decoder_outputs",
    "task_specific_params",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
# transformers' names of activations -> ours.
ACTIVATIONS = {"relu": "relu", "gelu_new": "gelu_tanh", "gelu": "gelu", "silu": "silu"}


def entries(network: T5Encoder) -> list[Entry]:
    """The table of names; the gate and the value of a gated MLP are two tensors there."""
    mlp = ("wi_0", "wi_1") if network.gated else ("wi",)
    layer = [
        Entry("norm_attention", "layer.0.layer_norm"),
        Entry("qkv", tuple(f"layer.0.SelfAttention.{part}" for part in "qkv")),
        Entry("out", "layer.0.SelfAttention.o"),
        Entry("norm_mlp", "layer.1.layer_norm"),
        Entry("mlp_in", tuple(f"layer.1.DenseReluDense.{part}" for part in mlp)),
        Entry("mlp_out", "layer.1.DenseReluDense.wo"),
    ]
    distances = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [
        Entry("tokens", "shared"),
        Entry("distances_table", distances, form=SAME),
        *within("layers", "encoder.block.{}", layer),
        Entry("norm_out", "encoder.final_layer_norm"),
    ]


def _activation(c: Config) -> tuple[str, bool]:
    """Our name of the activation and whether the MLP is gated, from "gated-gelu" and its like."""
    *gate, name = str(c["feed_forward_proj"]).split("-")
    theirs = "gelu_new" if gate and name == "gelu" else name
    theirs, gated = c["dense_act_fn"] or theirs, gate == ["gated"]
    known = theirs in ACTIVATIONS and (not gate or gated)
    if not known or c["is_gated_act"] not in (None, gated):
        raise UserError(
            f"T5EncoderModel: feed_forward_proj={c['feed_forward_proj']!r} with "
            f"dense_act_fn={c['dense_act_fn']!r} and is_gated_act={c['is_gated_act']!r} is not "
            f"supported here, only {', '.join(ACTIVATIONS)}, gated or not"
        )
    return ACTIVATIONS[theirs], gated


def _network(config: Config) -> T5Encoder:
    c = settings.complete(config, DEFAULTS, unused=UNUSED)
    settings.only(c, is_decoder=False)
    activation, gated = _activation(c)
    return T5Encoder(
        vocabulary=c["vocab_size"],
        width=c["d_model"],
        depth=c["num_layers"],
        heads=c["num_heads"],
        head_width=c["d_kv"],
        hidden=c["d_ff"],
        activation=activation,
        gated=gated,
        buckets=c["relative_attention_num_buckets"],
        max_distance=c["relative_attention_max_distance"],
        epsilon=c["layer_norm_epsilon"],
    )


def config(network: T5Encoder) -> dict[str, Any]:
    """The config of a network."""
    theirs = {ours: name for name, ours in ACTIVATIONS.items()}[network.activation]
    short = "gelu" if network.gated and theirs == "gelu_new" else theirs
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "is_encoder_decoder": False,
        "vocab_size": network.vocabulary,
        "d_model": network.width,
        "num_layers": network.depth,
        "num_heads": network.heads,
        "d_kv": network.head_width,
        "d_ff": network.hidden,
        "feed_forward_proj": f"gated-{short}" if network.gated else short,
        "dense_act_fn": theirs,
        "is_gated_act": network.gated,
        "relative_attention_num_buckets": network.buckets,
        "relative_attention_max_distance": network.max_distance,
        "layer_norm_epsilon": network.epsilon,
    }


def _one_table(tensors: Tensors) -> Tensors:
    """Older files hold the table of tokens twice, or under its second name alone."""
    first, second = "shared.weight", "encoder.embed_tokens.weight"
    if second not in tensors:
        return tensors
    rest = {name: tensor for name, tensor in tensors.items() if name != second}
    if not np.array_equal(rest.setdefault(first, tensors[second]), tensors[second]):
        raise UserError(f"{first} and {second} differ, where T5 has one table of tokens")
    return rest


T5_ENCODER = Format(
    name="T5EncoderModel",
    network=_network,
    config=config,
    entries=entries,
    example=lambda network: (jax.ShapeDtypeStruct((1, 8), jnp.int32),),
    modern=_one_table,
    stem="model",
)
