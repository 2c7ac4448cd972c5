"""Every recorded case of a folder: which runner takes it, and which cases none takes yet."""

import importlib
from collections.abc import Iterator
from pathlib import Path

from scorediff.errors import UserError
from tests.parity.case import Fixture, Result, Runner, fixture
from tests.parity.runners import tokenizers

WITH_TEXT = "whole pipelines with text are not covered yet"

# The class that a meta.json names -> "module:NAME" of its runner, in tests.parity.runners.
RUNNERS: dict[str, str] = {
    "UNetModel": "adm:UNET_MODEL",
    "iDDPMPrecond(DhariwalUNet)": "adm:DHARIWAL_UNET",
    "VEPrecond(DhariwalUNet)": "adm:DHARIWAL_UNET",
    "VPPrecond(DhariwalUNet)": "adm:DHARIWAL_UNET",
    "EDMPrecond(DhariwalUNet)": "adm:DHARIWAL_UNET",
    "ncsnpp": "score_sde:NCSNPP",
    "EDMPrecond(SongUNet)": "edm:SONG_UNET",
    "VEPrecond(SongUNet)": "edm:SONG_UNET",
    "VPPrecond(SongUNet)": "edm:SONG_UNET",
    "iDDPMPrecond(SongUNet)": "edm:SONG_UNET",
    "DDPMPipeline / DDIMPipeline": "pipelines:ddpm",
    "DiTPipeline": "pipelines:dit",
    "UNet2DModel": "unet2d:UNET2D",
    "UViT": "uvit:UVIT",
    "SiT": "dit:SIT",
    "SD3Transformer2DModel": "mmdit:SD3_TRANSFORMER",
    "PixArtTransformer2DModel": "pixart:PIXART",
    "DiTTransformer2DModel": "dit:DIT_TRANSFORMER",
    "DiT": "dit:DIT",
    "AutoencoderKL": "autoencoder:AUTOENCODER_KL",
    "CLIPTextModel": "clip:CLIP_TEXT",
    "CLIPTextModelWithProjection": "clip:CLIP_TEXT",
    "T5EncoderModel": "t5:T5_ENCODER",
    "ControlNetModel + UNet2DConditionModel": "controlnet:CONTROLNET",
    "LoRA on UNet2DConditionModel": "lora:LORA",
    "UNet2DConditionModel": "text_unet:TEXT_UNET",
}


def fixtures(root: Path, only: str = "") -> list[Fixture]:
    """The fixtures under a folder, in the order of their names."""
    folders = sorted(p.parent for p in root.rglob("meta.json") if (p.parent / "io.npz").is_file())
    return [fixture(f, root) for f in folders if only in str(f.relative_to(root))]


def runner_of(found: Fixture) -> Runner | None:
    """The runner of a fixture's class."""
    place = RUNNERS.get(found.meta["class"])
    if place is None:
        return None
    module, name = place.split(":")
    return getattr(importlib.import_module(f"tests.parity.runners.{module}"), name)


def tokenizer_folders(root: Path, only: str = "") -> list[Path]:
    """Folders with a tokenizer and the ids that it should give."""
    folders = sorted(path.parent for path in root.rglob("golden.json"))
    return [f for f in folders if only in str(f.relative_to(root))]


def replay(root: Path, only: str = "") -> Iterator[Result]:
    """Every check of every case that is covered."""
    for found in fixtures(root, only):
        runner = runner_of(found)
        if runner is not None:
            yield from _run(runner, found)
    for folder in tokenizer_folders(root, only):
        yield from tokenizers.run(folder, root)


def _run(runner: Runner, found: Fixture) -> Iterator[Result]:
    """A fixture's checks; what it cannot do here is one failure, and the others go on."""
    try:
        yield from runner(found)
    except (UserError, AssertionError) as error:
        print(f"{found.name}: {error}")
        yield Result(found.name, "-", "runs", float("inf"), 0.0)


def not_covered(root: Path, only: str = "") -> Iterator[tuple[str, str]]:
    """Cases that nothing runs here, and why."""
    for found in fixtures(root, only):
        if runner_of(found) is None:
            why = WITH_TEXT if "Stable" in found.meta["class"] else "no runner for its class"
            yield found.name, f"{found.meta['class']}: {why}"
    for path in sorted(root.rglob("*_real_golden.json")):
        if only in str(path.relative_to(root)):
            yield str(path.relative_to(root)), "needs the true vocabulary, which is not here"
