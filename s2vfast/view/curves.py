"""The course of a run: its numbers read back, a picture of them, and one line of text."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import s2vfast.errors as errors

_BLOCKS = "▁▂▃▄▅▆▇█"


def read_metrics(path: str | Path) -> dict[str, np.ndarray]:
    """The columns of a run's metrics.jsonl.

    Args:
        path: The file. Half a line at its end, as a kill may leave it, is passed over.

    Returns:
        float64 [lines] by name: step, epoch, loss, lr, ema_decay, grad_norm, target_var, pred_var.

    Raises:
        CheckpointError: No such file, or it holds no whole line.
    """
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise errors.CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    lines = text[: text.rfind("\n") + 1].splitlines()
    if not lines:
        raise errors.CheckpointError(f"{path}: holds no line yet; let the run do its first steps")
    try:
        rows = [json.loads(line) for line in lines]
        return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}
    except (ValueError, LookupError, TypeError) as error:
        raise errors.CheckpointError(f"{path}: not the numbers of a run: {error}") from error


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over a window of ``width`` values that shrinks at both ends: float64 [n] -> [n]."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    half = np.minimum(np.minimum(at, len(values) - 1 - at), width // 2)  # [n]
    return (total[at + half + 1] - total[at - half]) / (2 * half + 1)


def sparkline(values: Sequence[float] | np.ndarray, width: int = 60) -> str:
    """The values as one line of block characters, the lowest ``▁``, the highest ``█``."""
    series = np.asarray(values, dtype=np.float64)
    series = series[np.isfinite(series)]
    if not len(series):
        return ""
    means = np.array([part.mean() for part in np.array_split(series, min(width, len(series)))])
    span = means.max() - means.min()
    levels = np.zeros(len(means)) if span == 0 else (means - means.min()) / span
    return "".join(_BLOCKS[round(level * (len(_BLOCKS) - 1))] for level in levels)


def loss_curve(metrics: str | Path, out: str | Path, title: str = "") -> Path:
    """Draw loss, learning rate and the variances of target and prediction over the steps as a PNG.

    Args:
        metrics: A run's metrics.jsonl.
        out: The picture; it is replaced where it is there, and there whole or not at all.
        title: Printed above.

    Raises:
        CheckpointError: The metrics cannot be read.
        TrainingError: The picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns, out = read_metrics(metrics), Path(out)
    steps, loss = columns["step"], columns["loss"]
    # Figure and canvas of their own: pyplot would look for a display and keep global state.
    figure = Figure(figsize=(8, 7), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    top, middle, bottom = figure.subplots(3, sharex=True, height_ratios=[3, 1.5, 1])
    top.plot(steps, loss, color="tab:blue", alpha=0.3, linewidth=1, label="each logged step")
    top.plot(steps, smooth(loss, max(3, len(loss) // 20)), color="tab:blue", label="mean")
    top.set_ylabel("loss")
    top.legend()
    middle.plot(steps, columns["target_var"], color="tab:orange", label="target")
    middle.plot(steps, columns["pred_var"], color="tab:green", label="prediction")
    middle.set_ylabel("variance over tokens")
    middle.set_ylim(bottom=0)
    middle.legend()
    bottom.plot(steps, columns["lr"], color="tab:gray")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.3)
    if title:
        figure.suptitle(title)
    _write(canvas, out)
    return out


def _write(canvas: Any, out: Path) -> None:
    temporary = out.parent / f".tmp-{out.name}-{os.getpid()}"
    try:
        canvas.print_png(str(temporary))
        os.replace(temporary, out)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise errors.TrainingError(f"{out}: cannot be written: {error.strerror or error}") from error
