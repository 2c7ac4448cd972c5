"""How a run's state lies on eight devices, asked of a mesh without any."""

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from scorediff.configfile import load_config
from scorediff.errors import UserError
from scorediff.experiment import Experiment
from scorediff.training.fingerprint import leaf_names
from scorediff.training.mesh import AXES
from tests.experiment.commands import ROOT

TREES = ("params", "ema/main", "opt_state/0/0/mu", "opt_state/0/0/nu")
WANTED = {
    "layers/attention/qkv/kernel": (None, "fsdp", "tensor"),
    "layers/attention/out/kernel": (None, "tensor", "fsdp"),
    "layers/mlp_in/kernel": (None, "fsdp", "tensor"),
    "layers/mlp_out/kernel": (None, "tensor", "fsdp"),
    "layers/mlp_in/bias": (None, "fsdp"),  # no rule: the largest dimension
    "condition/label/embedding": (None, "fsdp"),
}


def layout(config, *, tensor):
    """Leaf name -> PartitionSpec, of a tiny experiment on 2 x 4 devices or on 2 x 2 x 2."""
    experiment = Experiment(config=load_config(f"{ROOT}/configs/{config}.py:tiny"))
    state = experiment.abstract_state(AbstractMesh((2, 4 // tensor, tensor), AXES))
    leaves = zip(leaf_names(state), jax.tree.leaves(state), strict=True)
    return {name: leaf.sharding.spec for name, leaf in leaves}


def test_a_transformer_lies_by_its_rules():
    found = layout("digits_dit", tensor=2)
    for tree in TREES:
        assert {name: tuple(found[f"{tree}/{name}"]) for name in WANTED} == WANTED
    assert found["step"] == PartitionSpec()


def test_a_network_without_rules_shares_its_state_but_not_its_work():
    found = layout("gmm2d", tensor=1)
    assert any("fsdp" in spec for name, spec in found.items() if name.startswith("params/"))
    with pytest.raises(UserError, match="tensor=2 would cut nothing of MLP: no PARTITION rule in"):
        layout("gmm2d", tensor=2)
