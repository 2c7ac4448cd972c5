"""EDM's network pickles: what persistent objects hold is read, the code in them is not run."""

import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop import edm_pickle
from tests.interop.pickles import Code, call, instance, legacy, name, pickled, put, storage, tensor

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
FREQUENCIES = np.array([1.0, 0.5], np.float16)


def blob(array, kind="Float"):
    """A tensor as a plain pickle has it: its storage is a legacy torch file of its own."""
    data = legacy(storage("7", array.size, kind), {"7": array})
    stride = tuple(s // array.itemsize for s in array.strides)
    return tensor(call("torch.storage._load_from_bytes", data), array.shape, stride)


def easy(pairs):
    """A dictionary of the class that EDM uses for settings."""
    items = b"".join(put(part) for item in pairs.items() for part in item)
    return Code(name("dnnlib.util.EasyDict") + b")\x81(" + items + b"u")


def persistent(class_name, state, source="raise SystemExit", **changes):
    meta = {
        "type": "class",
        "version": 6,
        "module_src": source,
        "class_name": class_name,
        "state": state,
        **changes,
    }
    return call("torch_utils.persistence._reconstruct_persistent_obj", easy(meta))


def module(parameters=(), buffers=(), children=(), **more):
    """The attributes of a torch module."""
    return {
        "training": False,
        "_parameters": dict(parameters),
        "_buffers": dict(buffers),
        "_non_persistent_buffers_set": call("builtins.set", ["scratch"]),
        "_modules": dict(children),
        **more,
    }


def network(source="raise SystemExit"):
    conv = persistent("Conv2d", module({"weight": blob(WEIGHT), "bias": None}), source)
    encoder = instance("torch.nn.modules.container.ModuleDict", module(children={"8x8_conv": conv}))
    scratch = {"freqs": blob(FREQUENCIES, "Half"), "scratch": blob(WEIGHT)}
    inner = module({}, scratch, {"enc": encoder}, _init_kwargs=easy({"model_channels": 4}))
    unet = persistent("SongUNet", inner, source)
    outer = module(
        children={"model": unet, "nothing": None},
        sigma_data=1,
        _init_args=(32,),
        _init_kwargs=easy({"label_dim": 0}),
    )
    return persistent("EDMPrecond", outer, source)


def write(tmp_path, value):
    path = tmp_path / "network.pkl"
    path.write_bytes(pickled(value))
    return path


def test_a_network_is_its_class_its_arguments_and_its_tensors(tmp_path):
    settings = easy({"resolution": 32})
    loss = persistent("EDMLoss", {"P_mean": -1})
    path = write(tmp_path, {"ema": network(), "loss_fn": loss, "dataset_kwargs": settings})
    got = edm_pickle.read(path)
    assert got["dataset_kwargs"] == {"resolution": 32}
    assert got["loss_fn"] == {"P_mean": -1} and got["loss_fn"].of == "EDMLoss"
    ema = got["ema"]
    assert (ema.class_name, ema.arguments, ema.positional) == (
        "EDMPrecond",
        {"label_dim": 0},
        (32,),
    )
    assert ema.parts == {"model": ("SongUNet", {"model_channels": 4})}
    assert sorted(ema.tensors) == ["model.enc.8x8_conv.weight", "model.freqs"]
    np.testing.assert_array_equal(ema.tensors["model.enc.8x8_conv.weight"], WEIGHT)
    np.testing.assert_array_equal(ema.tensors["model.freqs"], FREQUENCIES)
    assert ema.tensors["model.freqs"].dtype == np.float16


def test_the_source_code_inside_is_not_run(tmp_path):
    ran = tmp_path / "ran"
    source = f"open({str(ran)!r}, 'w').close()"
    edm_pickle.read(write(tmp_path, {"ema": network(source)}))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"ema": call("posix.system", "true")}, r"refers to posix\.system"),
        (
            {"ema": name("training.networks.EDMPrecond")},
            r"refers to training\.networks\.EDMPrecond",
        ),
        ({"ema": call("torch.nn.modules.linear.Linear", 2, 3)}, "is damaged"),
        ({"ema": persistent("X", None, type="function")}, "no instance of a class"),
        ({"ema": persistent(7, None)}, "no instance of a class"),
        ({"ema": persistent("X", {"_modules": {"a": 1}})}, "ema: a is not a module"),
        ({"ema": persistent("X", module({"w": 1}))}, "ema: w is not a tensor"),
        ([1], "holds a list"),
        ({"w": call("torch.storage._load_from_bytes", b"no file")}, "is damaged|not"),
        (
            {"w": call("torch.storage._load_from_bytes", legacy({"a": 1}, {}))},
            "storage that is none",
        ),
    ],
)
def test_other_pickles_are_refused(value, message, tmp_path):
    with pytest.raises(UserError, match=message):
        edm_pickle.read(write(tmp_path, value))


def test_code_in_a_tensor_inside_is_refused(tmp_path):
    hidden = legacy(call("posix.system", "true"), {})
    with pytest.raises(UserError, match=r"a tensor inside refers to posix\.system"):
        edm_pickle.read(write(tmp_path, {"w": call("torch.storage._load_from_bytes", hidden)}))
    nested = legacy(call("torch.storage._load_from_bytes", b""), {})
    with pytest.raises(UserError, match=r"refers to torch\.storage\._load_from_bytes"):
        edm_pickle.read(write(tmp_path, {"w": call("torch.storage._load_from_bytes", nested)}))


def test_a_module_inside_itself_ends(tmp_path):
    """Memo 0 is the children, in which the module puts itself."""
    start = name("argparse.Namespace") + b")\x81q\x01"
    state = b"}(" + put("_modules") + b"}q\x00" + b"u"
    loop = Code(start + state + b"b" + b"h\x00" + put("a") + b"h\x01s0")
    with pytest.raises(UserError, match="too many or too deep"):
        edm_pickle.read(write(tmp_path, {"ema": loop}))


def test_many_names_of_one_module_end(tmp_path):
    """40 modules of two children each, which are the same: 2^40 names."""
    value = persistent("Leaf", module())
    data = value + b"q\x00"
    for i in range(40):
        children = b"}(" + put("a") + b"h" + bytes([i]) + put("b") + b"h" + bytes([i]) + b"u"
        data += persistent("Twin", {"_modules": Code(children)}) + b"q" + bytes([i + 1])
    path = tmp_path / "network.pkl"
    path.write_bytes(b"\x80\x02" + data + b"}" + put("ema") + b"h" + bytes([40]) + b"s.")
    with pytest.raises(UserError, match="too many or too deep"):
        edm_pickle.read(path)


def test_files_that_are_not_there_or_not_whole(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        edm_pickle.read(tmp_path / "no.pkl")
    path = write(tmp_path, {"ema": network()})
    data = path.read_bytes()
    for end in range(0, len(data), 37):
        path.write_bytes(data[:end])
        with pytest.raises(UserError):
            edm_pickle.read(path)
