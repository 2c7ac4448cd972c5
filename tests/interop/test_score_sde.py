"""score_sde's ncsnpp: the numbering of its modules, checkpoints both ways, sizes, refusals."""

import copy
from pathlib import Path

import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop import files, formats, layout, score_sde
from scorediff.interop.score_sde import NCSNPP

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity" / "original"
FOLDER = FIXTURES / "score_sde_ncsnpp"
CONFIG = files.read_json(FOLDER / "config.json")


def changed(model=(), data=()):
    config = copy.deepcopy(CONFIG)
    config["config"]["model"].update(model)
    config["config"]["data"].update(data)
    return config


PYRAMIDS = {"progressive": "output_skip", "progressive_input": "input_skip", "ch_mult": [1, 1, 2]}


@pytest.mark.parametrize("model", [{}, PYRAMIDS, {"skip_rescale": False, "attn_resolutions": []}])
def test_configs_go_there_and_back(model):
    network = NCSNPP.network(changed(model))
    assert NCSNPP.network(NCSNPP.config(network)) == network


def test_modules_are_numbered_in_the_order_of_their_calls():
    network = NCSNPP.network(changed(PYRAMIDS | {"num_res_blocks": 1}))
    links = layout.links(NCSNPP.entries(network), formats.shapes(NCSNPP, network))
    module = {ours.rpartition("/")[0]: link.names[0][0] for ours, link in links.items()}
    order = ["down0_0", "down1", "down1_0", "down2", "down2_0", "middle_0", "middle_1"]
    order += ["up2_0", "up2_1", "up2", "up1_0", "up1_1", "up1", "up0_0", "up0_1"]
    for number, place in enumerate(order):
        kind = {"d": "halve", "u": "double"}.get(place[0]) if "_" not in place else "residual"
        assert module[f"{place}_{kind}/conv_in"].startswith(f"ResnetBlockBigGANpp_{number}.")
    for number, place in enumerate(["conv_in", "up2_pyramid", "up1_pyramid", "conv_out"]):
        assert module[place].startswith(f"Conv_{number}.")
    assert module["down2_pyramid"].startswith("Combine_1.Conv_0")
    assert module["up1_attention/attention/qkv"].startswith("AttnBlockpp_2.NIN_0")
    assert module["norm_out"].startswith("GroupNorm_2.")


def test_a_checkpoint_that_is_written_is_read_again(tmp_path):
    tensors = score_sde.read_checkpoint(FOLDER / "checkpoint_1")
    score_sde.write_checkpoint(tmp_path / "checkpoint_0", tensors)
    again = score_sde.read_checkpoint(tmp_path / "checkpoint_0")
    assert again.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(again[name], array)


def test_missing_and_extra_tensors_are_refused():
    tensors = score_sde.read_checkpoint(FOLDER / "checkpoint_1")
    name = "Downsample_0.Conv2d_0.weight"
    with pytest.raises(UserError, match=f"lacks: {name}"):
        formats.from_tensors(NCSNPP, CONFIG, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(UserError, match=r"beyond the network of its config: Conv_2\.bias"):
        formats.from_tensors(NCSNPP, CONFIG, tensors | {"Conv_2.bias": np.zeros(3)})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"resblock_type": "ddpm"}, "resblock_type='ddpm' is not supported"),
        ({"progressive": "residual"}, "progressive='residual' is not supported"),
        ({"fir": False}, "fir=False is not supported here, only True"),
        ({"embedding_type": "positional"}, "scale_by_sigma=True is not supported"),
        (PYRAMIDS | {"progressive_combine": "cat"}, "progressive_combine='cat' is not"),
        ({"nf": None}, "lacks model.nf"),
        ({"depth": 3}, "a field that is not known here: depth"),
    ],
)
def test_configs_that_are_not_supported_are_refused_by_name(model, message):
    with pytest.raises(UserError, match=message):
        NCSNPP.network(changed(model))


def test_a_config_without_its_sections_is_refused():
    with pytest.raises(UserError, match='no section "model"'):
        NCSNPP.network({"data": {}})
    with pytest.raises(UserError, match=r"lacks data\.image_size"):
        NCSNPP.network({"model": CONFIG["config"]["model"], "data": {"num_channels": 3}})
