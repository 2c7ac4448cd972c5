"""Recorded token ids: a folder of tokenizer files and golden.json, the ids of some texts."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scorediff.interop.tokenizers import Tokenizer, load
from tests.parity.case import Result


def run(folder: Path, root: Path) -> Iterator[Result]:
    """The number of texts whose ids or masks differ: whole, and padded to each recorded length."""
    tokenizer = load(folder)
    rows = json.loads((folder / "golden.json").read_text(encoding="utf-8"))["rows"]
    name = str(folder.relative_to(root))
    wrong = sum(tokenizer.ids(row["text"]) != row["ids"] for row in rows)
    yield Result(name, "whole", "ids", float(wrong), 0.0)
    for key in rows[0]:
        if padded := re.fullmatch(r"ids_(\d+)", key):
            length = int(padded[1])
            wrong = sum(_differs(tokenizer, row, length) for row in rows)
            yield Result(name, f"padded to {length}", "ids", float(wrong), 0.0)


def _differs(tokenizer: Tokenizer, row: dict[str, Any], length: int) -> bool:
    got = tokenizer([row["text"]], length=length)
    same_mask = np.array_equal(got.mask[0], row[f"mask_{length}"])
    return not (same_mask and np.array_equal(got.ids[0], row[f"ids_{length}"]))
