"""Whatever a published model comes as, read: hub folders, pipelines, and the papers' own files.

folder with model_index.json            a pipeline: its U-Net or transformer, its scheduler
folder with config.json                 one class of the hub
.safetensors, .pt, .pth, .ckpt, .bin    a state dict; what it is of, a config must say
.pkl                                    a network pickle of EDM, which says what it is of
anything else                           a msgpack checkpoint of score_sde, with a config
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scorediff.errors import UserError
from scorediff.interop import edm_pickle, files, formats, score_sde, torch_file
from scorediff.interop.formats import Config, Published

TORCH = (".pt", ".pth", ".ckpt", ".bin")
NETWORKS = ("transformer", "unet")  # of a pipeline's parts


class Source(NamedTuple):
    """What was found."""

    model: Published
    scheduler: Config | None
    left: tuple[str, ...]  # further parts of a pipeline, which were not read


def read(
    path: str | Path,
    *,
    variant: str | None = None,
    config: Config | None = None,
    name: str | None = None,
    part: str | None = None,
) -> Source:
    """The model in a folder or file.

    variant: of a hub folder ("fp16").
    config:  of a file that has none: the constructor's arguments, with the class under "class".
    name:    which of `formats.KNOWN` it is, where the config does not say.
    part:    of a checkpoint that has several ("ema").
    Raises UserError for what cannot be read, or does not fit its config.
    """
    path = Path(path)
    if (path / "model_index.json").is_file():
        return read_pipeline(path, variant)
    if path.is_dir():
        return Source(formats.load(path, variant=variant), None, ())
    if not path.exists():
        raise UserError(f"there is no {path}")
    if path.suffix == ".pkl":
        return Source(_from_pickle(path, part or "ema"), None, ())
    if config is None:
        raise UserError(f"{path} does not say what it is: give its constructor's arguments as JSON")
    format = formats.known(name or named(config))
    return Source(
        formats.from_tensors(format, config, _tensors(path, part), where=str(path)), None, ()
    )


def read_pipeline(folder: Path, variant: str | None = None) -> Source:
    """The network and the scheduler of a pipeline folder."""
    parts = files.read_json(folder / "model_index.json")
    network = next((part for part in NETWORKS if parts.get(part)), None)
    if network is None:
        raise UserError(f"{folder} has neither a unet nor a transformer")
    scheduler = files.read_json(folder / "scheduler" / "scheduler_config.json")
    left = [n for n, what in parts.items() if isinstance(what, list) and what[0] is not None]
    others = tuple(sorted(set(left) - {network, "scheduler"}))
    return Source(formats.load(folder / network, variant=variant), scheduler, others)


def named(config: Config) -> str:
    """The format whose class a constructor's config names under "class"."""
    wanted = config.get("class")
    if wanted is None:
        raise UserError('the config has no "class"; name the format')
    inner = config.get("model_type")
    ends = {f"/{wanted}", f"/{wanted}({inner})"}
    found = [name for name in formats.KNOWN if any(name.endswith(end) for end in ends)]
    if len(found) != 1:
        choice = found or sorted(n for n in formats.KNOWN if "/" in n)
        raise UserError(f"{wanted} may be {' or '.join(choice)}: name the format")
    return found[0]


def _tensors(path: Path, part: str | None) -> Mapping[str, np.ndarray]:
    if path.suffix == ".safetensors":
        return files.read_safetensors(path)[0]
    if path.suffix in TORCH:
        return torch_file.state_dict(torch_file.read(path), part, where=str(path))
    return score_sde.read_checkpoint(path)


def _from_pickle(path: Path, part: str) -> Published:
    parts = edm_pickle.read(path)
    network = parts.get(part)
    if not isinstance(network, edm_pickle.Network):
        there = [name for name, value in parts.items() if isinstance(value, edm_pickle.Network)]
        raise UserError(f"{path} has no network under {part!r}; there are {', '.join(there)}")
    config = {"class": network.class_name, **network.arguments}
    format = formats.known(named(config))
    return formats.from_tensors(format, config, network.tensors, where=str(path))
