"""Files of torch.save, both formats: the recorded one, hand-made ones, damaged and hostile ones."""

import contextlib
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop import files, torch_file
from tests.interop.pickles import (
    MAGIC,
    Code,
    call,
    legacy,
    name,
    pickled,
    put,
    storage,
    tensor,
    whole,
    zip_file,
)

DIT = Path(__file__).parents[1] / "fixtures" / "parity" / "original" / "dit"
KINDS = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Byte": np.uint8,
    "Char": np.int8,
    "Short": np.int16,
    "Int": np.int32,
    "Long": np.int64,
    "Bool": np.bool_,
    "ComplexFloat": np.complex64,
}
NUMBERS = np.arange(12, dtype=np.float32)


def write(tmp_path, value, storages, form="zip", **more):
    path = tmp_path / f"{form}.pt"
    if form == "legacy":
        path.write_bytes(legacy(value, storages))
        return path
    return zip_file(path, value, storages, **more)


@pytest.fixture(params=["zip", "legacy"])
def form(request):
    return request.param


def test_a_training_checkpoint_of_torch_holds_the_model_of_the_safetensors_file():
    checkpoint = torch_file.read(DIT / "train_checkpoint.pt")
    assert set(checkpoint) == {"model", "ema", "opt", "args"}
    assert checkpoint["args"] == {"model": "DiT-tiny", "global_seed": 0}
    got = torch_file.state_dict(checkpoint, "ema", where="FILE")
    want, _ = files.read_safetensors(DIT / "model.safetensors")
    assert got.keys() == want.keys()
    for key, array in want.items():
        assert got[key].dtype == array.dtype
        np.testing.assert_array_equal(got[key], array)


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_number(kind, form, tmp_path):
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(KINDS[kind])
    value = {"w": whole("0", array, kind) if form == "zip" else None}
    if form == "legacy":
        value["w"] = tensor(storage("0", 6, kind), (2, 3), (3, 1))
    got = torch_file.read(write(tmp_path, value, {"0": array}, form))["w"]
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


def test_views_share_a_storage_by_offset_size_and_stride(form, tmp_path):
    of = storage("0", 12, view="zip" if form == "zip" else None)
    value = {
        "turned": tensor(of, (4, 3), (1, 4)),
        "part": tensor(of, (2, 2), (4, 1), 5),
        "row": tensor(of, (3, 4), (0, 1)),  # an expanded row
        "one": tensor(of, (), (), 7),
        "none": tensor(of, (0, 3), (3, 1)),
    }
    got = torch_file.read(write(tmp_path, value, {"0": NUMBERS}, form))
    square = NUMBERS.reshape(3, 4)
    np.testing.assert_array_equal(got["turned"], square.T)
    np.testing.assert_array_equal(got["part"], square[1:, 1:3])
    np.testing.assert_array_equal(got["row"], np.tile(square[0], (3, 1)))
    np.testing.assert_array_equal(got["one"], 7)
    assert got["none"].shape == (0, 3)
    assert np.shares_memory(got["turned"], got["part"])


def test_a_legacy_storage_may_be_part_of_another(tmp_path):
    part = storage("0", 12, view=("1", 4, 3))
    path = write(tmp_path, {"w": tensor(part, (3,), (1,))}, {"0": NUMBERS}, "legacy")
    np.testing.assert_array_equal(torch_file.read(path)["w"], NUMBERS[4:7])


def test_parameters_subclasses_and_untyped_storages(tmp_path):
    of = whole("0", NUMBERS)
    untyped = ("storage", name("torch.storage.UntypedStorage"), "0", "cpu", 48)
    arguments = (Code(put(untyped) + b"Q"), 2, (2,), (1,), False, None, name("torch.float32"))
    value = {
        "parameter": call("torch._utils._rebuild_parameter", of, True, None),
        "typed": call("torch._utils._rebuild_tensor_v3", *arguments),
        "subclass": call(
            "torch._tensor._rebuild_from_type_v2",
            name("torch._utils._rebuild_tensor_v2"),
            name("torch.nn.parameter.Parameter"),
            (storage("0", 12, view="zip"), 0, (2,), (1,), False, None),
            {"note": 1},
        ),
        "dtype": name("torch.bfloat16"),
        "size": call("torch.Size", (1, 2)),
        "device": call("torch.device", "cuda", 1),
        name(torch_file.CALLBACK): {"best": None},
    }
    pairs = b"".join(put(part) for item in value.items() for part in item)
    got = torch_file.read(write(tmp_path, Code(b"}(" + pairs + b"u"), {"0": NUMBERS}))
    np.testing.assert_array_equal(got["parameter"], NUMBERS)
    np.testing.assert_array_equal(got["typed"], NUMBERS[2:4])
    np.testing.assert_array_equal(got["subclass"], NUMBERS[:2])
    assert got["dtype"] == ml_dtypes.bfloat16
    assert (got["size"], got["device"]) == ((1, 2), "cuda:1")


def test_a_state_dict_is_found_by_its_key(tmp_path):
    checkpoint = {"state_dict": {"w": NUMBERS}, "ema": {"w": NUMBERS}, "step": 3}
    assert torch_file.state_dict(checkpoint, "ema", where="FILE") == {"w": NUMBERS}
    assert list(torch_file.state_dict({"w": NUMBERS}, where="FILE")) == ["w"]
    message = "FILE has no mapping of names to tensors {}; these parts have: state_dict, ema"
    for key, part in ((None, "itself"), ("model", "under 'model'"), ("step", "under 'step'")):
        with pytest.raises(UserError, match=message.format(part)):
            torch_file.state_dict(checkpoint, key, where="FILE")
    with pytest.raises(UserError, match=r"FILE has no mapping of names to tensors itself$"):
        torch_file.state_dict([1], where="FILE")


