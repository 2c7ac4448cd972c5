"""LoRA files of diffusers, peft and kohya's trainer: read for a network, written for diffusers.

A name in such a file is a component ("unet", "text_encoder"), the published name of a module of it,
and a role: A ("down"), B ("up") or alpha. The network's own table of names says which kernel, which
layer of a stack and which columns of a fused matrix are meant.
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn

from scorediff.errors import UserError
from scorediff.interop import files, formats, layout
from scorediff.interop.formats import Format
from scorediff.interop.layout import Form
from scorediff.models.lora import Adapter

ROLES = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
}
OTHER_METHODS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "lora_mid": "LoCon with a Tucker core",
}
KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
DOTTED = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
PEFT = "base_model.model."
ANY = ""  # the component of names that do not say it
METADATA = "lora_adapter_metadata"  # of a file of diffusers: a JSON object in text
PLAIN = {"peft_type": "LORA", "use_dora": False, "bias": "none", "fan_in_fan_out": False}
SHOWN = 4


class Kernel(NamedTuple):
    """One linear map or convolution of a published model, and where it stands in our parameters."""

    path: str
    layer: int | None
    start: int
    form: Form
    shape: tuple[int, ...]  # ours: [*window, in, out] of this part alone


Roles = dict[str, np.ndarray]
Settings = Mapping[str, Any]  # of one component, as peft calls them


@functools.lru_cache(maxsize=8)  # finding the shapes takes seconds
def kernels(format: Format, network: nn.Module) -> dict[str, Kernel]:
    """Every module of `network` that has a kernel, by its name in files of `format`."""
    shapes = formats.shapes(format, network)
    return {
        name: kernel
        for path, link in layout.links(format.entries(network), shapes).items()
        if path.endswith("kernel")
        for name, kernel in _parts(path, link, shapes[path])
    }


def _parts(path: str, link: layout.Link, shape: tuple[int, ...]) -> Iterator[tuple[str, Kernel]]:
    for layer, row in enumerate(link.names):
        *inner, columns = shape[1:] if link.stacked else shape
        width = columns // len(row)
        for column, name in enumerate(row):
            place = path, layer if link.stacked else None, column * width
            yield name.removesuffix(".weight"), Kernel(*place, link.form, (*inner, width))


def read(
    path: str | Path, network: nn.Module, *, tables: Sequence[Format], component: str = "unet"
) -> list[Adapter]:
    """The adapters of one component of a LoRA file, or of a folder of peft.

    tables: of names that the file may use for `network`; the first that knows a name decides.
    Raises UserError, with the name, for a module that the network does not have, for factors that
    do not fit it, and for adapters that are not plain LoRA.
    """
    modules, settings = _load(Path(path), component)
    known: dict[str, Kernel] = {}
    for table in reversed(tables):
        known |= kernels(table, network)
    known = {name.replace(".", "_"): kernel for name, kernel in known.items()} | known
    lost = [name for name in modules if name not in known]
    if lost:
        more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        raise UserError(f"{path}: the network has no {', '.join(lost[:SHOWN])}{more}")
    _check_patterns(path, settings, modules)
    return [
        _adapter(f"{path}: {name}", known[name], roles, settings, name)
        for name, roles in modules.items()
    ]


def components(path: str | Path) -> list[str]:
    """What a LoRA file has adapters for; "" where its names do not say."""
    return sorted(_by_component(path, _open(Path(path))[0]))


def _open(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    if path.is_dir():
        config = files.read_json(path / "adapter_config.json")
        tensors, _ = files.read_safetensors(path / "adapter_model.safetensors")
        return tensors, {METADATA: json.dumps(config)}
    return files.read_safetensors(path)


def _load(path: Path, component: str) -> tuple[dict[str, Roles], Settings]:
    """The modules of one component and their common settings."""
    tensors, metadata = _open(path)
    found = _by_component(path, tensors)
    modules = found.get(component) or found.get(ANY)
    if not modules:
        raise UserError(f"{path} has no adapters for {component}, only for {', '.join(found)}")
    settings = json.loads(metadata.get(METADATA, "{}"))
    if not path.is_dir():
        named = f"{component}."
        settings = {k.removeprefix(named): v for k, v in settings.items() if k.startswith(named)}
    for field, value in PLAIN.items():
        if settings.get(field, value) != value:
            raise UserError(f"{path}: {field}={settings[field]!r} is not supported, only {value!r}")
    return modules, settings


def _by_component(path: str | Path, tensors: layout.Tensors) -> dict[str, dict[str, Roles]]:
    found: dict[str, dict[str, Roles]] = {}
    for name, tensor in tensors.items():
        component, module, role = _parse(path, name)
        found.setdefault(component, {}).setdefault(module, {})[role] = tensor
    return found


def _parse(path: str | Path, name: str) -> tuple[str, str, str]:
    """component, module and role of a tensor."""
    for part, method in OTHER_METHODS.items():
        if part in name:
            raise UserError(f"{path}: {name} belongs to {method}; only plain LoRA is read")
    for suffix, role in ROLES.items():
        if name.endswith(suffix):
            return *_split(name.removesuffix(suffix)), role
    raise UserError(f"{path}: {name} is no tensor of a LoRA as diffusers, peft or kohya write it")


def _split(name: str) -> tuple[str, str]:
    """component and module of a name without its role."""
    for prefix, component in KOHYA.items():
        if name.startswith(prefix):
            return component, name.removeprefix(prefix)
    if name.startswith(PEFT):
        return ANY, name.removeprefix(PEFT)
    first, _, rest = name.partition(".")
    return (first, rest) if first in DOTTED else (ANY, name)


def _check_patterns(path: str | Path, settings: Settings, modules: Mapping[str, Roles]) -> None:
    """Every exception from the common alpha must be for a module that is there."""
    for pattern in settings.get("alpha_pattern") or {}:
        if not any(_matches(name, pattern) for name in modules):
            raise UserError(f"{path}: alpha_pattern has {pattern}, which matches no module here")


def _matches(name: str, pattern: str) -> bool:
    """peft's rule for names without special characters: the whole name, or its last parts."""
    return f".{name}".endswith(f".{pattern.removeprefix('^')}")


