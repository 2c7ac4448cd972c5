"""Tables of names: both directions, fused and stacked parameters, and what does not fit."""

import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop import layout
from scorediff.interop.layout import POINTWISE, SAME, TORCH, Entry, Form, pointwise, within

RNG = np.random.default_rng(0)
BLOCK = [Entry("qkv", ("to_q", "to_k", "to_v")), Entry("out", "to_out.0")]
TABLE = [
    Entry("conv", "conv_in"),
    *within("layers", "blocks.{}", BLOCK),
    Entry("norm", "norm_out"),
    Entry("table", "positions.weight", form=SAME),
    Entry("absent", "not_in_this_network"),
]


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


PARAMS = {
    "conv": {"kernel": draw(3, 3, 2, 4), "bias": draw(4)},
    "layers": {
        "qkv": {"kernel": draw(2, 4, 12), "bias": draw(2, 12)},
        "out": {"kernel": draw(2, 4, 4)},
    },
    "norm": {"scale": draw(4), "bias": draw(4)},
    "table": draw(5, 4),
}
SHAPES = layout.shapes_of(PARAMS)


@pytest.fixture
def tensors():
    """The file of PARAMS, which a test may change."""
    return layout.write(TABLE, PARAMS)


def read(tensors, **options):
    return layout.read(TABLE, SHAPES, tensors, where="FILE", **options)


def test_a_file_has_its_own_names_and_layout(tensors):
    assert tensors["conv_in.weight"].shape == (4, 2, 3, 3)
    assert tensors["conv_in.weight"][3, 1, 0, 2] == PARAMS["conv"]["kernel"][0, 2, 1, 3]
    key = tensors["blocks.1.to_k.weight"]
    np.testing.assert_array_equal(key, PARAMS["layers"]["qkv"]["kernel"][1, :, 4:8].T)
    np.testing.assert_array_equal(
        tensors["blocks.0.to_v.bias"], PARAMS["layers"]["qkv"]["bias"][0, 8:]
    )
    np.testing.assert_array_equal(tensors["norm_out.weight"], PARAMS["norm"]["scale"])
    np.testing.assert_array_equal(tensors["positions.weight"], PARAMS["table"])
    assert len(tensors) == 2 + 2 * 7 + 2 + 1
    assert all(array.flags.c_contiguous for array in tensors.values())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_read_back_bit_for_bit(tensors, dtype):
    params = read({name: array.astype(dtype) for name, array in tensors.items()})
    assert layout.shapes_of(params) == SHAPES
    again = layout.write(TABLE, params)
    for name, array in tensors.items():
        assert again[name].tobytes() == array.astype(dtype).tobytes()


@pytest.mark.parametrize("form", [TORCH, SAME])
@pytest.mark.parametrize("shape", [(3, 2), (5, 3, 2), (5, 4, 3, 2), (6, 5, 4, 3, 2)])
def test_forms_are_exact_inverses(form, shape):
    kernel = draw(*shape)
    np.testing.assert_array_equal(form.read(form.write(kernel)), kernel)


def test_a_matrix_kept_as_a_convolution():
    kernel = draw(3, 2)
    assert POINTWISE.write(kernel).shape == (2, 3, 1, 1)
    assert pointwise(1).write(kernel).shape == (2, 3, 1)
    for form in (POINTWISE, pointwise(1), pointwise(3)):
        np.testing.assert_array_equal(form.read(form.write(kernel)), kernel)


def test_what_lacks_and_what_is_too_much_is_named(tensors):
    rest = {n: a for n, a in tensors.items() if not n.startswith("blocks.1.to_q")}
    with pytest.raises(UserError, match=r"^FILE lacks: blocks\.1\.to_q\.bias, blocks\.1\.to_q\.w"):
        read(rest)
    more = {**tensors, "ema.step": np.zeros(3), "loss.weight": np.zeros((2, 1))}
    message = r"FILE has beyond .*: ema\.step \(3,\), loss\.weight \(2, 1\)$"
    with pytest.raises(UserError, match=message):
        read(more)
    assert read(more, ignored=("ema.*", "loss.weight"))
    with pytest.raises(UserError, match=r"and 15 more$"):
        read({})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv_in.weight", (4, 2, 3, 2)),
        ("conv_in.weight", (4, 2)),
        ("conv_in.bias", (5,)),
        ("blocks.1.to_out.0.weight", (5, 4)),
        ("blocks.0.to_k.weight", (3, 4)),
        ("norm_out.weight", ()),
        ("positions.weight", (4, 5)),
    ],
)
def test_a_tensor_of_another_shape_is_refused(tensors, name, shape):
    tensors[name] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=r"^FILE: .* does not fit .*, which has \("):
        read(tensors)


def test_parts_of_unequal_widths_are_refused_though_their_sum_fits(tensors):
    tensors["blocks.0.to_q.weight"] = np.zeros((6, 4), np.float32)
    tensors["blocks.0.to_k.weight"] = np.zeros((2, 4), np.float32)
    with pytest.raises(UserError, match="does not fit layers/qkv/kernel"):
        read(tensors)


def test_a_form_of_its_own_is_used_for_the_kernel_alone(tensors):
    swapped = Form(lambda a: a.T[:, ::-1], lambda a: a[:, ::-1].T)
    entry = [Entry("m", "linear", swapped)]
    params = {"m": {"kernel": draw(2, 3), "bias": draw(3)}}
    file = layout.write(entry, params)
    np.testing.assert_array_equal(file["linear.bias"], params["m"]["bias"])
    np.testing.assert_array_equal(file["linear.weight"][0], params["m"]["kernel"][:, 2])
    shapes = layout.shapes_of(params)
    np.testing.assert_array_equal(
        layout.read(entry, shapes, file)["m"]["kernel"], params["m"]["kernel"]
    )


def test_mistakes_of_a_table_are_errors_of_ours():
    with pytest.raises(ValueError, match="the table has conv twice"):
        layout.links([*TABLE, Entry("conv", "other")], SHAPES)
    with pytest.raises(ValueError, match="the table has no entry for norm/scale, norm/bias"):
        layout.links([e for e in TABLE if e.ours != "norm"], SHAPES)
