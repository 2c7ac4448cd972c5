"""LoRA files of diffusers, peft and kohya: one set of adapters under many names."""

import json
from pathlib import Path

import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop import files, formats, ldm, lora
from scorediff.interop.text_unet import TEXT_UNET
from scorediff.models.lora import Adapter, merge

pytestmark = (
    pytest.mark.slow
)  # tests/parity and tests/models/test_promises.py stand for it in every run

ROOT = Path(__file__).parents[1] / "fixtures/parity"
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
VALUE = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"


@pytest.fixture(scope="module")
def base():
    return formats.load(ROOT / "unet_sd15").with_dtype("float32")


def read(name, base, **options):
    path = name if isinstance(name, Path) else ROOT / "lora" / name
    return lora.read(path, base.network, tables=(TEXT_UNET,), **options)


def written(folder, tensors, metadata=None):
    path = folder / "adapters.safetensors"
    files.write_safetensors(path, tensors, metadata)
    return path


def pair(name, rank=2, inputs=8, outputs=8, style=("lora_A.weight", "lora_B.weight")):
    rng = np.random.default_rng(0)
    shapes = (rank, inputs), (outputs, rank)
    return {
        f"{name}.{s}": rng.normal(size=d).astype("f4") for s, d in zip(style, shapes, strict=True)
    }


def by_place(adapters):
    return sorted(adapters, key=lambda a: (a.path, a.layer or 0, a.start))


@pytest.mark.slow
def test_old_and_new_names_and_alpha_in_the_metadata(base):
    plain, meta, peft = (
        read(f"{name}.safetensors", base)
        for name in ("diffusers_plain", "diffusers_meta", "peft_style")
    )
    assert len(plain) == 56
    for a, b, c in zip(*map(by_place, (plain, meta, peft)), strict=True):
        assert (a.scale, b.scale, c.scale) == (1.0, 2.0, 2.0)  # none said; 8 / 4
        np.testing.assert_array_equal(a.down, b.down)
        np.testing.assert_array_equal(a.up, c.up)


@pytest.mark.slow
def test_a_part_of_a_fused_kernel_gets_its_own(base):
    tensors, _ = files.read_safetensors(ROOT / "lora/kohya.safetensors")
    changed = merge(base.params, read("kohya.safetensors", base))
    place = f"lora_unet_{VALUE}".replace(".", "_")
    delta = 2.0 * tensors[f"{place}.lora_up.weight"] @ tensors[f"{place}.lora_down.weight"]
    kernels = [
        p["middle_0_attention"]["layers"]["cross"]["kv"]["kernel"][0]
        for p in (base.params, changed)
    ]
    np.testing.assert_allclose(kernels[1][:, 16:] - kernels[0][:, 16:], delta.T, atol=1e-5)


def test_a_convolution_of_kohya(base):
    tensors, _ = files.read_safetensors(ROOT / "lora/kohya.safetensors")
    changed = merge(base.params, read("kohya.safetensors", base))
    place = "lora_unet_down_blocks_0_downsamplers_0_conv"
    up, down = tensors[f"{place}.lora_up.weight"], tensors[f"{place}.lora_down.weight"]
    delta = 2.0 * np.einsum("or,rihw->hwio", up[:, :, 0, 0], down)
    kernels = [p["down1_halve"]["kernel"] for p in (base.params, changed)]
    np.testing.assert_allclose(kernels[1] - kernels[0], delta, atol=1e-5)


def test_written_files_are_read_back(base, tmp_path):
    adapters = read("kohya.safetensors", base)
    adapters[3] = adapters[3].replace(scale=0.3)
    small = adapters[4]
    adapters[4] = small.replace(down=small.down[..., :1], up=small.up[:1])
    lora.write(tmp_path / "a.safetensors", adapters, base.network, table=TEXT_UNET)
    again = by_place(read(tmp_path / "a.safetensors", base))
    for a, b in zip(by_place(adapters), again, strict=True):
        assert (a.path, a.layer, a.start) == (b.path, b.layer, b.start)
        assert b.scale == pytest.approx(a.scale, rel=1e-12)
        np.testing.assert_array_equal(a.down, b.down)
        np.testing.assert_array_equal(a.up, b.up)