def _adapter(where: str, kernel: Kernel, roles: Roles, settings: Settings, name: str) -> Adapter:
    lacking = {"down", "up"} - set(roles)
    if lacking:
        raise UserError(f"{where} lacks {' and '.join(sorted(lacking))}")
    factors = _factors(kernel, roles)
    if factors is None:
        raise UserError(
            f"{where} has factors of shapes {roles['down'].shape} and {roles['up'].shape}, which "
            f"do not fit {kernel.path}, {kernel.shape} here"
        )
    down, up = factors
    return Adapter(
        down=np.ascontiguousarray(down),
        up=np.ascontiguousarray(up),
        path=kernel.path,
        scale=_scale(where, down.shape[-1], roles, settings, name),
        layer=kernel.layer,
        start=kernel.start,
    )


def _factors(kernel: Kernel, roles: Roles) -> tuple[np.ndarray, np.ndarray] | None:
    """A and B in our layout, or None where they do not fit the kernel."""
    try:
        down = kernel.form.read(roles["down"])
        if down.ndim > len(kernel.shape):  # a linear map written as a convolution
            down = down.reshape(down.shape[-2:])
        up = roles["up"].reshape(roles["up"].shape[:2]).T
    except ValueError:
        return None
    fits = down.shape[:-1] == kernel.shape[:-1] and up.shape == (down.shape[-1], kernel.shape[-1])
    return (down, up) if fits else None


def _scale(where: str, rank: int, roles: Roles, settings: Settings, name: str) -> float:
    """alpha / rank; 1 where the file does not say alpha."""
    if "alpha" in roles:
        if roles["alpha"].size != 1:
            raise UserError(f"{where} has an alpha of shape {roles['alpha'].shape}, not a number")
        return roles["alpha"].item() / rank
    patterns = settings.get("alpha_pattern") or {}
    own = [alpha for pattern, alpha in patterns.items() if _matches(name, pattern)]
    alpha = own[0] if own else settings.get("lora_alpha", rank)
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def write(
    path: str | Path,
    adapters: Sequence[Adapter],
    network: nn.Module,
    *,
    table: Format,
    component: str = "unet",
) -> None:
    """One .safetensors file under the names of peft, with alpha in the metadata as diffusers does.

    An adapter of a whole fused kernel becomes one for each of its parts.
    """
    tensors: dict[str, np.ndarray] = {}
    ranks, alphas = {}, {}
    known = kernels(table, network)
    for adapter in adapters:
        for name, kernel in _covered(adapter, known):
            down, up = _written(adapter, kernel)
            if name in ranks:
                raise UserError(f"two adapters for {name}: a file can hold one of each")
            tensors[f"{component}.{name}.lora_A.weight"] = down
            tensors[f"{component}.{name}.lora_B.weight"] = up
            ranks[name], alphas[name] = down.shape[0], adapter.scale * down.shape[0]
    settings = _settings(ranks, alphas)
    metadata = {f"{component}.{field}": value for field, value in settings.items()}
    files.write_safetensors(path, tensors, {METADATA: json.dumps(metadata, indent=2)})


def _covered(adapter: Adapter, known: Mapping[str, Kernel]) -> list[tuple[str, Kernel]]:
    """The modules whose columns an adapter covers, all of them whole."""
    end = adapter.start + adapter.up.shape[-1]
    found = [
        (name, kernel)
        for name, kernel in known.items()
        if (kernel.path, kernel.layer) == (adapter.path, adapter.layer)
        and adapter.start <= kernel.start
        and kernel.start + kernel.shape[-1] <= end
    ]
    if sum(kernel.shape[-1] for _, kernel in found) != adapter.up.shape[-1]:
        raise UserError(
            f"the adapter for columns {adapter.start} to {end} of {adapter.path} is not one for "
            "whole modules of the published model"
        )
    return found


def _written(adapter: Adapter, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    """A and B in the file's layout; of a convolution, B has a window of 1."""
    first = kernel.start - adapter.start
    down = kernel.form.write(np.asarray(adapter.down))
    up = np.asarray(adapter.up)[:, first : first + kernel.shape[-1]].T
    return down, up.reshape(*up.shape, *[1] * (down.ndim - 2))


def _settings(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, Any]:
    """peft's settings: the commonest rank and alpha, and the modules that have others."""
    rank = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    alpha = Counter(alphas.values()).most_common(1)[0][0] if alphas else 1.0
    return {
        **PLAIN,
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
        "lora_alpha": alpha,
        "r": rank,
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "target_modules": sorted(ranks),
        "use_rslora": False,
    }
