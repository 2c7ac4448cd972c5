"""Partition rules: which axes a parameter gets, refusals, and a cut network's answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from scorediff.errors import UserError
from scorediff.models import MLP, DiT, UNet
from scorediff.models.partition import partition, partition_by_own_rules
from scorediff.training.fingerprint import leaf_names
from tests.models.small_backbone import NETWORKS

SIZES = {"data": 1, "fsdp": 4, "tensor": 2}


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, np.float32)


def test_rules_are_about_the_last_axes_and_the_first_match_wins():
    params = {
        "layers": {"mlp_in": {"kernel": shape(3, 16, 64), "bias": shape(3, 64)}},
        "mlp_in": {"kernel": shape(16, 64)},
        "conv": {"kernel": shape(3, 3, 16, 32)},
    }
    rules = (
        (r"^mlp_in/kernel$", (None, "fsdp")),
        (r"mlp_in/kernel$", ("fsdp", "tensor")),
        (r"conv/", ("tensor", None)),
    )
    assert partition(params, rules, SIZES) == {  # about the bias no rule says anything
        "layers/mlp_in/kernel": PartitionSpec(None, "fsdp", "tensor"),
        "mlp_in/kernel": PartitionSpec(None, "fsdp"),
        "conv/kernel": PartitionSpec(None, None, "tensor", None),
    }


def test_axes_that_do_not_divide_or_that_the_mesh_lacks_are_left_out():
    params, rules = {"kernel": shape(6, 10)}, (("kernel", ("fsdp", "tensor")),)
    assert partition(params, rules, SIZES)["kernel"] == PartitionSpec(None, "tensor")
    fsdp_only = partition({"kernel": shape(8, 10)}, rules, {"data": 2, "fsdp": 4})
    assert fsdp_only["kernel"] == PartitionSpec("fsdp", None)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (("data",), r"'kernel' has the axes \('data',\); known are \('fsdp', 'tensor'\)"),
        (("fsdp", "fsdp"), "known are"),
        (("fsdp", None, "tensor"), r"3 axes for kernel of shape \(8, 8\)"),
    ],
)
def test_rules_that_cannot_be_are_refused(axes, message):
    with pytest.raises(UserError, match=message):
        partition({"kernel": shape(8, 8)}, (("kernel", axes),), SIZES)


@pytest.mark.parametrize(
    ("network", "module"),
    [(MLP(width=8), "scorediff.models.mlp"), (UNet(channels=6), "scorediff.models.unet")],
    ids=["no rules", "odd"],
)
def test_devices_that_would_share_no_work_are_refused(network, module):
    name, params = type(network).__name__, {"qkv": {"kernel": shape(9, 9)}}
    partition_by_own_rules(network, params, {"fsdp": 4, "tensor": 1})
    said = f"tensor=2 would cut nothing of {name}: no PARTITION rule in {module} has"
    with pytest.raises(UserError, match=said):
        partition_by_own_rules(network, params, SIZES)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_large_matrix_of_a_backbone_is_cut_both_ways(name):
    build, *inputs = NETWORKS[name]
    network = build(width=32)
    params = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    specs = partition_by_own_rules(network, params, {"fsdp": 2, "tensor": 2})
    named = zip(leaf_names(params), jax.tree.leaves(params), strict=True)
    layers = [(n, leaf) for n, leaf in named if n.startswith("layers/") and leaf.ndim == 3]
    cut = {leaf.shape: specs[name] for name, leaf in layers}
    assert len(cut) >= 4
    # SwiGLU's inner width of 85 is odd, and text has 6 channels here: both divide by 2 or not
    for sizes, spec in cut.items():
        want = [n % 2 == 0 for n in sizes[1:]]
        assert [axis is not None for axis in spec[1:]] == want and spec[0] is None


def cut_and_whole(network, *inputs):
    """The largest difference between a network's answers with whole and with cut parameters."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda l: jnp.asarray(0.2 * rng.normal(size=l.shape), l.dtype), shapes)
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    specs = partition_by_own_rules(network, params["params"], mesh.shape)
    names, leaves, tree = leaf_names(params["params"]), *jax.tree.flatten(params["params"])
    place = [NamedSharding(mesh, specs.get(name, PartitionSpec())) for name in names]
    laid = {"params": jax.tree.unflatten(tree, jax.device_put(leaves, place))}
    pieces = [leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(laid)]
    whole = [leaf.size for leaf in jax.tree.leaves(laid)]
    apply = jax.jit(network.apply)
    want, got = apply(params, *inputs), apply(laid, *inputs)
    return {
        "error": float(jnp.abs(got - want).max() / jnp.abs(want).max()),
        "share": sum(pieces) / sum(whole),
    }


def main():
    """Prints as JSON what `cut_and_whole` finds, on eight host devices."""
    networks = {name: (build(width=32), *inputs) for name, (build, *inputs) in NETWORKS.items()}
    _, x, noise, _ = networks["backbone_image"]
    networks["dit"] = DiT(width=32, depth=2, heads=2), x, noise
    networks["unet"] = UNet(channels=16, multipliers=(1, 2), attention=(2,), heads=2), x, noise
    print(json.dumps({name: cut_and_whole(*rest) for name, rest in networks.items()}))


@pytest.mark.slow
def test_a_cut_network_answers_as_a_whole_one():
    root = Path(__file__).parents[2]
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    program = "from tests.models.test_partition import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    for name, found in json.loads(done.stdout).items():
        assert found["error"] < 1e-5, name  # sums over devices are taken in another order
        assert found["share"] < 0.4, name  # of the parameters, on each of the eight devices
