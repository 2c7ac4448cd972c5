"""How long a run trains, what happens how often, and how its work is laid out."""

from dataclasses import dataclass
from typing import Literal

from scorediff.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything about a training run that is a number of steps or a layout.

    steps: to train, skipped ones included.
    log_every, save_every: steps between rows of metrics.jsonl, and between checkpoints.
    sample_every, evaluate_every: steps between sample pictures, and between evaluations whose
      numbers go into the metrics; None: only when the run is evaluated.
    keep_last, keep_every: checkpoints kept: the newest, and every so many steps.
    accumulate: parts that a batch is worked through in, one after the other.
    mode: "jit", the compiler's division of the work over a mesh of all devices, or "pmap", a copy
      of the state on each.
    fsdp, tensor: of the mesh: devices that share one copy of the state, and devices that share one
      layer's work and see the same examples.
    patience: steps in a row that may be skipped for numbers that are not finite.
    """

    steps: int
    log_every: int = 50
    save_every: int = 1000
    sample_every: int | None = None
    evaluate_every: int | None = None
    keep_last: int = 2
    keep_every: int | None = None
    accumulate: int = 1
    mode: Literal["jit", "pmap"] = "jit"
    fsdp: int = 1
    tensor: int = 1
    patience: int = 10

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.mode not in ("jit", "pmap"):
            raise UserError(f"mode must be 'jit' or 'pmap', got {self.mode!r}")
        if self.mode == "pmap" and max(self.fsdp, self.tensor) > 1:
            sizes = f"fsdp={self.fsdp}, tensor={self.tensor}"
            raise UserError(f"mode 'pmap' keeps a copy per device, so not {sizes}")
