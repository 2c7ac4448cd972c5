"""NFE, counted where the network is called.

`record` is called beside every network evaluation while a program is traced. `counted(function)`
returns what the function returns and how many evaluations one of its calls made, guided pairs and
correctors included. A doubled batch counts twice. The count is a Python number, or a traced one
where it depends on t (guidance in an interval).
"""

from collections.abc import Callable
from typing import Any

_totals: list[list[Any]] = []


def record(batch: int) -> None:
    """One network evaluation on a batch of this size."""
    if _totals:
        _totals[-1].append(batch)


def counted(function: Callable[[], Any], *, batch: int) -> tuple[Any, Any]:
    """(result, evaluations per sample) of a call whose samples are `batch` in number.

    A function that records nothing, as an exact formula may, counts as one evaluation.
    """
    total: list[Any] = []
    _totals.append(total)
    try:
        result = function()
    finally:
        _totals.pop()
    count = sum(total) / batch if total else 1
    record(count * batch)
    return result, count
