"""Run as a program with eight forced host devices; prints loss curves and layouts as JSON."""

import json
import sys
import tempfile

import jax

from scorediff.configfile import load_config
from scorediff.experiment import Experiment
from scorediff.training import mesh as meshes
from scorediff.training.checkpoint import Checkpoints
from scorediff.training.fingerprint import leaf_names, marks
from scorediff.training.parallel import compile_step

STEPS = 5
CUT = "8 = 2 x 2 x 2"
# Overrides of config.train -> names of the layouts and how many devices each has.
LAYOUTS = {
    (): {"1": 1, "4": 4, "8": 8},
    ("fsdp=2", "tensor=2"): {CUT: 8},
    ("mode=pmap",): {"4 pmap": 4},
}


def train(experiment, step, fresh, devices):
    """(losses, state) of the first steps on these devices, from a state of host arrays."""
    plan = experiment.plan
    mesh = meshes.make_mesh(fsdp=plan.fsdp, tensor=plan.tensor, devices=devices)
    abstract = experiment.abstract_state(mesh)
    state = jax.device_put(fresh, jax.tree.map(lambda leaf: leaf.sharding, abstract))
    run = compile_step(step, mesh, abstract, mode=plan.mode)
    _, root_key = jax.random.split(jax.random.key(experiment.config.seed))
    found = []
    for i in range(STEPS):
        state, metrics = run(state, experiment.pipeline.batch(i), root_key)
        found.append(float(metrics["loss"]))
    return found, state


def on_one_device(experiment):
    """(shapes and shardings, fresh state)."""
    abstract = experiment.abstract_state(meshes.make_mesh(devices=jax.devices()[:1]))
    key, _ = jax.random.split(jax.random.key(experiment.config.seed))
    return abstract, meshes.initialise(experiment.init_state, key, abstract)


def restored(state, abstract):
    """Whether `state`, saved as it lies, comes back bit for bit as `abstract` wants it laid out."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = Checkpoints(directory)
        checkpoints.save(state)
        checkpoints.close()
        found = checkpoints.restore_latest(abstract)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(found))
    return marks(found) == marks(state)


def cuts(state):
    """Of each leaf the axes that it is cut over, dimension by dimension."""
    leaves = zip(leaf_names(state), jax.tree.leaves(state), strict=True)
    return {name: list(leaf.sharding.spec) for name, leaf in leaves}


def main(config, overrides):
    """The loss curve of each layout, all from one initial state, and how the last state lies."""
    curves, out, fresh = {}, {}, None
    for given, counts in LAYOUTS.items():
        mine = [*overrides, *(f"--config.train.{override}" for override in given)]
        experiment = Experiment(config=load_config(config, mine))
        if fresh is None:
            abstract, state = on_one_device(experiment)
            fresh = jax.device_get(state)
        step = experiment.step()
        for name, count in counts.items():
            curves[name], state = train(experiment, step, fresh, jax.devices()[:count])
            if name == CUT:
                out = {"restored": restored(state, abstract), "cuts": cuts(state)}
    print("RESULT" + json.dumps({"curves": curves, **out}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
