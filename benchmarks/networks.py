"""Our networks against the same ones in PyTorch: python -m benchmarks.networks

Each network is built here, written in its published layout and loaded into diffusers' class, so
that both sides hold the same numbers; that they answer alike is checked first. Then the forward
pass and the training step (loss, gradient, Adam) are timed in one run, interleaved, and the ratios
of the medians are printed: below 1, ours is the faster. On a GPU both compute in bfloat16, PyTorch
compiled, and the share of the device's peak is printed where --peak names it. Freed memory stays
with the process, as in every command of ours; both sides gain by it.

On CPUs our side has a device for each core and cuts the batch over them, as training does over any
devices; PyTorch has a thread for each core. --devices=1 leaves the cores to XLA's own threads,
which share out single operations: matrix products well, small convolutions not at all.

Needs the extra "bench": pip install 'scorediff[bench]'
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen as nn

from scorediff.evaluation.describe import count_flops
from scorediff.interop import formats
from scorediff.memory import keep_memory
from scorediff.models import DiT, UNet
from scorediff.training.mesh import (
    BATCH_AXES,
    batch_sharding,
    compiler_options,
    make_mesh,
    replicated,
)

CLASSES = 10
WARM_UPS = 8  # measured: the heap takes new memory in up to four of the first runs
NETWORKS = {
    "unet": (
        "UNet2DModel",
        UNet(
            channels=64,
            multipliers=(1, 2, 2),
            blocks=2,
            attend_down=(False, True, False),
            attend_up=(False, True, False),
            head_width=8,
            groups=32,
            in_channels=3,
            image_size=32,
        ),
        (32, 32, 3),
    ),
    "dit": (
        "DiTTransformer2DModel",
        DiT(
            patch_size=2,
            width=384,
            depth=6,
            heads=6,
            num_classes=CLASSES,
            in_channels=4,
            noise_shift=1.0,
            mlp_epsilon=1e-5,
            shared_condition=False,
            trained_size=16,
        ),
        (32, 32, 4),
    ),
}


class Side(NamedTuple):
    """One implementation: a call that runs and waits, for each of the two things timed."""

    forward: Callable[[], Any]
    step: Callable[[], Any]


class Ours(NamedTuple):
    """Our side, and the FLOPs of its two calls."""

    side: Side
    flops: Side


class Inputs(NamedTuple):
    x: np.ndarray  # [b, h, w, c]
    t: np.ndarray
    label: np.ndarray


def draw(shape: tuple[int, ...], batch: int) -> Inputs:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, *shape)).astype(np.float32)
    return Inputs(x, np.arange(batch) * 60.0, rng.integers(0, CLASSES, batch))


def random_params(network: nn.Module, inputs: Inputs) -> Any:
    """Parameters without zeros: a fresh network multiplies by nothing, and answers nothing."""
    rng = np.random.default_rng(1)

    def one(leaf):
        fan = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        return (rng.normal(size=leaf.shape) / np.sqrt(fan)).astype(np.float32)

    example = inputs.x[:1], inputs.t[:1], {"label": inputs.label[:1]}
    shapes = jax.eval_shape(network.init, jax.random.key(0), *example)["params"]
    return jax.tree.map(one, shapes)


def ours(network: nn.Module, params: Any, inputs: Inputs, device: str) -> Ours:
    mesh = make_mesh(devices=jax.devices()[: None if device == "cpu" else 1])
    everywhere, cut = replicated(mesh), batch_sharding(mesh)
    specs = everywhere.spec, *[cut.spec] * 3
    given = jax.device_put((inputs.x, inputs.t, {"label": inputs.label}), cut)
    optimizer = optax.adam(1e-4)
    apply = jax.jit(network.apply, out_shardings=cut)

    def loss(params, x, t, cond):
        return jnp.mean(network.apply({"params": params}, x, t, cond) ** 2)

    whole = jax.value_and_grad(loss)

    @partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
    def shared_out(*args):
        return jax.lax.pmean(whole(*args), BATCH_AXES)

    def update(value_and_gradient, params, state, *given):
        value, gradient = value_and_gradient(params, *given)
        changes, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, changes), state, value

    train = jax.jit(
        partial(update, shared_out), donate_argnums=(0, 1), compiler_options=compiler_options(mesh)
    )
    held = jax.device_put(params, everywhere)
    training = [jax.tree.map(jnp.copy, held), jax.jit(optimizer.init)(held)]

    def step():
        *training[:], value = train(*training, *given)
        return value.block_until_ready()

    def forward():
        return apply({"params": held}, *given).block_until_ready()

    # FLOPs are counted of the whole batch, on no mesh.
    shapes = partial(jax.tree.map, lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    flops = Side(
        partial(count_flops, network.apply, {"params": shapes(held)}, *shapes(given)),
        partial(count_flops, partial(update, whole), *shapes(training), *shapes(given)),
    )
    return Ours(Side(forward, step), flops)


def theirs(name: str, network: nn.Module, params: Any, inputs: Inputs, device: str) -> Side:
    format = formats.known(name)
    model = getattr(diffusers, name).from_config(format.config(network))
    tensors = formats.to_tensors(format, network, params)
    model.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in tensors.items()})
    model = model.eval().to(device)  # in training mode diffusers drops class labels
    labels = (
        {"class_labels": torch.from_numpy(inputs.label).to(device)} if name != "UNet2DModel" else {}
    )
    x = torch.from_numpy(np.moveaxis(inputs.x, -1, 1).copy()).to(device)
    t = torch.from_numpy(inputs.t).to(device)
    run = torch.compile(model) if device == "cuda" else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    half = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def forward():
        with torch.no_grad(), half:
            y = run(x, t, **labels, return_dict=False)[0]
        wait()
        return y

    def step():
        optimizer.zero_grad(set_to_none=True)
        with half:
            value = run(x, t, **labels, return_dict=False)[0].float().square().mean()
        value.backward()
        optimizer.step()
        wait()

    return Side(forward, step)


def cpu_devices(batch: int) -> int:
    """One a core, or as many fewer as the batch divides into."""
    return max(n for n in range(1, (os.cpu_count() or 1) + 1) if batch % n == 0)


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(name: str, *, batch: int, repeats: int, device: str, peak: float | None) -> None:
    published, network, shape = NETWORKS[name]
    inputs = draw(shape, batch)
    params = random_params(network, inputs)
    half = network.clone(dtype="bfloat16" if device == "cuda" else "float32")
    mine = ours(half, params, inputs, device)
    other = theirs(published, network, params, inputs, device)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    a, b = np.asarray(mine.side.forward()), other.forward().float().cpu().numpy()
    b = np.moveaxis(b, 1, -1)
    error = np.abs(a - b).max() / np.abs(b).max()
    print(f"{name}: {size / 1e6:.1f} M parameters, batch {batch}, answers differ by {error:.1e}")
    for what in Side._fields:
        calls = {"ours": getattr(mine.side, what), "pytorch": getattr(other, what)}
        for _ in range(WARM_UPS):
            for call in calls.values():
                call()
        times = {side: [] for side in calls}
        for _ in range(repeats):
            for side, call in calls.items():
                times[side].append(seconds(call))
        medians = {side: statistics.median(values) for side, values in times.items()}
        ratio = medians["ours"] / medians["pytorch"]
        shown = ", ".join(f"{side} {1e3 * value:.1f} ms" for side, value in medians.items())
        line = f"  {what:8s} {shown}, ratio {ratio:.2f}"
        if peak is not None:
            reached = getattr(mine.flops, what)() / medians["ours"]
            line += f", {100 * reached / peak:.0f} % of the peak"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--devices", type=int, help="of our side, on CPUs (one a core)")
    parser.add_argument("--peak", type=float, help="FLOP/s of the device in bfloat16")
    args = parser.parse_args()
    if args.devices is not None and (args.devices < 1 or args.batch % args.devices):
        parser.error(f"--devices={args.devices} does not divide --batch={args.batch}")
    jax.config.update("jax_num_cpu_devices", args.devices or cpu_devices(args.batch))
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}, "
        f"PyTorch with {torch.get_num_threads()} threads, "
        f"jax {jax.__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}"
    )
    for name in args.networks.split(","):
        compare(name, batch=args.batch, repeats=args.repeats, device=device, peak=args.peak)


if __name__ == "__main__":
    keep_memory()
    main()
