"""DiT and SiT: diffusers' DiTTransformer2DModel, and the papers' own state dicts.

The same weights in the two layouts are two networks: diffusers' noise frequencies are those of
shift 1, its norm in front of the MLP has another epsilon, it keeps a copy of the conditioning in
every block, and makes its positions anew at every size. The papers' own files hold their positions.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from scorediff.errors import UserError
from scorediff.interop.formats import Config, Format
from scorediff.interop.layout import Entry, Form, within
from scorediff.interop.settings import complete, only
from scorediff.models.dit import DiT


def patch_form(size: int) -> Form:
    """The matrix on patches [size size c, d] that files keep as convolution [d, c, size, size]."""

    def write(kernel: np.ndarray) -> np.ndarray:
        return kernel.reshape(size, size, -1, kernel.shape[1]).transpose(3, 2, 0, 1)

    return Form(lambda a: a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]), write)


TABLE = Form(lambda a: a[0], lambda a: a[None])  # positions [1, n, d] of a file


def attention(theirs: str, ours: str = "attention") -> list[Entry]:
    """diffusers' self-attention, ours as `SelfAttention` has it."""
    return within(ours, theirs, [Entry("qkv", ("to_q", "to_k", "to_v")), Entry("out", "to_out.0")])


def feed_forward(theirs: str = "ff", ours: str = "mlp") -> list[Entry]:
    """diffusers' MLP."""
    return [Entry(f"{ours}_in", f"{theirs}.net.0.proj"), Entry(f"{ours}_out", f"{theirs}.net.2")]


def two_layers(
    ours: str, theirs: str, names: tuple[str, str] = ("linear_1", "linear_2")
) -> list[Entry]:
    """The noise level's two matrices."""
    return within(ours, theirs, [Entry("noise_in", names[0]), Entry("noise_out", names[1])])


def example(network: Any, side: int) -> tuple:
    """Arguments of `init` for one image of `side` patches a side, and of class 0."""
    size, label = side * network.patch_size, {"label": jnp.zeros(1, jnp.int32)}
    return jnp.zeros((1, size, size, network.in_channels)), jnp.zeros(1), label


# diffusers ---------------------------------------------------------------------------------------

