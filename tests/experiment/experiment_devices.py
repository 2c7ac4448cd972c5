"""Run as a program with eight forced host devices; prints the loss curves as JSON."""

import json
import sys

import jax

from scorediff.configfile import load_config
from scorediff.experiment import Experiment
from scorediff.training import mesh as meshes
from scorediff.training.parallel import compile_step

STEPS = 3
LAYOUTS = {"1": (1, "jit"), "4": (4, "jit"), "8": (8, "jit"), "4 pmap": (4, "pmap")}


def losses(config, count, mode):
    """The losses of the first steps of a config on so many devices."""
    experiment = Experiment(config=load_config(config, [f"--config.train.mode={mode}"]))
    mesh = meshes.make_mesh(devices=jax.devices()[:count])
    abstract = meshes.abstract_state(experiment.init_state, mesh)
    step = compile_step(experiment.step(), mesh, abstract, mode=mode)
    init_key, root_key = jax.random.split(jax.random.key(experiment.config.seed))
    state, found = meshes.initialise(experiment.init_state, init_key, abstract), []
    for i in range(STEPS):
        state, metrics = step(state, experiment.pipeline.batch(i), root_key)
        found.append(float(metrics["loss"]))
    return found


if __name__ == "__main__":
    curves = {name: losses(sys.argv[1], *layout) for name, layout in LAYOUTS.items()}
    print("RESULT" + json.dumps(curves))
