"""A small classifier trained on the real images: a feature space, and an independent judge.

Inception features are made for photographs of 299 pixels. For small images a network trained on the
very data set sees what matters there, and takes seconds. Two of them are used, never one for both
jobs: the values before the last layer of the one are the space in which Frechet distance, precision
and recall are measured; the other, with another seed and width, says which class a sample shows.
The feature dimension is small (32), so that the covariance of some hundred images is full rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scorediff.types import Array, Key, Params

BATCH = 500  # images at a time when a trained classifier is applied


class ConvNet(nn.Module):
    """Convolutions down to 4 pixels or fewer, a feature layer, class scores."""

    classes: int
    width: int = 32
    features: int = 32
    dropout: float = 0.3

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[Array, Array]:
        """Images [b, h, w, c] in [-1, 1] -> features [b, d] and class scores [b, classes]."""
        conv = partial(nn.Conv, kernel_size=(3, 3), precision="highest")
        dense = partial(nn.Dense, precision="highest")  # tf32 or bf16 would move the metrics
        x = nn.swish(conv(self.width)(x))
        while min(x.shape[1:3]) > 4:
            x = nn.swish(conv(2 * self.width, strides=(2, 2))(x))
            x = nn.swish(conv(2 * self.width)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(len(x), -1))
        features = dense(self.features)(x)
        return features, dense(self.classes)(nn.swish(features))


def to_unit(images: np.ndarray, white: int) -> np.ndarray:
    """Images as float32 in [-1, 1]: uint8 0..white is scaled, floats must be in range already."""
    images = np.asarray(images)
    if images.ndim != 4:
        raise ValueError(f"expected images [n, h, w, c], got shape {images.shape}")
    if images.dtype == np.uint8:
        unit = images.astype(np.float32) * (2.0 / white) - 1.0
    else:
        unit = images.astype(np.float32)
    if not np.abs(unit).max(initial=0.0) <= 1.0001:
        found = f"{images.dtype} from {images.min()} to {images.max()}"
        raise ValueError(f"expected uint8 in 0..{white} or floats in [-1, 1], got {found}")
    return unit


@partial(jax.jit, static_argnames="module")
def _apply(module: ConvNet, params: Params, images: Array) -> tuple[Array, Array]:
    return module.apply(params, images)


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained network on images [n, h, w, c], uint8 in 0..white or float in [-1, 1]."""

    module: ConvNet
    params: Params
    white: int = 255

    def _both(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, n = to_unit(images, self.white), len(images)
        padded = np.pad(images, ((0, -n % BATCH), (0, 0), (0, 0), (0, 0)))  # one shape, one compile
        parts = [
            _apply(self.module, self.params, padded[i : i + BATCH]) for i in range(0, n, BATCH)
        ]
        features, scores = zip(*parts, strict=True)
        return np.concatenate(features)[:n], np.concatenate(scores)[:n]

    def features(self, images: np.ndarray) -> np.ndarray:
        """The values before the last layer, [n, d] float32."""
        return self._both(images)[0]

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The most likely class of each image, [n] int."""
        return self._both(images)[1].argmax(axis=1)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Share of images recognised as `labels` [n]."""
        return float(np.mean(self.predict(images) == np.asarray(labels)))


def _batches(n: int, size: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of `steps` batches; each pass over the data is a new permutation."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(n) for _ in range(-(-steps * size // n))])
    return (order[i * size : (i + 1) * size] for i in range(steps))


def _shift(images: Array, key: Key) -> Array:
    """Each image moved by -1, 0 or 1 pixel each way, the border repeated."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    offsets = jax.random.randint(key, (len(images), 2), 0, 3)

    def crop(image: Array, offset: Array) -> Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)


@partial(jax.jit, static_argnames="module")
def _init(module: ConvNet, key: Key, image: Array) -> Params:
    return module.init(key, image)


def _optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(learning_rate, steps), weight_decay=1e-2)


@partial(jax.jit, static_argnames=("module", "learning_rate", "steps"), donate_argnums=(0, 1))
def _update(
    params: Params,
    state: optax.OptState,
    x: Array,
    y: Array,
    key: Key,
    *,
    module: ConvNet,
    learning_rate: float,
    steps: int,
) -> tuple[Params, optax.OptState]:
    noise, shift = jax.random.split(key)

    def loss(params: Params) -> Array:
        _, scores = module.apply(params, _shift(x, shift), train=True, rngs={"dropout": noise})
        return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()

    updates, state = _optimizer(learning_rate, steps).update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int,
    white: int = 255,
    width: int = 32,
    dim: int = 32,
    steps: int = 500,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
) -> Classifier:
    """Train on real images [n, h, w, c], uint8 in 0..white, with labels [n] in 0..classes-1.

    AdamW with a cosine schedule, images shifted by up to a pixel, dropout. The same arguments give
    the same classifier; `seed` decides the start, the order of the images and all noise.
    """
    images, labels = to_unit(images, white), np.asarray(labels, np.int32)
    if labels.shape != (len(images),) or labels.min() < 0:
        raise ValueError(
            f"labels {labels.shape} from {labels.min()} do not fit {len(images)} images"
        )
    module = ConvNet(classes=int(labels.max()) + 1, width=width, features=dim)
    key = jax.random.key(seed, impl="rbg")  # threefry takes five times as long to compile
    params = _init(module, key, images[:1])
    state = _optimizer(learning_rate, steps).init(params)
    update = partial(_update, module=module, learning_rate=learning_rate, steps=steps)
    for step, index in enumerate(_batches(len(images), batch_size, steps, seed)):
        step_key = jax.random.fold_in(key, step)
        params, state = update(params, state, images[index], labels[index], step_key)
    return Classifier(module=module, params=params, white=white)
