"""Checkpoints of flax.training.checkpoints in msgpack, as score_sde saves them (arXiv 2011.13456).

The format holds numbers, text, arrays and mappings; nothing in it is code.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import serialization, traverse_util

from scorediff.errors import UserError


class Averaged(NamedTuple):
    """The averaged parameters of a score_sde checkpoint.

    step:   of the training.
    params: arrays under their Flax names ("ResnetBlockDDPMpp_0/Conv_0/kernel"), Flax's layout.
    """

    step: int
    params: dict[str, np.ndarray]


def read(path: str | Path) -> dict[str, Any]:
    """What a msgpack file of Flax holds: nested mappings of NumPy arrays and numbers."""
    try:
        data = Path(path).read_bytes()
        found = serialization.msgpack_restore(data)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # msgpack and NumPy raise many kinds for bytes that are not whole
        what = f"{type(error).__name__}: {error}"[:200]
        raise UserError(f"{path} is not a whole msgpack file of Flax ({what})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not a mapping")
    return found


def averaged(checkpoint: dict[str, Any], *, where: str) -> Averaged:
    """params_ema and the step of a score_sde checkpoint."""
    tree, step = checkpoint.get("params_ema"), checkpoint.get("step")
    if not isinstance(tree, dict) or not tree or np.ndim(step) != 0 or step is None:
        raise UserError(f"{where} has no params_ema and step; it has {', '.join(checkpoint)}")
    params = traverse_util.flatten_dict(tree, sep="/")
    odd = [name for name, array in params.items() if not isinstance(array, np.ndarray)]
    if odd:
        raise UserError(f"{where}: params_ema/{odd[0]} is not an array")
    return Averaged(int(step), params)
