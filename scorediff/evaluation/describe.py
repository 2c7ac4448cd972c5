"""What a network and its training cost, told by XLA before anything is launched.

Nothing is computed and no parameter exists: shapes come from `jax.eval_shape`, and the programs are
compiled but not run. FLOPs are XLA's count for the program as JAX hands it over, before XLA's own
rewriting (which hides products in calls to libraries it cannot count), one addition or
multiplication each. XLA counts the body of a loop once, so here each scan, of layers for instance,
is counted as often as it runs. Memory is that of the compiled program on this machine's device.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core
from ml_collections import ConfigDict

from scorediff.config import bind
from scorediff.data.transforms import as_x0
from scorediff.diffusion import Denoiser
from scorediff.training.state import TrainState
from scorediff.training.step import StepFn
from scorediff.types import Cond, Params

UNKNOWN = "not given by this backend"
UNCOUNTED = f'{UNKNOWN}, or hidden in a fused kernel (attention_kernel="xla" is counted)'
FUSED = "dot_product_attention"  # how the names of cuDNN's attention begin among JAX's operations
SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What one program costs; None is what the backend does not tell.

    flops: of one run. memory: bytes of activations and other intermediates, beside arguments and
    results. compile_seconds: by this machine, without any cache.
    """

    flops: float | None
    memory: int | None
    compile_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """A model and its training, before anything is launched; `str` of it is a table.

    parameters: counts by top-level module. nbytes: of parameters, optimiser state and averages.
    forward, step: one evaluation of the network and one training step on the global batch.
    """

    parameters: Mapping[str, int]
    nbytes: Mapping[str, int]
    batch_size: int
    forward: Cost
    step: Cost
    device: str

    def __str__(self) -> str:
        total = sum(self.parameters.values())
        rows = [("parameters", f"{total:,}")]
        rows += [(f"  {name}", f"{count:,}") for name, count in self.parameters.items()]
        rows += [(f"{name}, memory", _bytes(size)) for name, size in self.nbytes.items()]
        rows += [
            ("forward, FLOPs a sample", _flops(self.forward.flops, self.batch_size)),
            ("training step, FLOPs", _flops(self.step.flops)),
            ("forward, activation memory", _bytes(self.forward.memory)),
            ("training step, activation memory", _bytes(self.step.memory)),
            ("forward, compile time", f"{self.forward.compile_seconds:.1f} s"),
            ("training step, compile time", f"{self.step.compile_seconds:.1f} s"),
        ]
        wide = max(len(name) for name, _ in rows) + 2
        head = f"On one {self.device}, batch of {self.batch_size}:"
        return "\n".join([head, *(f"{name:<{wide}}{text}" for name, text in rows)])


def without_data(config: ConfigDict) -> ConfigDict:
    """A config whose training step takes x0 itself, float32, and is laid out for one device.

    So that no data set has to be there. The scaling of a batch's pixels, a few FLOPs each, is left
    out of the step with it.
    """
    config = config.copy_and_resolve_references().unlock()
    config.loss.to_x0 = bind(as_x0)
    config.train.mode = "jit"
    return config


def describe(
    init_state: Callable[[Any], TrainState],
    step: StepFn,
    denoiser: Denoiser,
    *,
    shape: tuple[int, ...],
    null_cond: Mapping[str, Any],
    batch_size: int,
) -> Description:
    """The costs of a denoiser and its training step.

    init_state: key -> the state before the first step. step: not compiled; its batch has "x0"
      [b, *shape] float32 and the leaves of the condition. shape: of one x0. null_cond: what stands
      for no condition, which tells the shapes of the condition's leaves.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(init_state, key)
    x0 = jax.ShapeDtypeStruct((batch_size, *shape), np.float32)
    t = jax.ShapeDtypeStruct((batch_size,), np.float32)
    cond = {name: _leaf(value, batch_size) for name, value in null_cond.items()}

    def forward(params: Params, x: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
        return denoiser.predict(params, x, t, cond or None)

    return Description(
        parameters={name: _count(branch) for name, branch in state.params.items()},
        nbytes={
            "parameters": _nbytes(state.params),
            "optimiser": _nbytes(state.opt_state),
            **{f"average {name!r}": _nbytes(average) for name, average in state.ema.items()},
        },
        batch_size=batch_size,
        forward=cost(forward, state.params, x0, t, cond),
        step=cost(step, state, {"x0": x0, **cond}, key, donated=(0,)),
        device=jax.devices()[0].device_kind,
    )


def cost(function: Callable, *args: Any, donated: tuple[int, ...] = ()) -> Cost:
    """What function(*args) costs; args are arrays or jax.ShapeDtypeStruct. Compiles, runs nothing.

    donated: the arguments whose memory the results may take.
    """
    lowered = jax.jit(function, donate_argnums=donated).lower(*args)
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # or the time is that of reading a file
    try:
        start = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    memory = getattr(compiled.memory_analysis(), "temp_size_in_bytes", None)
    return Cost(flops=count_flops(function, *args), memory=memory, compile_seconds=seconds)


def count_flops(function: Callable, *args: Any) -> float | None:
    """The FLOPs of function(*args), scans counted as often as they run.

    None where XLA does not say, or cannot know, because cuDNN's attention is in it. A `while_loop`,
    whose number of turns nobody knows beforehand, counts as one turn.
    """
    program = jax.make_jaxpr(function)(*args)
    fused = any(equation.primitive.name.startswith(FUSED) for equation in _equations(program.jaxpr))
    return None if fused else _flops_of(program)


def _flops_of(program: core.ClosedJaxpr) -> float | None:
    """XLA's count, and for each scan what it counts too little: all of its turns but the first."""
    total = _counted_once(program)
    for equation in _equations(program.jaxpr, into_scans=False):
        if equation.primitive.name != "scan":
            continue
        body = equation.params["jaxpr"]
        once, whole = _counted_once(body), _flops_of(body)
        if total is None or once is None or whole is None:
            return None
        total += equation.params["length"] * whole - once
    return total


def _counted_once(program: core.ClosedJaxpr) -> float | None:
    """XLA's count, in which the body of every loop counts once."""
    analysis = jax.jit(core.jaxpr_as_fun(program)).lower(*program.in_avals).cost_analysis()
    flops = (analysis or {}).get("flops")
    return None if flops is None or flops < 0 else flops


def _equations(jaxpr: core.Jaxpr, *, into_scans: bool = True) -> Iterator[core.JaxprEqn]:
    """All operations of a program and of the programs inside of it, or not of its scans' bodies."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name == "scan" and not into_scans:
            continue
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from _equations(getattr(inner, "jaxpr", inner), into_scans=into_scans)


def _is_program(value: Any) -> bool:
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)


def _leaf(value: Any, batch_size: int) -> jax.ShapeDtypeStruct:
    """[b, ...] of a condition of which `value` is one sample's."""
    one = jax.eval_shape(lambda: jax.numpy.asarray(value))
    return jax.ShapeDtypeStruct((batch_size, *one.shape), one.dtype)


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _nbytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _flops(flops: float | None, parts: int = 1) -> str:
    if flops is None:
        return UNCOUNTED
    value = flops / parts
    large = (f"{value / scale:.3g} {unit}" for scale, unit in SCALES if value >= scale)
    return next(large, f"{value:.0f}")


def _bytes(size: int | None) -> str:
    if size is None:
        return UNKNOWN
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"
