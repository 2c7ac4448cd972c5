"""Figures of the solver instruments: error against network evaluations, a curve a solver."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from scorediff.training.files import write_atomic

COLORS = (
    *("#2563c9", "#d9822b", "#2e8b57", "#b03a5b", "#7b4fb5", "#1f2430"),
    *("#12a5b5", "#8a6d3b", "#e377c2", "#7a7f8c"),
)
MARKERS = "osD^vPX*<>"
Points = tuple[Sequence[float], Sequence[float]]


def error_plot(
    path: Path, panels: Mapping[str, Mapping[str, Points]], *, ylabel: str, title: str = ""
) -> Path:
    """A panel for each entry, side by side on one scale: label -> (NFE, error), both logarithmic.

    Labels keep their color over all panels; the legend stands to the right, in the order of the
    last errors of the last panel, as the curves end.
    """
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    figure = Figure(figsize=(4.6 * len(panels) + 2.6, 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (name, curves) in zip(axes, panels.items(), strict=True):
        for label, (nfe, error) in curves.items():
            k = labels.index(label)
            axis.plot(nfe, _positive(error), color=_cycle(COLORS, k), label=label, **_style(k))
        ticks = sorted({n for nfe, _ in curves.values() for n in nfe})
        _logarithmic(axis, ticks)
        axis.set(title=name, xlabel="network evaluations (NFE)")
    axes[0].set_ylabel(ylabel)
    last = {label: _positive(error)[-1] for label, (_, error) in curves.items()}
    handles = {line.get_label(): line for axis in reversed(axes) for line in axis.get_lines()}
    ordered = sorted(handles, key=lambda label: -last.get(label, np.inf))
    figure.legend(
        [handles[label] for label in ordered],
        ordered,
        loc="outside right center",
        frameon=False,
        fontsize=8.5,
    )
    if title:
        figure.suptitle(title, fontsize=11)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130, metadata={"Software": None})
    write_atomic(path, data.getvalue())
    return path


def _positive(errors: Sequence[float]) -> np.ndarray:
    """Errors that a logarithmic axis can show; the others are gaps."""
    errors = np.asarray(errors, np.float64)
    return np.where(np.isfinite(errors) & (errors > 0), errors, np.nan)


def _cycle(items: Sequence, k: int):
    return items[k % len(items)]


def _style(k: int) -> dict:
    """Colors come round again with another line, so that twenty curves can be told apart."""
    dashes = ("-", "--", ":")[k // len(COLORS) % 3]
    marker = MARKERS[(k + k // len(COLORS)) % len(MARKERS)]
    return {"ls": dashes, "marker": marker, "ms": 4, "lw": 1.4}


def _logarithmic(axis, ticks: Sequence[float]) -> None:
    """Log-log, with the evaluations that were measured as ticks where they have room."""
    axis.set(xscale="log", yscale="log")
    spaced = [ticks[0]]
    for tick in ticks[1:]:
        if tick / spaced[-1] > 1.25:
            spaced.append(tick)
    axis.set_xticks(spaced)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
