"""Run as a program with eight forced host devices; prints what the tests compare, as JSON."""

import json
import sys

import jax

from scorediff.training.checkpoint import Checkpoints
from scorediff.training.fingerprint import leaf_names, marks
from scorediff.training.mesh import abstract_state, make_mesh
from scorediff.training.stored import read_params
from tests.training.training_toy import ROOT_KEY, assemble, batch_at, init_state


def losses(steps=6, **arguments):
    _, state, step = assemble(**arguments)
    rows = []
    for i in range(steps):
        state, metrics = step(state, batch_at(i), jax.random.key(ROOT_KEY))
        rows.append(float(metrics["loss"]))
    return rows, state


def fingerprints(tree):
    return {name: mark.fingerprint for name, mark in marks(tree).items()}


def curves(devices):
    return {
        "1": losses(devices=devices[:1])[0],
        "4": losses(devices=devices[:4])[0],
        "8": losses(devices=devices)[0],
        "8 = 2 x 4": losses(devices=devices, fsdp=4)[0],
        "4 accumulated": losses(devices=devices[:4], fsdp=2, accumulate=2)[0],
        "4 pmap": losses(devices=devices[:4], mode="pmap")[0],
        "4 pmap accumulated": losses(devices=devices[:4], mode="pmap", accumulate=2)[0],
    }


def resharded(directory, state, devices):
    """Fingerprints of a state saved on 2 x 2 x 2 devices and restored on other meshes."""
    checkpoints = Checkpoints(directory)
    checkpoints.save(state)
    checkpoints.close()
    found = {"saved": fingerprints(state)}
    for name, count, fsdp in (("one", 1, 1), ("two", 2, 2), ("eight", 8, 8)):
        abstract = abstract_state(init_state, make_mesh(devices=devices[:count], fsdp=fsdp))
        restored = checkpoints.restore_latest(abstract)
        laid = jax.tree.map(lambda x, a: x.sharding == a.sharding, restored, abstract)
        assert all(jax.tree.leaves(laid))
        found[name] = fingerprints(restored)
    average, _ = read_params(directory, abstract.params, profile="power")
    found["average"] = fingerprints({"ema": {"power": average}})
    return found


def shares(state):
    """Shapes of what one device holds of each leaf."""
    leaves = zip(leaf_names(state), jax.tree.leaves(state), strict=True)
    return {name: list(leaf.addressable_shards[0].data.shape) for name, leaf in leaves}


def main(directory):
    devices = jax.devices()
    rows, state = losses(devices=devices, fsdp=2, tensor=2)
    out = {
        "curves": {**curves(devices), "8 = 2 x 2 x 2": rows},
        "resharded": resharded(directory, state, devices),
        "shares": shares(state),
    }
    print("RESULT" + json.dumps(out))


if __name__ == "__main__":
    main(sys.argv[1])
