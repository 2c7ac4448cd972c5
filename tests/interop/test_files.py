"""Hub folders: single files, shards, variants; damaged and hostile ones are refused."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from scorediff.errors import StorageError, UserError
from scorediff.interop import files, formats

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.arange(2, dtype=np.float16),
    "b.weight": np.arange(4).astype(ml_dtypes.bfloat16),
    "c.index": np.arange(3),
}
INDEX = "diffusion_pytorch_model.safetensors.index.json"


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype and got[name].tobytes() == array.tobytes()


def shards(folder, places=None, **index):
    """Two shards of TENSORS and an index, which says `places` if given."""
    one, two = "model-1.safetensors", "model-2.safetensors"
    true = {name: one if name.startswith("a") else two for name in TENSORS}
    for file in (one, two):
        part = {name: TENSORS[name] for name in TENSORS if true[name] == file}
        files.write_safetensors(folder / file, part)
    index = {"weight_map": true if places is None else {**true, **places}, **index}
    (folder / INDEX).write_text(json.dumps(index))


def test_a_folder_is_written_and_read_back(tmp_path):
    files.write_folder(tmp_path / "new", {"_class_name": "X", "width": 3}, TENSORS)
    assert_same(files.read_folder(tmp_path / "new"), TENSORS)
    assert files.read_json(tmp_path / "new" / "config.json") == {"_class_name": "X", "width": 3}
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "kept").write_text("kept")
    for folder in (tmp_path, tmp_path / "kept"):
        with pytest.raises(UserError, match="nothing is overwritten"):
            files.write_folder(folder, {}, TENSORS)
    assert (tmp_path / "kept").read_text() == "kept"


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        files.write_safetensors(tmp_path / "no" / "x.safetensors", TENSORS)
    target = tmp_path / "x.safetensors"
    target.mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        files.write_safetensors(target, TENSORS)
    assert list(tmp_path.iterdir()) == [target]


def test_metadata_comes_back(tmp_path):
    path = tmp_path / "x.safetensors"
    files.write_safetensors(path, TENSORS, {"rank": "4"})
    tensors, metadata = files.read_safetensors(path)
    assert_same(tensors, TENSORS)
    assert metadata == {"format": "pt", "rank": "4"}


def test_a_transposed_array_is_written_as_it_reads(tmp_path):
    path = tmp_path / "x.safetensors"
    files.write_safetensors(path, {"w": TENSORS["a.weight"].T})
    np.testing.assert_array_equal(files.read_safetensors(path)[0]["w"], TENSORS["a.weight"].T)


def test_shards_are_read_by_their_index(tmp_path):
    shards(tmp_path, metadata={"total_size": 1})
    assert_same(files.read_folder(tmp_path), TENSORS)


def test_variants_are_read_by_name_alone(tmp_path):
    files.write_safetensors(tmp_path / "model.fp16.safetensors", TENSORS)
    assert_same(files.read_folder(tmp_path, "fp16"), TENSORS)
    with pytest.raises(
        UserError, match=r"weights without a variant .*has model\.fp16\.safetensors"
    ):
        files.read_folder(tmp_path)
    with pytest.raises(UserError, match="variant bf16"):
        files.read_folder(tmp_path, "bf16")
    with pytest.raises(UserError, match="no safetensors weights without a variant"):
        files.read_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "place",
    ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", None, 3, ["x"], {}],
)
def test_an_index_names_files_of_its_folder_alone(tmp_path, place):
    files.write_safetensors(tmp_path / "x.safetensors", TENSORS)
    folder = tmp_path / "model"
    folder.mkdir()
    shards(folder, {"a.weight": place})
    with pytest.raises(UserError, match="which is not a file of its own folder"):
        files.read_folder(folder)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"d.weight": "model-1.safetensors"}, "has d.weight, which its shards have not"),
        ({"a.bias": "model-2.safetensors"}, "model-1.safetensors disagree about a.bias"),
        ({"a.bias": "model-3.safetensors"}, "model-1.safetensors disagree about a.bias"),
        ({"d": "model-3.safetensors"}, "cannot read .*model-3"),
    ],
)
def test_an_index_and_its_shards_must_agree(tmp_path, places, message):
    shards(tmp_path, places)
    with pytest.raises(UserError, match=message):
        files.read_folder(tmp_path)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": ["a"]}'])
def test_an_index_without_a_map_is_refused(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(UserError, match="has no weight_map"):
        files.read_folder(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[1]", "should hold a JSON object, not a list"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_damaged_json_is_refused(tmp_path, data, message):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(UserError, match=message):
        files.read_json(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        files.read_json(tmp_path / "other.json")


def header(dtype="F32", shape=(2,), offsets=(0, 8)):
    entry = {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
    text = json.dumps(entry).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        struct.pack("<Q", 1 << 60) + b"{}",
        header() + b"1234",
        header(shape=(1 << 40, 1 << 40)) + b"12345678",
        header(offsets=(0, 1 << 50)) + b"12345678",
        header(dtype="F31") + b"12345678",
        header(dtype="F8_E4M3", offsets=(0, 2)) + b"12",
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.safetensors"):
        files.read_safetensors(path)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"_class_name": "UNet2DModel"}, "UNet2DModel"),
        (
            {"_class_name": "UNet2DModel", "down_block_types": ["SkipDownBlock2D"]},
            "UNet2DModel",
        ),
        ({"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
        (
            {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero"},
            "DiTTransformer2DModel",
        ),
        ({"_class_name": "Transformer2DModel"}, "Transformer2DModel"),
    ],
)
def test_a_config_names_its_class(config, name):
    assert formats.class_of(config, "FILE") == name


@pytest.mark.parametrize("config", [{}, {"architectures": []}, {"architectures": {"a": 1}}])
def test_a_config_without_a_class_is_refused(config):
    with pytest.raises(UserError, match="FILE names no class"):
        formats.class_of(config, "FILE")
    with pytest.raises(UserError, match=r"no reader for os\.system; there are .*CLIPTextModel"):
        formats.known("os.system")
