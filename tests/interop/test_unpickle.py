"""The reader of pickles: plain data comes back, code is refused by name, bombs do not go off."""

import argparse
import collections
import contextlib
import io
import pathlib
import pickle  # the writer; what is tested never imports it
import time

import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop.plain import plain
from scorediff.interop.unpickle import load
from tests.interop.pickles import Code, call, instance, name, pickled, put

DATA = {
    "numbers": [0, -1, 255, 65536, -(2**31), 2**70, -(2**100), 1.5, 1e-300, True, False, None],
    "text": ["", "naïve", "x" * 300, "😀"],
    "bytes": [b"", b"\x00\xff", b"y" * 300],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "sets": [set(), {1, 2}, frozenset({3})],
    "nested": {1: {"a": [[]]}, "b": ({},)},
    "complex": 1 - 2j,
}
ARRAYS = {
    "float": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), np.int8),
    "big-endian": np.arange(3, dtype=">i4"),
    "text": np.array(["ab", "c"]),
}


def read(data, size=None):
    size = len(data) if size is None else size
    return load(io.BytesIO(data), plain, size=size, where="FILE")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_comes_back_in_every_protocol(protocol):
    assert read(pickle.dumps(DATA, protocol)) == DATA


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_come_back_in_every_protocol(protocol):
    got = read(pickle.dumps(ARRAYS, protocol))
    for key, want in ARRAYS.items():
        np.testing.assert_array_equal(got[key], want)
        assert got[key].dtype.newbyteorder("=") == want.dtype.newbyteorder("=")


@pytest.mark.parametrize("protocol", range(6))
def test_objects_that_are_data_come_back_as_mappings(protocol):
    ordered = collections.OrderedDict(x=1, y=2)
    counts = collections.defaultdict(list, a=[1])
    space = argparse.Namespace(lr=0.1, names=["a"])
    got = read(pickle.dumps([ordered, counts, space, pathlib.PosixPath("/a/b")], protocol))
    assert got == [{"x": 1, "y": 2}, {"a": [1]}, {"lr": 0.1, "names": ["a"]}, "/a/b"]


def test_what_refers_to_itself_comes_back():
    value = [1]
    value.append(value)
    got = read(pickle.dumps(value))
    assert got[0] == 1 and got[1] is got


@pytest.mark.parametrize(
    "function",
    ["os.system", "posix.system", "builtins.eval", "__builtin__.exec", "subprocess.Popen"],
)
@pytest.mark.parametrize("opcode", ["c", "stack", "i"])
def test_code_is_refused_by_name_and_not_run(function, opcode, tmp_path):
    module, last = function.rsplit(".", 1)
    command = f"touch {tmp_path / 'ran'}"
    if opcode == "c":
        data = pickled(call(function, command))
    elif opcode == "stack":
        data = b"\x80\x04" + put(module) + put(last) + b"\x93" + put((command,)) + b"R."
    else:
        data = b"(" + put(command) + f"i{module}\n{last}\n".encode() + b"."
    with pytest.raises(UserError) as refused:
        read(data)
    assert ("INST" if opcode == "i" else function.replace("__builtin__", "")) in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "unknown", ["my.Model", "numpy.load", "numpy._core.multiarray.fromfile", "builtins.getattr"]
)
def test_an_unknown_name_is_refused_even_where_it_is_not_called(unknown):
    with pytest.raises(UserError, match=f"FILE refers to {unknown}, which is neither a tensor"):
        read(pickled({"a": name(unknown)}))


def test_names_of_known_functions_are_not_ways_to_others():
    """Attributes, states and results of known functions do not become callable."""
    for data in (
        Code(put("text") + put(()) + b"R"),
        Code(name("builtins.list") + put(()) + b"R"),
        Code(call("argparse.Namespace") + put({"__class__": 1}) + b"b" + put(()) + b"R"),
        Code(name("builtins.set") + put({"build": 1}) + b"b"),
        call("copyreg._reconstructor", "x", name("builtins.object"), None),
    ):
        with pytest.raises(UserError, match="FILE is damaged"):
            read(pickled(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02N",
        b"K\x01K\x02s.",
        b"]K\x01u.",
        b"(.",
        b"h\x05.",
        b"\x85.",
        b"e.",
        b"R.",
        b"b.",
        b"\xff.",
        b"\x82\x01.",
        b"X\xff\xff\xff\xffabc.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x8b\xff\xff\xff\x7f\x01.",
        b"}]K\x01s.",
        b"N\x86Q.",
    ],
)
def test_damaged_pickles_are_refused(data):
    with pytest.raises(UserError, match="FILE"):
        read(data)


def test_truncated_and_changed_pickles_end_in_a_user_error_or_in_data():
    data = pickle.dumps([DATA, ARRAYS], 2)
    rng = np.random.default_rng(0)
    for end in range(0, len(data), 7):
        with pytest.raises(UserError):
            read(data[:end])
    for _ in range(400):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        with contextlib.suppress(UserError):
            read(bytes(changed))


def test_a_key_nested_without_end_does_not_recurse():
    deep = b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns."
    with pytest.raises(UserError, match="a key of type tuple"):
        read(deep)
    assert read(b"\x80\x02" + b")" + b"\x85" * 100_000 + b".")  # not a key: merely odd


def test_keys_that_would_collide_are_refused():
    with pytest.raises(UserError, match="a key of type int"):
        read(pickled({2**61 - 1: None}))


def test_memory_beyond_the_size_of_the_file_is_refused():
    """One text of 1 MB, turned into bytes 1000 times by 12 bytes of the file each."""
    text = put("x" * (1 << 20)) + b"q\x00" + put("latin1") + b"q\x01"
    again = b"0" + name("_codecs.encode") + b"h\x00h\x01\x86R"
    start = time.process_time()
    with pytest.raises(UserError, match="asks for far more memory"):
        read(b"\x80\x02" + text + b"0" + again * 1000 + b".")
    assert time.process_time() - start < 5


def test_memory_by_states_of_arrays_is_counted():
    """Numbers of the other byte order are copied for every array that has them."""
    swapped = put((3, ">", None, None, None, -1, -1, 0))
    fresh = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), (0,), b"b")
    blob = put(bytes(1 << 20)) + b"q\x00"
    again = b"0" + fresh + b"(" + put(1) + put((1 << 19,))
    again += call("numpy.dtype", "i2", False, True) + swapped + b"b" + put(False) + b"h\x00tb"
    with pytest.raises(UserError, match="asks for far more memory"):
        read(b"\x80\x02" + blob + again * 200 + b".")


@pytest.mark.parametrize("code", ["O", "V8", "f4,f4"])
def test_arrays_of_objects_are_refused(code):
    fresh = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), (0,), b"b")
    state = put((1, (1,), call("numpy.dtype", code, False, True), False, b"12345678"))
    with pytest.raises(UserError, match="an array of type"):
        read(pickled(Code(fresh + state + b"b")))


def test_a_state_is_for_records_and_fresh_arrays_alone():
    assert read(pickled(instance("argparse.Namespace", {"a": 1}))) == {"a": 1}
    assert read(pickled(instance("collections.OrderedDict", {"_metadata": 1}))) == {}
    with pytest.raises(UserError, match="list with a state"):
        read(pickled(Code(b"]" + put({"a": 1}) + b"b")))
    with pytest.raises(UserError, match="attributes from a list"):
        read(pickled(instance("argparse.Namespace", [("a", 1)])))
