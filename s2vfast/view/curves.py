"""The course of runs: their numbers read back, a page and a picture of them, and one line of text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import s2vfast.errors as errors
from s2vfast.train import rundir
from s2vfast.view import page, pictures

_BLOCKS = "▁▂▃▄▅▆▇█"


def read_metrics(path: str | Path) -> dict[str, np.ndarray]:
    """The columns of a run's metrics.jsonl or throughput.jsonl.

    Args:
        path: The file. Half a line at its end, as a kill may leave it, is passed over.

    Returns:
        float64 [lines] by name; of metrics step, epoch, loss, lr, ema_decay, grad_norm, target_var, pred_var.

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


@dataclass(frozen=True)
class Run:
    """The course of one run."""

    name: str
    columns: dict[str, tuple[np.ndarray, np.ndarray]]
    """By name the steps, float64 [n], and the values there, float64 [n]."""
    epochs_per_step: float


PANELS = (
    ("loss", (("loss", ""),)),
    ("variance over tokens", (("target_var", "target"), ("pred_var", "prediction"))),
    ("gradient norm", (("grad_norm", ""),)),
    ("learning rate", (("lr", ""),)),
    ("throughput (clips/s)", (("clips_per_second", ""),)),
)
"""The panels: an axis each, and its columns with the label of each."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b4589a", "#3f9bd8", "#c98500", "#70757a", "#8c8a00")
POINTS = 2000
"""Points of a line in a page; of longer runs every second logged step is shown, every third, and so on."""


def read_run(path: str | Path, name: str | None = None) -> Run:
    """What a run's folder, or a metrics.jsonl alone, says of its course.

    Args:
        path: The folder or the file.
        name: What to call it; None: the folder's name.

    Raises:
        CheckpointError: No run there, or one without a line yet.
    """
    path = Path(path)
    if path.is_dir():
        if not rundir.begun(path):
            raise errors.CheckpointError(f"{path}: no run here; a folder made by `s2vfast pretrain` is expected")
        metrics, throughput = path / rundir.METRICS, path / rundir.THROUGHPUT
    else:
        metrics, throughput = path, None
    series = read_metrics(metrics)
    columns = {key: (series["step"], values) for key, values in series.items() if key not in ("step", "epoch")}
    if throughput is not None and throughput.is_file() and throughput.stat().st_size:
        rates = read_metrics(throughput)
        # A run that went on from a checkpoint did some steps twice: the last time counts.
        steps, last = np.unique(rates["step"][::-1], return_index=True)
        columns["clips_per_second"] = (steps, rates["clips_per_second"][::-1][last])
    return Run(name or path.resolve().name, columns, float(series["epoch"][-1] / max(series["step"][-1], 1)))


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Several runs, each named by the shortest end of its path that no other run has."""
    path_parts = [Path(path).resolve().parts for path in paths]
    if len(set(path_parts)) < len(path_parts):
        raise errors.ConfigError(f"RUN: a run is named twice: {', '.join(map(str, paths))}")
    length = next(n for n in itertools.count(1) if len({parts[-n:] for parts in path_parts}) == len(path_parts))
    return [read_run(path, "/".join(parts[-length:])) for path, parts in zip(paths, path_parts, strict=True)]


def thinned(steps: np.ndarray, values: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """About ``points`` of the points at even distances, the last one among them."""
    every = -(-len(steps) // points)
    return steps[::-every][::-1], values[::-every][::-1]


def write(runs: Sequence[Run], out: str | Path) -> Path:
    """Write the page of some runs."""
    data: dict[str, Any] = {
        "panels": [{"axis": axis, "lines": lines} for axis, lines in PANELS],
        "colours": COLOURS,
        "runs": [
            {
                "name": run.name,
                "epochs_per_step": run.epochs_per_step,
                "columns": {
                    name: [page.packed(part.astype(np.float32)) for part in thinned(*column)]
                    for name, column in run.columns.items()
                    if any(name == key for _, lines in PANELS for key, _ in lines)
                },
            }
            for run in runs
        ],
    }
    return page.write(out, "curves", "Training curves", ", ".join(run.name for run in runs), data)


def draw(
    runs: Sequence[Run], out: str | Path, *, title: str = "", log: bool = False, panels: Sequence[Any] = PANELS
) -> Path:
    """Draw runs over their steps as a PNG: every logged value pale, its mean over a 20th of the run on top.

    Args:
        runs: Some runs.
        out: The picture; it is replaced where it is there, and there whole or not at all.
        title: Printed above.
        log: Logarithmic vertical axes.
        panels: Of `PANELS`; those of which no run has a column are left out.

    Raises:
        DataError: The picture cannot be written.
    """
    panels = [entry for entry in panels if any(key in run.columns for run in runs for key, _ in entry[1])]
    figure = pictures.figure(8, 1.2 + 1.7 * len(panels))
    heights = [2.0, *[1.0] * (len(panels) - 1)]
    all_axes = figure.subplots(len(panels), sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (label, lines) in zip(all_axes, panels, strict=True):
        for i, run in enumerate(runs):
            for (key, kind), style in zip(lines, ("-", "--"), strict=False):
                if key not in run.columns:
                    continue
                steps, values = run.columns[key]
                colour = COLOURS[i % len(COLOURS)]
                named = pictures.plain(", ".join(part for part in (run.name if len(runs) > 1 else "", kind) if part))
                axes.plot(steps, values, style, color=colour, alpha=0.25, linewidth=0.8)
                mean = smooth(values, max(3, len(values) // 20))
                axes.plot(steps, mean, style, color=colour, linewidth=1.6, label=named or None)
        axes.set_ylabel(label, fontsize=8)
        axes.grid(alpha=0.3)
        if log:
            axes.set_yscale("log")
        # One legend says which run has which colour; a panel of several lines says which is which.
        if axes.get_legend_handles_labels()[1] and (axes is all_axes[0] or len(lines) > 1):
            axes.legend(fontsize=7)
    all_axes[-1].set_xlabel("step")
    if title:
        figure.suptitle(pictures.plain(title))
    return pictures.save(figure, out)


def loss_curve(metrics: str | Path, out: str | Path, title: str = "") -> Path:
    """Draw loss, learning rate and the variances of target and prediction of one run as a PNG.

    Args:
        metrics: A run's metrics.jsonl.
        out: As in `draw`.
        title: Printed above.

    Raises:
        CheckpointError: The metrics cannot be read.
        DataError: The picture cannot be written.
    """
    return draw([read_run(metrics)], out, title=title, panels=(PANELS[0], PANELS[1], PANELS[3]))
