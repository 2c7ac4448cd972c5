"""Replays of LoRA files merged into the neighbouring U-Net."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from scorediff.interop import files, formats, lora
from scorediff.interop.text_unet import TEXT_UNET
from scorediff.models.lora import Adapter, merge
from tests.parity.case import Fixture, Result, answer, cast, compared, nchw, nhwc
from tests.parity.runners.text_unet import condition

FILES = {  # case -> files that must all give it
    "base": (),
    "meta": ("diffusers_meta.safetensors", "peft_style.safetensors"),
    "plain": ("diffusers_plain.safetensors",),
    "plain_half": ("diffusers_plain.safetensors",),
    "peft": ("peft",),
    "kohya": ("kohya.safetensors",),
}
SCALES = {"plain_half": 0.5}
WRITTEN = "peft_style.safetensors"  # the layout that we write


def run(fixture: Fixture) -> Iterator[Result]:
    """Every case from each of its files in float32 and float64, and one layout's round trip."""
    base = formats.load((fixture.folder / "../unet_sd15").resolve())
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            model = base.with_dtype(dtype)
            for case in [cast(c, dtype) for c in fixture.cases]:
                x, noise = nhwc(case.inputs["sample"]), case.inputs["timestep"]
                for name in FILES[case.name] or (None,):
                    found = _adapters(fixture, base, name)
                    params = merge(model.params, found, scale=SCALES.get(case.name, 1.0))
                    merged = formats.Published(
                        network=model.network, params=params, format=model.format
                    )
                    got = {"sample": nchw(answer(merged, x, noise, condition(case)))}
                    yield compared(fixture, case, got, dtype)
    yield _round_trip(fixture, base)


def _adapters(fixture: Fixture, base: formats.Published, name: str | None) -> Sequence[Adapter]:
    if name is None:
        return []
    return lora.read(fixture.folder / name, base.network, tables=(TEXT_UNET,))


def _round_trip(fixture: Fixture, base: formats.Published) -> Result:
    theirs, _ = files.read_safetensors(fixture.folder / WRITTEN)
    found = _adapters(fixture, base, WRITTEN)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WRITTEN
        lora.write(path, found, base.network, table=TEXT_UNET)
        ours, _ = files.read_safetensors(path)
        again = lora.read(path, base.network, tables=(TEXT_UNET,))
    odd = [n for n in {*ours, *theirs} if n not in ours or n not in theirs]
    odd += [n for n in set(ours) & set(theirs) if ours[n].tobytes() != theirs[n].tobytes()]
    odd += [a.path for a, b in zip(found, again, strict=True) if a.scale != b.scale]
    return Result(fixture.name, "-", "round trip", float(len(odd)), 0.0)


LORA = run