DEFAULTS: Mapping[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
# Fields of Transformer2DModel that this kind of it never looks at, and of training.
UNUSED = (
    "attention_type",
    "caption_channels",
    "cross_attention_dim",
    "double_self_attention",
    "dropout",
    "interpolation_scale",
    "norm_num_groups",
    "num_vector_embeds",
    "only_cross_attention",
    "upcast_attention",
    "use_additional_conditions",
    "use_linear_projection",
)


def _network(config: Config) -> DiT:
    c = complete(config, DEFAULTS, unused=UNUSED)
    only(c, activation_fn="gelu-approximate", norm_elementwise_affine=False)
    only(c, norm_type="ada_norm_zero")
    return DiT(
        patch_size=c["patch_size"],
        width=c["num_attention_heads"] * c["attention_head_dim"],
        depth=c["num_layers"],
        heads=c["num_attention_heads"],
        num_classes=c["num_embeds_ada_norm"],
        in_channels=c["in_channels"],
        out_channels=c["out_channels"] or c["in_channels"],
        qkv_bias=c["attention_bias"],
        mlp_epsilon=c["norm_eps"],
        noise_shift=1.0,
        shared_condition=False,
        trained_size=c["sample_size"] // c["patch_size"],
    )


def _config(network: DiT) -> dict[str, Any]:
    return {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": network.heads,
        "attention_head_dim": network.width // network.heads,
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "num_layers": network.depth,
        "attention_bias": network.qkv_bias,
        "sample_size": network.trained_size * network.patch_size,
        "patch_size": network.patch_size,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": network.num_classes,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": network.mlp_epsilon,
    }


def _entries(network: DiT) -> list[Entry]:
    block = [
        *attention("attn1"),
        *feed_forward(),
        Entry("modulation", "norm1.linear"),
    ]
    embedders = [
        *two_layers("condition", "timestep_embedder"),
        Entry("condition/label", "class_embedder.embedding_table"),
    ]
    return [
        Entry("patch_in", "pos_embed.proj", form=patch_form(network.patch_size)),
        *within("layers", "transformer_blocks.{}", block),
        *[e._replace(theirs=f"transformer_blocks.{{}}.norm1.emb.{e.names[0]}") for e in embedders],
        Entry("modulation", "proj_out_1"),
        Entry("patch_out", "proj_out_2"),
    ]


DIT_TRANSFORMER = Format(
    name="DiTTransformer2DModel",
    network=_network,
    config=_config,
    entries=_entries,
    example=lambda network: example(network, network.trained_size),
)

# The papers' own ---------------------------------------------------------------------------------

OWN_DEFAULTS: Mapping[str, Any] = {
    "input_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "class_dropout_prob": 0.1,
    "num_classes": 1000,
    "learn_sigma": True,
}


def _own_network(config: Config, *, drops_sigma: bool) -> DiT:
    c = complete(config, OWN_DEFAULTS, unused=("class",))
    if c["input_size"] % c["patch_size"]:
        raise UserError(f"input_size={c['input_size']} is no multiple of {c['patch_size']=}")
    return DiT(
        patch_size=c["patch_size"],
        width=c["hidden_size"],
        depth=c["depth"],
        heads=c["num_heads"],
        mlp_ratio=c["mlp_ratio"],
        num_classes=c["num_classes"],
        null_class="learned" if c["class_dropout_prob"] > 0 else "refused",
        in_channels=c["in_channels"],
        out_channels=c["in_channels"] * (2 if c["learn_sigma"] else 1),
        kept_channels=c["in_channels"] if drops_sigma and c["learn_sigma"] else None,
        positions="table",
        trained_size=c["input_size"] // c["patch_size"],
    )


def _own_config(network: DiT, *, name: str) -> dict[str, Any]:
    return {
        "class": name,
        "input_size": network.trained_size * network.patch_size,
        "patch_size": network.patch_size,
        "in_channels": network.in_channels,
        "hidden_size": network.width,
        "depth": network.depth,
        "num_heads": network.heads,
        "mlp_ratio": network.mlp_ratio,
        "class_dropout_prob": 0.1 if network.null_class == "learned" else 0.0,
        "num_classes": network.num_classes,
        "learn_sigma": network.out_channels == 2 * network.in_channels,
    }


def _own_entries(network: DiT) -> list[Entry]:
    block = [
        Entry("attention/qkv", "attn.qkv"),
        Entry("attention/out", "attn.proj"),
        Entry("mlp_in", "mlp.fc1"),
        Entry("mlp_out", "mlp.fc2"),
        Entry("modulation", "adaLN_modulation.1"),
    ]
    return [
        Entry("patch_in", "x_embedder.proj", form=patch_form(network.patch_size)),
        Entry("positions", "pos_embed", form=TABLE),
        *two_layers("condition", "t_embedder", ("mlp.0", "mlp.2")),
        Entry("condition/label", "y_embedder.embedding_table"),
        *within("layers", "blocks.{}", block),
        Entry("modulation", "final_layer.adaLN_modulation.1"),
        Entry("patch_out", "final_layer.linear"),
    ]


def _own(name: str, *, drops_sigma: bool) -> Format:
    return Format(
        name=f"{name.lower()}/{name}",
        network=partial(_own_network, drops_sigma=drops_sigma),
        config=partial(_own_config, name=name),
        entries=_own_entries,
        example=lambda network: example(network, network.trained_size),
    )


DIT = _own("DiT", drops_sigma=False)
SIT = _own("SiT", drops_sigma=True)  # its forward pass gives back the first half alone
