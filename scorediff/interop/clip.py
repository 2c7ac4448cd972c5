"""CLIPTextModel and CLIPTextModelWithProjection, as transformers saves them."""

from typing import Any

import jax
import jax.numpy as jnp

from scorediff.interop import settings
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import SAME, Entry, Tensors, within
from scorediff.models.clip import CLIPText

PREFIX = "text_model"
# The class's own. The paper's models all end a text with id 49407; configs from before it was
# stored have a 2 in its place, which stands for the position of the largest id.
DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
LARGEST_ID = 2
UNUSED = (
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dropout",
    "dtype",
    "initializer_factor",
    "initializer_range",
    "model_type",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
)
LAYER = [
    Entry("norm_attention", "layer_norm1"),
    Entry("attention/qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Entry("attention/out", "self_attn.out_proj"),
    Entry("norm_mlp", "layer_norm2"),
    Entry("mlp_in", "mlp.fc1"),
    Entry("mlp_out", "mlp.fc2"),
]


def entries(network: CLIPText) -> list[Entry]:
    """The table of names, which is the same for every size."""
    return [
        Entry("tokens", f"{PREFIX}.embeddings.token_embedding"),
        Entry("positions_table", f"{PREFIX}.embeddings.position_embedding.weight", form=SAME),
        *within("layers", f"{PREFIX}.encoder.layers.{{}}", LAYER),
        Entry("norm_out", f"{PREFIX}.final_layer_norm"),
        Entry("projection", "text_projection"),
    ]


def _network(config: Config, *, projected: bool) -> CLIPText:
    c = settings.complete(config, DEFAULTS, unused=UNUSED)
    settings.only(c, hidden_act=("quick_gelu", "gelu"))
    return CLIPText(
        vocabulary=c["vocab_size"],
        positions=c["max_position_embeddings"],
        width=c["hidden_size"],
        depth=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        hidden=c["intermediate_size"],
        activation=c["hidden_act"],
        epsilon=c["layer_norm_eps"],
        eos=None if c["eos_token_id"] == LARGEST_ID else c["eos_token_id"],
        projection=c["projection_dim"] if projected else None,
    )


def config(network: CLIPText) -> dict[str, Any]:
    """The config of a network, of the class with a projection where it has one."""
    projected = network.projection is not None
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": network.vocabulary,
        "max_position_embeddings": network.positions,
        "hidden_size": network.width,
        "num_hidden_layers": network.depth,
        "num_attention_heads": network.heads,
        "intermediate_size": network.hidden,
        "hidden_act": network.activation,
        "layer_norm_eps": network.epsilon,
        "eos_token_id": LARGEST_ID if network.eos is None else network.eos,
        "projection_dim": network.projection or network.width,
    }


def _with_prefix(tensors: Tensors) -> Tensors:
    """Names as the hub has them: transformers 5 saves CLIPTextModel without "text_model."."""
    if any(name.startswith(f"{PREFIX}.") for name in tensors):
        return tensors
    return {
        name if name.startswith("text_projection.") else f"{PREFIX}.{name}": tensor
        for name, tensor in tensors.items()
    }


def _format(name: str, *, projected: bool) -> Format:
    return Format(
        name=name,
        network=lambda config: _network(config, projected=projected),
        config=config,
        entries=entries,
        example=lambda network: (jax.ShapeDtypeStruct((1, network.positions), jnp.int32),),
        modern=_with_prefix,
        ignored=(f"{PREFIX}.embeddings.position_ids",),
        stem="model",
    )


CLIP_TEXT = _format("CLIPTextModel", projected=False)
CLIP_TEXT_WITH_PROJECTION = _format("CLIPTextModelWithProjection", projected=True)
