"""What sampling costs beyond the network: python -m benchmarks.sampling

Times, in one run and interleaved, a whole sampling run at 32x32 and as many calls of the bare
jitted network, and prints the ratio of the medians; then the memory that XLA reserves for runs of
10, 100 and 1000 evaluations.
"""

import argparse
import platform
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp

from scorediff.diffusion import Denoiser, VPCosine, target
from scorediff.models import UNet
from scorediff.solvers import ancestral, ddim, dpmpp_multistep, heun, logsnr, make_grid
from scorediff.solvers.sample import sample, sample_keys, sample_prior

SHAPE = (32, 32, 3)
SOLVERS = {
    "ddim": ddim,
    "dpmpp_multistep": dpmpp_multistep,
    "ancestral": ancestral,
    "heun": heun,
}


def make_denoiser() -> Denoiser:
    network = UNet(channels=64, multipliers=(1, 2, 2), blocks=1, attention=(16,), heads=4)
    return Denoiser(network=network, process=VPCosine(), target=target.v)


def table_of(solver, process, nfe: int):
    """A table of exactly nfe rows; Heun without the step to data spends two a step."""
    if solver is heun:
        return heun(make_grid(process, logsnr, nfe // 2, to_data=False))
    return solver(make_grid(process, logsnr, nfe))


def timed(function) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def compare(denoiser: Denoiser, params, *, nfe: int, batch: int, repeats: int) -> None:
    """Ratios of medians of interleaved measurements, one line a solver."""
    keys = sample_keys(jax.random.key(0), jnp.arange(batch))
    x, t = jax.random.normal(jax.random.key(1), (batch, *SHAPE)), jnp.full(batch, 0.5)
    network = jax.jit(denoiser.predict)

    @jax.jit
    def run(params, table, keys):
        x = sample_prior(table, keys, SHAPE)
        return sample(denoiser.bind(params), table, x, keys=keys)

    def bare():
        for _ in range(nfe):
            out = network(params, x, t)
        return out

    tables = {name: table_of(s, denoiser.process, nfe) for name, s in SOLVERS.items()}
    sides = {"network": bare} | {
        n: partial(run, params, table, keys) for n, table in tables.items()
    }
    for side in sides.values():
        timed(side)
    seconds = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            seconds[name].append(timed(side))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{nfe} x bare network, batch {batch}: {1e3 * medians['network']:.1f} ms")
    for name in tables:
        ratio = medians[name] / medians["network"]
        print(f"{name:16s} {1e3 * medians[name]:8.1f} ms   ratio {ratio:.3f}")


def memory(denoiser: Denoiser, params, *, batch: int) -> None:
    """Temporary memory of compiled runs; it must not grow with the number of steps."""
    keys = sample_keys(jax.random.key(0), jnp.arange(batch))

    def run(params, table, keys):
        x = sample_prior(table, keys, SHAPE)
        return sample(denoiser.bind(params), table, x, keys=keys)

    for nfe in (10, 100, 1000):
        table = table_of(ddim, denoiser.process, nfe)
        analysis = jax.jit(run).lower(params, table, keys).compile().memory_analysis()
        print(f"{nfe:5d} evaluations: {analysis.temp_size_in_bytes / 2**20:.2f} MiB temporary")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nfe", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), {platform.machine()}, jax {jax.__version__}")
    denoiser = make_denoiser()
    params = denoiser.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    compare(denoiser, params, nfe=args.nfe, batch=args.batch, repeats=args.repeats)
    memory(denoiser, params, batch=args.batch)


if __name__ == "__main__":
    main()
