"""Pictures of a run: grids of images with Pillow, curves with matplotlib.

Images come as uint8 [n, h, w, c] with c = 1 or 3, in 0..255; `brighten` brings other ranges there.
Small images are enlarged by a whole factor without smoothing, so that a pixel stays a pixel.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from scorediff.training.files import JsonLines, write_atomic
from scorediff.training.workdir import Workdir

INK, PAPER, ACCENT, SECOND = "#1f2430", "#ffffff", "#2563c9", "#d9822b"
TARGET = 64  # pixels an image should at least be wide on paper
GAP = 2


def brighten(images: np.ndarray, white: int) -> np.ndarray:
    """Integer images in 0..white to uint8 in 0..255."""
    return np.clip(np.round(images * (255.0 / white)), 0, 255).astype(np.uint8)


def from_unit(images: np.ndarray) -> np.ndarray:
    """Float images in [-1, 1] to uint8 in 0..255; what is outside is clipped, NaN is black."""
    return np.nan_to_num(np.clip(np.round((images + 1.0) * 127.5), 0, 255)).astype(np.uint8)


def image_grid(
    images: np.ndarray,
    *,
    columns: int,
    top: Sequence[str] = (),
    left: Sequence[str] = (),
    scale: int | None = None,
) -> Image.Image:
    """Images [n, h, w, c] in rows of `columns`, with a label above each column and beside each row.

    Args:
        scale: whole factor of enlargement; None for about 64 pixels an image.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"expected uint8 [n, h, w, 1 or 3], got {images.dtype} {images.shape}")
    scale = scale or max(1, -(-TARGET // images.shape[2]))
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    rows, (height, width) = -(-len(images) // columns), large.shape[1:3]
    font = ImageFont.load_default(max(11, min(width // 4, 16)))
    margin_x = max((int(font.getlength(text)) + 12 for text in left), default=GAP)
    margin_y = int(font.size) + 10 if top else GAP
    size = (margin_x + columns * (width + GAP), margin_y + rows * (height + GAP))
    page = Image.new("RGB", size, PAPER)
    for i, image in enumerate(large):
        corner = (margin_x + i % columns * (width + GAP), margin_y + i // columns * (height + GAP))
        page.paste(Image.fromarray(image.squeeze(-1) if image.shape[2] == 1 else image), corner)
    draw = ImageDraw.Draw(page)
    for i, text in enumerate(top):
        at = (margin_x + i * (width + GAP) + width / 2, margin_y / 2)
        draw.text(at, text, INK, font, anchor="mm")
    for i, text in enumerate(left):
        at = (margin_x - 6, margin_y + i * (height + GAP) + height / 2)
        draw.text(at, text, INK, font, anchor="rm")
    return page


def class_grid(images: np.ndarray, labels: np.ndarray, *, rows: int) -> Image.Image:
    """Classes in columns: the first `rows` images of every class that has as many."""
    classes = [c for c in np.unique(labels) if np.sum(labels == c) >= rows]
    if not classes:
        raise ValueError(f"no class has {rows} images")
    picked = np.stack([images[labels == c][:rows] for c in classes], axis=1)
    top = [str(c) for c in classes]
    return image_grid(picked.reshape(-1, *images.shape[1:]), columns=len(classes), top=top)


def denoising_strip(states: np.ndarray, times: Sequence[float], *, most: int = 12) -> Image.Image:
    """How samples come to be: a row a sample, a column a step, the time above.

    Args:
        states: uint8 [steps, n, h, w, c], x_t or x0_hat (see `from_unit`).
        times: [steps], the time of each state.
        most: columns shown at most, spread evenly with the first and the last among them.
    """
    if len(states) != len(times):
        raise ValueError(f"{len(states)} states but {len(times)} times")
    shown = np.unique(np.linspace(0, len(states) - 1, min(most, len(states))).round().astype(int))
    frames = states[shown].swapaxes(0, 1)
    top = [f"t={times[k]:.2g}" for k in shown]
    return image_grid(frames.reshape(-1, *states.shape[2:]), columns=len(shown), top=top)


def neighbours_picture(
    samples: np.ndarray, nearest: np.ndarray, distances: Sequence[float]
) -> Image.Image:
    """Samples [n, h, w, c] above the training image nearest to each, the distance on top."""
    both = np.concatenate([samples, nearest])
    top = [f"{distance:.3f}" for distance in distances]
    return image_grid(both, columns=len(samples), top=top, left=["sample", "nearest"])


def save_image(path: str | os.PathLike, image: Image.Image) -> Path:
    """Write a PNG whole or not at all; StorageError if the disk refuses."""
    data = io.BytesIO()
    image.save(data, format="PNG")
    write_atomic(Path(path), data.getvalue())
    return Path(path)


def _save_figure(path: str | os.PathLike, figure: Figure) -> Path:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130, metadata={"Software": None})
    write_atomic(Path(path), data.getvalue())
    return Path(path)


def _axes(width: float, height: float, columns: int = 1) -> tuple[Figure, list]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, list(axes)


def smoothed(values: np.ndarray, share: float = 0.02) -> np.ndarray:
    """Running mean over a window of `share` of the length, centred, shorter at the ends."""
    half = int(len(values) * share / 2)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    start = np.maximum(np.arange(len(values)) - half, 0)
    stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[stop] - sums[start]) / (stop - start)


def loss_curve(path: str | os.PathLike, steps: Sequence[int], losses: Sequence[float]) -> Path:
    """Loss against step, raw and smoothed, on a logarithmic axis; only finite ones."""
    steps, losses = np.asarray(steps), np.asarray(losses, np.float64)
    keep = np.isfinite(losses)
    steps, losses = steps[keep], losses[keep]
    figure, (axis,) = _axes(7, 3.2)
    axis.plot(steps, losses, color=ACCENT, alpha=0.3, lw=1, label="as logged")
    axis.plot(steps, smoothed(losses), color=ACCENT, lw=1.8, label="running mean")
    if len(losses) and losses.min() > 0:
        axis.set_yscale("log")
    axis.set(xlabel="step", ylabel="loss")
    axis.legend(frameon=False)
    return _save_figure(path, figure)


def draw_loss(folder: Workdir) -> None:
    """Write loss.png from the metrics of a run."""
    rows = [row for row in JsonLines(folder.metrics).rows() if row.get("loss") is not None]
    if rows:
        steps, losses = zip(*((row["step"], row["loss"]) for row in rows), strict=True)
        loss_curve(folder.path / "loss.png", steps, losses)


def scatter_picture(path: str | os.PathLike, samples: np.ndarray, exact: np.ndarray) -> Path:
    """Samples [n, 2] of a model beside exact samples [m, 2], on the same axes."""
    figure, axes = _axes(8, 4, columns=2)
    low, high = np.percentile(exact, [0.1, 99.9], axis=0)
    margin = 0.15 * (high - low)
    for axis, points, title in zip(axes, (samples, exact), ("model", "exact"), strict=True):
        axis.plot(points[:, 0], points[:, 1], ".", ms=2, alpha=0.4, color=ACCENT)
        axis.set(title=title, xlim=((low - margin)[0], (high + margin)[0]))
        axis.set(ylim=((low - margin)[1], (high + margin)[1]))
        axis.set_aspect("equal")
    return _save_figure(path, figure)


def noise_level_plot(
    path: str | os.PathLike, logsnr: Sequence[float], curves: Mapping[str, Sequence[float]]
) -> Path:
    """Score error against noise level, a curve a name, on a logarithmic axis."""
    figure, (axis,) = _axes(7, 3.2)
    for color, (name, values) in zip(
        (ACCENT, SECOND, INK, "#7a7f8c"), curves.items(), strict=False
    ):
        axis.plot(logsnr, values, "o-", ms=3, color=color, label=name)
    axis.set(xlabel="logSNR (left: noise, right: data)", ylabel="score error", yscale="log")
    axis.legend(frameon=False)
    return _save_figure(path, figure)
