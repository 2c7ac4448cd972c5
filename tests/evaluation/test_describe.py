"""What describe counts, against hand counts, and the command."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import describe as command
from scorediff.configfile import load_config
from scorediff.errors import UserError
from scorediff.evaluation.describe import Cost, Description, cost, count_flops, without_data
from scorediff.experiment import Experiment

CONFIG = f"--config={Path(__file__).parents[2]}/configs/gmm2d.py"

B, D, H, LAYERS = 8, 32, 48, 5
PRODUCT = 2 * B * D * D  # of one square layer


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


def scanned(weights, x):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]


def test_a_matrix_network_has_the_flops_counted_by_hand():
    def network(first, second, x):
        return jax.nn.relu(x @ first) @ second

    found = count_flops(network, floats(D, H), floats(H, D), floats(B, D))
    assert found == 2 * B * D * H + B * H + 2 * B * H * D


def test_scanned_layers_count_as_often_as_they_run():
    # a turn of the loop costs a few operations of its own
    assert count_flops(scanned, floats(LAYERS, D, D), floats(B, D)) == pytest.approx(
        LAYERS * PRODUCT, rel=1e-3
    )


def test_scans_within_scans_and_within_other_programs_count_too():
    @jax.jit
    def twice(weights, x):
        body = jax.checkpoint(lambda x, _: (scanned(weights, x), None))
        return jax.lax.scan(body, x, None, length=3)[0]

    found = count_flops(twice, floats(LAYERS, D, D), floats(B, D))
    assert found == pytest.approx(3 * LAYERS * PRODUCT, rel=2e-3)


@pytest.mark.parametrize(("remat", "products"), [(False, 3), (True, 4)])
def test_a_gradient_is_three_products_a_layer_and_recomputing_one_more(remat, products):
    def layer(x, w):
        return x @ w, None

    def loss(weights, x):
        body = jax.checkpoint(lambda x, w: (jnp.sin(x @ w), None)) if remat else layer
        return jax.lax.scan(body, x, weights)[0].sum()

    found = count_flops(jax.grad(loss), floats(LAYERS, D, D), floats(B, D))
    assert found == pytest.approx(products * LAYERS * PRODUCT, rel=0.05)


def test_what_the_backend_does_not_tell_is_said_to_be_unknown(monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", lambda self: None)
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: None)
    found = cost(jnp.sin, floats(3))
    assert found.flops is None and found.memory is None and found.compile_seconds > 0
    known = Cost(flops=4e9, memory=3 * 2**20, compile_seconds=1.0)
    description = Description(
        parameters={"layers": 12345},
        nbytes={"parameters": 4 * 12345},
        batch_size=2,
        forward=known,
        step=found,
        device="some chip",
    )
    lines = dict(line.split("  ", 1) for line in str(description).splitlines()[3:])
    assert lines["forward, FLOPs a sample"].strip() == "2 G"
    assert lines["forward, activation memory"].strip() == "3.0 MiB"
    assert lines["training step, FLOPs"].strip().startswith("not given by this backend")
    assert lines["training step, activation memory"].strip() == "not given by this backend"


def test_activation_memory_holds_what_the_backward_pass_needs():
    def loss(weights, x):
        return jnp.sin(scanned(weights, x)).sum()

    found = cost(jax.grad(loss), floats(LAYERS, D, D), floats(B, D))
    assert found.memory >= 4 * LAYERS * B * D  # the input of every layer, float32


@pytest.mark.slow
def test_the_command_describes_a_config_without_data_or_parameters(capsys):
    before = len(jax.live_arrays())
    command.main([f"{CONFIG}:tiny", "--config.data.pipeline.batch_size=4"])
    assert len(jax.live_arrays()) <= before
    out = capsys.readouterr().out
    assert "batch of 4" in out and "not given" not in out
    config = without_data(load_config(f"{CONFIG}:tiny".removeprefix("--config=")))
    params = jax.eval_shape(Experiment(config=config).init_params, jax.random.key(0))
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    table = dict(line.rsplit("  ", 1) for line in out.splitlines()[1:])
    numbers = {name.strip(): text.strip() for name, text in table.items()}
    assert numbers["parameters"] == f"{total:,}"
    parts = [int(numbers[name].replace(",", "")) for name in params]
    assert sum(parts) == total
    assert numbers["parameters, memory"] == f"{4 * total / 2**10:.1f} KiB"
    assert numbers["optimiser, memory"] == f"{8 * total / 2**10:.1f} KiB"  # Adam's two moments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=.* is missing"),
        ([CONFIG, "--workdir=x"], "unknown flag --workdir"),
        ([CONFIG, "--config.train.step=3"], "step"),
    ],
)
def test_mistakes_are_user_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        command.main(arguments)
