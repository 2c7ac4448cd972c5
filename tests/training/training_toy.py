"""A training run small enough to be killed often: an MLP that fits noise-perturbed points.

Run as a program it is a real training command: python training_toy.py WORKDIR [name=value ...].
"""

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from scorediff import commandline
from scorediff.errors import UserError
from scorediff.training.checkpoint import Checkpoints
from scorediff.training.ema import ConstantEMA, PowerEMA
from scorediff.training.hooks import Every, LogMetrics
from scorediff.training.loop import fit
from scorediff.training.mesh import abstract_state, initialise, make_mesh
from scorediff.training.metrics import MetricLog
from scorediff.training.optimizers import adamw
from scorediff.training.parallel import PMAP_AXIS, compile_step
from scorediff.training.state import TrainState
from scorediff.training.step import make_step
from scorediff.training.workdir import open_workdir

EMA = {"slow": ConstantEMA(decay=0.9), "power": PowerEMA(sigma_rel=0.1)}
OPTIMIZER = adamw(
    learning_rate=optax.cosine_decay_schedule(1e-2, 1000), weight_decay=0.01, clip_norm=1.0
)
BATCH_SIZE = 16
ROOT_KEY = 7


def init_params(key, width=16):
    """A fixed start, so that compiling it costs nothing; `key` is there for the signature."""
    del key
    first = np.sin(np.arange(4 * width, dtype=np.float32)).reshape(4, width) / 2
    return {
        "first": {"kernel": jnp.asarray(first), "bias": jnp.zeros(width)},
        "second": {"kernel": jnp.asarray(first.T / 2), "bias": jnp.zeros(4)},
    }


def loss_fn(params, batch, draws):
    """Denoising at a drawn noise level; `poison` in the batch makes it what the poison is."""
    x = batch["x"]
    noisy = x + draws.stratified(1)[:, None] * draws.normal(0, x.shape[1:])
    hidden = jnp.tanh(noisy @ params["first"]["kernel"] + params["first"]["bias"])
    out = hidden @ params["second"]["kernel"] + params["second"]["bias"]
    loss = jnp.mean(jnp.square(out - x)) * jnp.mean(batch.get("poison", jnp.ones(())))
    return loss, {"size": jnp.mean(jnp.abs(out))}


def batch_at(step, size=BATCH_SIZE):
    x = np.random.default_rng(step).normal(size=(size, 4))
    return {"x": x.astype(np.float32)}


def batches(start, poisoned=(), pause=0.0):
    step = start
    while True:
        poison = np.float32("nan") if step in poisoned else np.float32(1)
        time.sleep(pause)
        yield {**batch_at(step), "poison": np.full(BATCH_SIZE, poison)}
        step += 1


def init_state(key, width=16):
    return TrainState.create(init_params(key, width), OPTIMIZER, EMA)


def partition(params, sizes):
    """What a network's own rules would say: of `second` nothing."""
    return {"first/kernel": PartitionSpec("fsdp", "tensor")}


def assemble(devices=None, fsdp=1, tensor=1, accumulate=1, mode="jit", width=16):
    """(abstract state, fresh state, compiled step)."""
    mesh = make_mesh(fsdp=fsdp, tensor=tensor, devices=devices)
    init = lambda key: init_state(key, width)  # noqa: E731
    abstract = abstract_state(init, mesh, partition)
    axis = PMAP_AXIS if mode == "pmap" else None
    step = make_step(loss_fn, OPTIMIZER, EMA, accumulate=accumulate, axis_name=axis)
    compiled = compile_step(step, mesh, abstract, mode=mode)
    return abstract, initialise(init, jax.random.key(0), abstract), compiled


def train(workdir, steps=120, every=7, pause=0.0, poisoned=(), fail_at=-1, keep_last=2, width=16):
    """One run, from where it stands; says each step on stdout."""
    run = open_workdir(workdir, '{"width": 16}')
    abstract, fresh, step_fn = assemble(width=width)
    checkpoints = Checkpoints(
        run.checkpoints, keep_last=keep_last, pipeline={"seed": 0, "batch_size": BATCH_SIZE}
    )
    restored = checkpoints.restore_latest(abstract)
    log = MetricLog(run)

    def say(step, state, metrics):
        print(step, flush=True)
        if step == fail_at:
            raise RuntimeError("a bug")

    return fit(
        step_fn,
        fresh if restored is None else restored,
        lambda start: batches(start, poisoned, pause),
        steps=steps,
        root_key=jax.random.key(ROOT_KEY),
        hooks=[LogMetrics(every=5, log=log), Every(every=1, action=say)],
        checkpoints=checkpoints,
        save_every=every,
        log=log,
    )


def main():
    def run(argv):
        given = dict(text.split("=") for text in argv[1:])
        numbers = {name: float(value) for name, value in given.items()}
        if "unknown" in numbers:
            raise UserError("unknown option")
        whole = {n: v if n == "pause" else int(v) for n, v in numbers.items()}
        train(pathlib.Path(argv[0]), **whole)

    commandline.run(run)


if __name__ == "__main__":
    main()
