"""What the image transformers share: plain norms, modulation, the MLP, and checks of fields."""

from flax import linen as nn

from scorediff.errors import UserError
from scorediff.models.blocks import XAVIER, ZEROS, check_computation, check_positive
from scorediff.models.dense import Dense
from scorediff.models.embeddings import island
from scorediff.types import Array

NOISE_FEATURES = 256  # width of the sinusoid of the noise level, at every size of the papers
NORMAL = nn.initializers.normal(0.02)


def layer_norm(x: Array, name: str, dtype, epsilon: float = 1e-6) -> Array:
    """Normalisation over channels without parameters; the condition supplies scale and shift."""
    norm = nn.LayerNorm(
        epsilon=epsilon,
        use_bias=False,
        use_scale=False,
        use_fast_variance=False,
        dtype=dtype,
        name=name,
    )
    return norm(x)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """x (1 + scale) + shift, tokens [b, n, d] and one vector a sample [b, d]."""
    return x * (1 + scale[:, None, :]) + shift[:, None, :]


def mlp(x: Array, hidden: int, dtype, *, approximate: bool = True, name: str = "mlp") -> Array:
    """Two layers, NAME_in and NAME_out, with the tanh form of GELU or the exact one."""
    h = Dense(hidden, dtype=dtype, kernel_init=XAVIER, name=f"{name}_in")(x)
    h = nn.gelu(h, approximate=approximate)
    return Dense(x.shape[-1], dtype=dtype, kernel_init=XAVIER, name=f"{name}_out")(h)


class VectorEmbedding(nn.Module, kw_only=True):
    """Two layers with SiLU between: [..., features] -> [..., width], at least float32."""

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dtype = island(self.dtype)
        h = Dense(self.width, dtype=dtype, kernel_init=NORMAL, name="first")(x.astype(dtype))
        return Dense(self.width, dtype=dtype, kernel_init=NORMAL, name="second")(nn.silu(h))


def read_out(tokens: Array, shift: Array, scale: Array, features: int) -> Array:
    """The last layer, which starts at zero: [b, n, d] -> at least float32 [b, n, features]."""
    dtype = island(tokens.dtype)
    tokens = modulate(layer_norm(tokens, "norm_out", dtype), shift, scale)
    return Dense(features, dtype=dtype, kernel_init=ZEROS, name="patch_out")(tokens)


def check_transformer(network: nn.Module) -> None:
    """The fields that every image transformer has."""
    name = type(network).__name__
    check_computation(network)
    sizes = network.patch_size, network.depth, network.heads
    check_positive(f"{name}.patch_size, depth and heads", *sizes)
    if network.width < 4 or network.width % 4 or network.width % network.heads:
        raise UserError(
            f"{name}.width must be divisible by 4 and by heads={network.heads}, got {network.width}"
        )
