"""A package of a user: what the tests of configs, overrides and the command line name in nodes."""

import functools
import math
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import system
from typing import Literal, Protocol

import flax.linen as nn
import jax.numpy as jnp


class Wave:
    """A plain class with positional-or-keyword arguments."""

    def __init__(self, height: float, period: float = 2.0):
        self.height, self.period = height, period


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A base class that a field can ask for."""


@dataclass(frozen=True, kw_only=True)
class Circle(Shape):
    radius: float = 1.0
    name: str = "circle"


@dataclass(frozen=True, kw_only=True)
class Square(Shape):
    side: float
    corners: int = 4

    def __post_init__(self):
        if self.side <= 0:
            raise ValueError(f"side must be positive, got\n{self.side}")


def plus(x: float, *, step: float = 1.0) -> float:
    return x + step


def times(x: float, *, factor: float) -> float:
    return x * factor


@functools.lru_cache
def cached(x: int = 1) -> int:
    return x


class Runs(Protocol):
    def __call__(self, x: float) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Every kind of field that a config has to hold."""

    shape: Shape
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 0.5)
    loose: tuple = (1, 2)
    title: str = "drawing"
    limit: int | None = None
    scale: float = 1
    bold: bool = False
    mode: Literal["fill", "line"] = "fill"
    move: Callable[[float], float] = plus
    run: Runs = plus
    frame: Shape | None = Circle(radius=3.0)
    labels: Mapping[str, int] = field(default_factory=dict)
    activation: Callable = nn.silu
    root: Callable = math.sqrt
    grid: object = field(default_factory=lambda: jnp.zeros(2))


class Net(nn.Module):
    """A Linen module: `parent` and `name` are not for configs."""

    width: int = 4
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width, kernel_init=self.kernel_init, dtype=self.dtype)(x)


def anything(value, other=None):
    """Nothing annotated: types come from what is there."""
    return value, other


def stars(*args: int, **kwargs: int) -> None:
    return None


def reserved(call: int = 1) -> int:
    return call


def _private() -> None:
    return None


def outer() -> Callable:
    def inner() -> None:
        return None

    return inner


alias = plus
__all__ = ["os", "subprocess", "system"]
