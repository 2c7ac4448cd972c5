"""score_sde's msgpack checkpoints: the recorded one, and files that are not whole."""

from pathlib import Path

import numpy as np
import pytest
from flax import serialization

from scorediff.errors import UserError
from scorediff.interop import msgpack_file

NCSNPP = Path(__file__).parents[1] / "fixtures" / "parity" / "original" / "score_sde_ncsnpp"


def test_the_averaged_parameters_and_the_step_of_a_checkpoint():
    checkpoint = msgpack_file.read(NCSNPP / "checkpoint_1")
    step, params = msgpack_file.averaged(checkpoint, where="FILE")
    assert step == 100
    assert params["Conv_0/kernel"].shape[:2] == (3, 3)
    assert sum(array.size for array in params.values()) == 48763  # the fixture's own count


def test_types_come_back(tmp_path):
    tree = {"a": {"b": np.arange(3, dtype=np.int8), "c": np.float32(2)}, "d": np.zeros((0, 2))}
    path = tmp_path / "checkpoint"
    path.write_bytes(serialization.msgpack_serialize(tree))
    got = msgpack_file.read(path)
    np.testing.assert_array_equal(got["a"]["b"], tree["a"]["b"])
    assert got["a"]["b"].dtype == np.int8 and got["a"]["c"] == 2 and got["d"].shape == (0, 2)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x93\x01", b"\x80\x80"])
def test_damaged_files_are_refused(data, tmp_path):
    path = tmp_path / "checkpoint"
    path.write_bytes(data)
    with pytest.raises(UserError, match="is not a whole msgpack file of Flax"):
        msgpack_file.read(path)


def test_a_truncated_checkpoint_is_refused(tmp_path):
    data, path = (NCSNPP / "checkpoint_1").read_bytes(), tmp_path / "checkpoint"
    for end in range(1, len(data), len(data) // 20):
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match="is not a whole msgpack file"):
            msgpack_file.read(path)


def test_arrays_of_objects_and_of_false_sizes_are_refused(tmp_path):
    path = tmp_path / "checkpoint"
    for old, new in ((b"float64", b"objectX"), (b"\x91\x03", b"\x91\x7f")):
        data = serialization.msgpack_serialize({"a": np.zeros(3)})
        assert old in data
        path.write_bytes(data.replace(old, new, 1))
        with pytest.raises(UserError, match="is not a whole msgpack file"):
            msgpack_file.read(path)


def test_other_contents_are_refused(tmp_path):
    path = tmp_path / "checkpoint"
    path.write_bytes(b"\x01")
    with pytest.raises(UserError, match="holds a int, not a mapping"):
        msgpack_file.read(path)
    with pytest.raises(UserError, match="cannot read"):
        msgpack_file.read(tmp_path / "nothing")
    with pytest.raises(UserError, match="FILE has no params_ema and step; it has params"):
        msgpack_file.averaged({"params": {}}, where="FILE")
    with pytest.raises(UserError, match="params_ema/a is not an array"):
        msgpack_file.averaged({"params_ema": {"a": 1}, "step": 1}, where="FILE")
