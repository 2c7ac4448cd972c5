"""Run as a program with eight forced host devices; prints the loss curves as JSON."""

import json
import sys

import jax

from scorediff.configfile import load_config
from scorediff.experiment import Experiment
from scorediff.training import mesh as meshes
from scorediff.training.parallel import compile_step

STEPS = 5
LAYOUTS = {"jit": {"1": 1, "4": 4, "8": 8}, "pmap": {"4 pmap": 4}}


def losses(experiment, step, fresh, devices):
    """The losses of the first steps on these devices, from a state of host arrays."""
    mesh, mode = meshes.make_mesh(devices=devices), experiment.plan.mode
    abstract = meshes.lay_out(fresh, mesh)
    state = jax.device_put(fresh, jax.tree.map(lambda leaf: leaf.sharding, abstract))
    run = compile_step(step, mesh, abstract, mode=mode)
    _, root_key = jax.random.split(jax.random.key(experiment.config.seed))
    found = []
    for i in range(STEPS):
        state, metrics = run(state, experiment.pipeline.batch(i), root_key)
        found.append(float(metrics["loss"]))
    return found


def curves(config, overrides):
    """The loss curve of each layout, all from one initial state."""
    found, fresh = {}, None
    for mode, counts in LAYOUTS.items():
        mine = load_config(config, [*overrides, f"--config.train.mode={mode}"])
        experiment = Experiment(config=mine)
        if fresh is None:
            mesh = meshes.make_mesh(devices=jax.devices()[:1])
            abstract = meshes.abstract_state(experiment.init_state, mesh)
            key, _ = jax.random.split(jax.random.key(mine.seed))
            fresh = jax.device_get(meshes.initialise(experiment.init_state, key, abstract))
        step = experiment.step()
        for name, count in counts.items():
            found[name] = losses(experiment, step, fresh, jax.devices()[:count])
    return found


if __name__ == "__main__":
    print("RESULT" + json.dumps(curves(sys.argv[1], sys.argv[2:])))