# Files that mean harm


def test_code_is_refused_by_name_and_not_run(form, tmp_path):
    ran = tmp_path / "ran"
    value = {"model": call("posix.system", f"touch {ran}")}
    with pytest.raises(
        UserError, match=r"refers to posix\.system.*save its tensors as safetensors"
    ):
        torch_file.read(write(tmp_path, value, {}, form))
    assert not ran.exists()


@pytest.mark.parametrize(
    "member", ["/etc/passwd", "../outside", "archive/../../x", "archive/data/../../x", "a\\..\\x"]
)
def test_members_outside_the_folder_are_refused(member, tmp_path):
    path = zip_file(
        tmp_path / "x.pt", {"w": whole("0", NUMBERS)}, {"0": NUMBERS}, extra=[(member, "")]
    )
    with pytest.raises(UserError, match=r"outside its folder|not one of torch.save"):
        torch_file.read(path)


@pytest.mark.parametrize("key", ["../data.pkl", "/etc/passwd", "9", ""])
def test_storages_are_members_of_the_archive_alone(key, tmp_path):
    path = zip_file(tmp_path / "x.pt", {"w": whole(key, NUMBERS)}, {"0": NUMBERS})
    with pytest.raises(UserError, match="lacks the storage"):
        torch_file.read(path)


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((13,), (1,), 0),
        ((12,), (1,), 1),
        ((2, 2), (11, 1), 0),
        ((4,), (-1,), 3),
        ((-4,), (1,), 0),
        ((1 << 40,), (0,), 0),
        ((1 << 40, 1 << 40), (0, 0), 0),
        ((2, 2), (1,), 0),
        ((1,), (1,), 1 << 70),
    ],
)
def test_tensors_beyond_their_storage_are_refused(size, stride, offset, form, tmp_path):
    of = storage("0", 12, view="zip" if form == "zip" else None)
    value = {"w": tensor(of, size, stride, offset)}
    with pytest.raises(UserError, match="is damaged"):
        torch_file.read(write(tmp_path, value, {"0": NUMBERS}, form))


def test_a_tensor_is_no_storage_of_another(tmp_path):
    """A row repeated by a stride of 0 has more elements than bytes behind it."""
    repeated = tensor(storage("0", 12, view="zip"), (1 << 16,), (0,))
    path = write(tmp_path, {"w": tensor(repeated, (1 << 16,), (1,))}, {"0": NUMBERS})
    with pytest.raises(UserError, match="a tensor without a storage of its own"):
        torch_file.read(path)


def test_a_storage_of_another_size_than_it_declares_is_refused(form, tmp_path):
    for count in (3, 1 << 50):
        of = storage("0", count, view="zip" if form == "zip" else None)
        value = {"w": tensor(of, (3,), (1,))}
        with pytest.raises(UserError, match=r"has 48 bytes|is damaged"):
            torch_file.read(write(tmp_path, value, {"0": NUMBERS}, form))


def test_an_archive_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    path = zip_file(tmp_path / "x.pt", {"w": whole("0", NUMBERS)}, {"0": NUMBERS})
    data = bytearray(path.read_bytes())
    where = data.index(b"PK\x01\x02")  # the first entry of the directory: sizes at 20 and 24
    data[where + 20 : where + 28] = struct.pack("<II", 1 << 31, 1 << 31)
    path.write_bytes(data)
    with pytest.raises(UserError, match="members are larger than the file"):
        torch_file.read(path)


@pytest.mark.parametrize("place, value, said", [(6, 99, "version"), (8, 1, "encrypted")])
def test_an_archive_of_a_later_version_or_with_a_password_is_refused(place, value, said, tmp_path):
    path = zip_file(tmp_path / "x.pt", {"w": whole("0", NUMBERS)}, {"0": NUMBERS})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")  # the version that it needs is at 6, its flags at 8
    while entry >= 0:
        data[entry + place] |= value
        entry = data.find(b"PK\x01\x02", entry + 1)
    path.write_bytes(data)
    with pytest.raises(UserError, match=said):
        torch_file.read(path)


def test_a_compressed_archive_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * 100_000 + b"N.")
    with pytest.raises(UserError, match="is compressed"):
        torch_file.read(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        torch_file.read(tmp_path / "nothing.pt")
    path = tmp_path / "x.pt"
    for data in (b"", b"text", pickled({"w": 1}), MAGIC[:-1]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"is not a file of torch.save"):
            torch_file.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/constants.txt", "1")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        torch_file.read(path)


def test_other_byte_orders_and_versions_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(legacy({}, {}, little=False))
    with pytest.raises(UserError, match="another byte order"):
        torch_file.read(path)
    path.write_bytes(MAGIC + pickled(1000) + pickled({}))
    with pytest.raises(UserError, match=r"not of version 1001|ends"):
        torch_file.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled({}))
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(UserError, match="another byte order"):
        torch_file.read(path)


def test_damaged_files_end_in_a_user_error_or_in_data(form, tmp_path):
    of = storage("0", 12, view="zip" if form == "zip" else None)
    value = {"w": tensor(of, (3, 4), (4, 1)), "step": 5}
    path = write(tmp_path, value, {"0": NUMBERS}, form)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for end in range(1, len(data), 11):
        path.write_bytes(data[:end])
        with pytest.raises(UserError):
            torch_file.read(path)
    for _ in range(200):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(UserError):
            torch_file.read(path)