def test_an_adapter_of_a_fused_kernel_becomes_one_a_part(base, tmp_path):
    rng = np.random.default_rng(0)
    path = "middle_0_attention/layers/self/qkv/kernel"
    whole = Adapter(down=rng.normal(size=(16, 2)), up=rng.normal(size=(2, 48)), path=path, layer=0)
    lora.write(tmp_path / "a.safetensors", [whole], base.network, table=TEXT_UNET)
    parts = read(tmp_path / "a.safetensors", base)
    assert sorted(p.start for p in parts) == [0, 16, 32]
    want, got = (
        merge(base.params, s)["middle_0_attention"]["layers"]["self"]["qkv"]["kernel"]
        for s in ([whole], parts)
    )
    np.testing.assert_allclose(got, want, atol=1e-6)
    with pytest.raises(UserError, match=r"columns 0 to 20 of .*/qkv/kernel is not one for whole"):
        cut = whole.replace(up=whole.up[:, :20])
        lora.write(tmp_path / "b.safetensors", [cut], base.network, table=TEXT_UNET)
    with pytest.raises(UserError, match="two adapters for mid_block"):
        lora.write(tmp_path / "b.safetensors", [whole, whole], base.network, table=TEXT_UNET)


def test_original_block_names_of_kohya(base, tmp_path):
    style = ("lora_down.weight", "lora_up.weight")
    theirs = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    path = written(tmp_path, pair(theirs, style=style) | {f"{theirs}.alpha": np.float32(1)})
    (found,) = lora.read(path, base.network, tables=(TEXT_UNET, ldm.TEXT_UNET))
    assert (found.path, found.layer, found.start, found.scale) == (
        "down0_0_attention/layers/self/qkv/kernel",
        0,
        0,
        0.5,
    )
    with pytest.raises(UserError, match="the network has no input_blocks_1_1"):
        read(path, base)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"lora_alpha": 6}, 3.0),
        ({"lora_alpha": 6, "use_rslora": True}, 6 / np.sqrt(2)),
        ({"lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 1}}, 0.5),
        ({"lora_alpha": 6, "alpha_pattern": {}}, 3.0),
    ],
)
def test_scales_of_peft(base, tmp_path, settings, scale):
    metadata = {lora.METADATA: json.dumps({f"unet.{k}": v for k, v in settings.items()})}
    (found,) = read(written(tmp_path, pair(f"unet.{QUERY}"), metadata), base)
    assert found.scale == pytest.approx(scale)


def test_the_components_of_a_file(base, tmp_path):
    both = pair(f"unet.{QUERY}") | pair("text_encoder.text_model.x")
    path = written(tmp_path, both)
    assert lora.components(path) == ["text_encoder", "unet"]
    assert len(read(path, base)) == 1
    with pytest.raises(UserError, match="no adapters for text_encoder_2, only for"):
        read(path, base, component="text_encoder_2")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (pair("unet.down_blocks.0.attentions.7.proj_in"), r"has no down_blocks\.0\.attentions\.7"),
        (pair(f"unet.{QUERY}", inputs=9), r"to_q has factors of shapes \(2, 9\) and \(8, 2\)"),
        (pair(f"unet.{QUERY}", outputs=9), r"to_q has factors of shapes \(2, 8\) and \(9, 2\)"),
        (
            {f"unet.{QUERY}.lora_A.weight": np.zeros((2, 8), "f4")},
            "to_q lacks up",
        ),
        (
            pair(f"unet.{QUERY}") | {f"unet.{QUERY}.lora_magnitude_vector": np.zeros(8, "f4")},
            "lora_magnitude_vector belongs to DoRA; only plain LoRA",
        ),
        (
            {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": np.zeros((2, 8), "f4")},
            "hada_w1_a belongs to LoHa; only plain LoRA",
        ),
        (pair(f"unet.{QUERY}") | {f"unet.{QUERY}.diff": np.zeros(8, "f4")}, "diff is no tensor of"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(base, tmp_path, tensors, message):
    with pytest.raises(UserError, match=message):
        read(written(tmp_path, tensors), base)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora=True is not supported, only False"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"alpha_pattern": {"to_k": 3}}, "alpha_pattern has to_k, which matches no module here"),
    ],
)
def test_settings_that_are_not_supported_are_refused(base, tmp_path, settings, message):
    metadata = {lora.METADATA: json.dumps({f"unet.{k}": v for k, v in settings.items()})}
    with pytest.raises(UserError, match=message):
        read(written(tmp_path, pair(f"unet.{QUERY}"), metadata), base)
