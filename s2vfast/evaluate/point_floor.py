"""The floor of point clouds: how full the cells of a coarse grid are, and how that changes; nothing is trained for it.

A recording is `FRAMES` frames, one of each of so many equal bins, about the centre of its first. Its features are the
share of points in every cell, and the mean change of that share from a frame to the next, each averaged over every one
of `BINS` stretches of time, and their square roots. Ridge regression and the nearest neighbour read them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from s2vfast.evaluate import floor
from s2vfast.evaluate.context import EvalContext
from s2vfast.train.feed import Recordings

FRAMES, POINTS = 36, 1024
BINS = 3
CELL = 0.2
"""Edge of a cell, metres."""
REACH = 6
"""Cells from the centre to each side; points beyond are in the outermost."""
PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""Of ridge regression, in units of features / sequences."""
FEATURES = ("occupancy", "occupancy and its changes")
_BATCH = 64


def occupancy(clips: Tensor) -> Tensor:
    """Features of clips [n, T, P, 3]: square roots of `BINS` means of the shares, then of their changes.

    Returns:
        float32 [n, 2 * BINS * (2 * REACH)**3].
    """
    n, T, P, _ = clips.shape
    side = 2 * REACH
    cell = (torch.floor(clips / CELL).long() + REACH).clamp(0, side - 1)  # [n, T, P, 3]
    cell = (cell[..., 0] * side + cell[..., 1]) * side + cell[..., 2]
    frames = torch.arange(n * T).view(n, T, 1) * side**3
    counts = torch.bincount((cell + frames).flatten(), minlength=n * T * side**3)
    occupied = counts.view(n, T, -1) / P
    changes = occupied.diff(dim=1).abs()
    means = [part.mean(dim=1) for table in (occupied, changes) for part in table.tensor_split(BINS, dim=1)]
    return torch.cat(means, dim=1).sqrt()


def measure(context: EvalContext) -> dict[str, Any]:
    """``rows`` and accuracies as of `s2vfast.evaluate.floor.measure`; nothing in them is random.

    Returns:
        The result of ridge regression on occupancy and its changes, and ``rows``: each features and classifier.
    """
    data = replace(context.config.data, frames=FRAMES, points=POINTS, sampling="bins", stride=1, center="first")
    recordings = Recordings(replace(context.config, data=data), context.store, torch.device("cpu"))
    classes = context.store.classes

    def table(part: int) -> Tensor:
        ids, batches = context.ids[part], []
        for start in range(0, len(ids), _BATCH):
            batches.append(occupancy(recordings.clips(torch.from_numpy(ids[start : start + _BATCH]))))
            if context.progress is not None:
                context.progress(f"floor: clips of {context.parts[part]}", min(start + _BATCH, len(ids)), len(ids))
        return torch.cat(batches)

    labels, test_labels = (part.cpu() for part in context.labels)
    train, test = table(0), table(1)
    rows, result = [], {}
    for name, columns in zip(FEATURES, (train.shape[1] // 2, train.shape[1]), strict=True):
        fitted, held = train[:, :columns], test[:, :columns]
        penalties = [penalty * columns / len(fitted) for penalty in PENALTIES]
        parts = (name, fitted, labels, held, test_labels, classes)
        row, result = floor.ridge_row(*parts, penalties=penalties, standardize=False)
        rows += [row, floor.neighbor_row(*parts, "none")]
    return result | {"rows": rows}
