"""The floor: what no learned representation is needed for. An encoder that does not reach it has learned little.

Two kinds of features that nothing was trained for, and two classifiers. Random convolutions are ROCKET's (Dempster,
Petitjean and Webb, 2020): kernels of random length, dilation, channels and weights, of whose output the share of
positive values and the maximum count. Coordinates are the joints of a clip as they are. Ridge regression and the
nearest neighbour read both.

Clips are made in one way whatever network the run has: the whole recording, resampled to `FRAMES`, centred, and turned
to face one way where the skeleton's vertical is known. Random convolutions see joints, bones and motion, each number
standardised by the training part.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast import errors
from s2vfast.config import Config
from s2vfast.data.clips import clip_spec
from s2vfast.data.store import Store
from s2vfast.data.streams import Stream
from s2vfast.evaluate import knn, measures, metrics, ridge
from s2vfast.evaluate.context import EvalContext
from s2vfast.networks.rocket import draw_kernel
from s2vfast.train.feed import Recordings

FRAMES = 64
KERNELS = 1500
COPIES = 5
"""Drawn clips of every training sequence that ridge regression is fitted to, beside the one that is not drawn."""
STREAMS = ("joint", "bone", "motion")
CONVOLUTIONS = "random convolutions"
COORDINATE_FRAMES = 32
"""Frames of a clip whose coordinates count as features."""
_LENGTHS = (7, 9, 11)
_BATCH = 64


@dataclass(frozen=True)
class Kernels:
    """Kernels of one length, dilation and padding."""

    channels: Tensor
    """int64 [K, J]: the channels that a kernel looks at; unused places are 0."""
    weight: Tensor
    """[K, J, length], zeros in unused places."""
    bias: Tensor
    """[K]."""
    dilation: int
    """Frames from one tap to the next."""
    padding: int
    """Zeros before and after the clip."""

    def __call__(self, x: Tensor) -> Tensor:
        """[n, 2 K] of standardised clips [n, C, T]: shares of positive values, then maxima."""
        K, J, _ = self.weight.shape
        inputs = x[:, self.channels.flatten()]  # [n, K * J, T]
        output = F.conv1d(inputs, self.weight, self.bias, padding=self.padding, dilation=self.dilation, groups=K)
        return torch.cat([(output > 0).to(x.dtype).mean(dim=2), output.amax(dim=2)], dim=1)


def draw_kernels(count: int, channels: int, frames: int, seed: int) -> list[Kernels]:
    """ROCKET's kernels for clips [n, channels, frames], those of one shape together.

    Lengths are 7, 9 or 11, dilations 2^u, u uniform up to the largest with which the kernel fits into the clip; half of
    the kernels pad the clip. Of channels a kernel has at most as many as it is long. All else is `draw_kernel`.
    """
    numbers = np.random.Generator(np.random.Philox(seed))
    lengths = [length for length in _LENGTHS if length <= frames] or [frames]
    drawn: dict[tuple[int, int, int], list[tuple[np.ndarray, np.ndarray, float]]] = {}
    for _ in range(count):
        length = int(numbers.choice(lengths))
        picked, weight, bias = draw_kernel(numbers, channels, length, min(channels, length))
        reach = (frames - 1) / max(length - 1, 1)
        dilation = int(2 ** numbers.uniform(0, math.log2(max(reach, 1.0))))
        padding = (length - 1) * dilation // 2 * int(numbers.integers(2))
        drawn.setdefault((length, dilation, padding), []).append((picked, weight, bias))
    groups = []
    for (length, dilation, padding), kernels in sorted(drawn.items()):
        widest = max(len(picked) for picked, _, _ in kernels)
        index = np.zeros((len(kernels), widest), np.int64)
        weights = np.zeros((len(kernels), widest, length), np.float32)
        for row, (picked, weight, _) in enumerate(kernels):
            index[row, : len(picked)], weights[row, : len(picked)] = picked, weight
        bias = torch.tensor([bias for _, _, bias in kernels], dtype=torch.float32)
        groups.append(Kernels(torch.from_numpy(index), torch.from_numpy(weights), bias, dilation, padding))
    return groups


def recordings_of(config: Config, store: Store) -> Recordings:
    """A store whose clips are made as above; drawn ones of a random stretch of each recording, turned a little."""
    data = replace(
        config.data, frames=FRAMES, sampling="crop", crop_min=0.8, center="first", scale="none", align="yaw",
        rotate=(0.1, 0.1, 0.1), scale_jitter=0.1, train_steps=(), test_steps=(), stream="joint", velocity=0.0,
        confidence=False,
    )  # fmt: skip
    try:
        clip_spec(data, store.layout)
    except errors.ConfigError:  # no vertical to turn about
        data = replace(data, align="none", rotate=(0.0, 0.0, 0.1))
    return Recordings(replace(config, data=data), store, torch.device("cpu"))


def clips_of(
    recordings: Recordings,
    ids: np.ndarray,
    draw: int | None = None,
    seed: int = 0,
    report: Callable[[int], object] | None = None,
) -> Tensor:
    """float32 [n, M, T, V, 3] of sequences."""
    batches = []
    for start in range(0, len(ids), _BATCH):
        batch_ids = torch.from_numpy(ids[start : start + _BATCH])
        batches.append(recordings.clips(batch_ids, epoch=draw, seed=seed).unflatten(0, (-1, recordings.bodies)))
        if report is not None:
            report(start + len(batch_ids))
    return torch.cat(batches)


def measure(context: EvalContext, seeds: Sequence[int] = (0,), copies: int = COPIES) -> dict[str, Any]:
    """The floor of two parts of a split.

    Args:
        context: what is measured; of its run the split and the number of bodies count alone.
        seeds: of kernels and drawn clips; several give means and sample standard deviations.
        copies: drawn clips of a training sequence, see `COPIES`; 0: none.

    Returns:
        `measures.scores` of ridge regression on random convolutions, fitted without drawn clips or with ``copies`` of
        them, whichever the folds of the training part prefer; ``made_by``, which it is; and ``rows``, all that was
        measured: ``features``, ``classifier``, ``copies`` and the accuracies.
    """
    measured = [_measure(context, seed, copies) for seed in seeds]
    rows = [
        {**{name: alike[0][name] for name in ("features", "classifier", "copies")}, **_mean(alike)}
        for alike in zip(*(one["rows"] for one in measured), strict=True)
    ]
    # One choice for all seeds.
    best = max((row for row in rows if "validation" in row and row["features"] == CONVOLUTIONS), key=_validation)
    best_results = [one["results"][best["copies"]] for one in measured]
    return measures.aggregate(best_results) | {"made_by": best, "rows": rows}


def _validation(row: dict[str, Any]) -> float:
    return row["validation"]


def _mean(alike: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies of one measure over seeds."""
    result: dict[str, Any] = {}
    for name in (*metrics.ACCURACIES, "validation"):
        values = [row[name] for row in alike if name in row]
        if values:
            result[name] = statistics.fmean(values)
            if len(values) > 1 and name != "validation":
                result |= {f"{name}_std": statistics.stdev(values), f"{name}_each": values}
    return result


def _measure(context: EvalContext, seed: int, copies: int) -> dict[str, Any]:
    """Of one seed: ``rows``, and ``results`` of ridge regression on random convolutions by the number of copies."""
    labels, test_labels = (part.cpu() for part in context.labels)
    classes, recordings = context.store.classes, recordings_of(context.config, context.store)

    def clips(part: int, draw: int | None = None) -> Tensor:
        what = f"floor: clips of {context.parts[part]}" + ("" if draw is None else f", draw {draw + 1} of {copies}")
        ids, progress = context.ids[part], context.progress
        report = None if progress is None else lambda done: progress(what, done, len(ids))
        return clips_of(recordings, ids, draw, seed, report)

    train, test = clips(0), clips(1)
    convolutions = _Convolutions(train, context.store, seed)
    tables = {
        CONVOLUTIONS: (convolutions(train), convolutions(test)),
        "coordinates": tuple(part[:, :, :: FRAMES // COORDINATE_FRAMES].flatten(1) for part in (train, test)),
    }
    rows, results = [], {}
    for name, (fitted, held) in tables.items():
        candidates = [fitted[None]]
        if name == CONVOLUTIONS and copies:
            candidates.append(torch.stack([fitted, *(convolutions(clips(0, draw)) for draw in range(copies))]))
        for table in candidates:
            row, result = ridge_row(name, table, labels, held, test_labels, classes)
            rows.append(row)
            if name == CONVOLUTIONS:
                results[row["copies"]] = result
    for name, (fitted, held) in tables.items():
        rows.append(neighbor_row(name, fitted, labels, held, test_labels, classes, "standardize"))
    return {"rows": rows, "results": results}


def ridge_row(
    name: str, fitted: Tensor, labels: Tensor, held: Tensor, test_labels: Tensor, classes: Sequence[str], **options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ridge regression on features called ``name``: its row of `measure`, and its `measures.scores`.

    ``fitted`` is [n, F] or, with copies, [A, n, F]; ``held`` [m, F]; ``options`` are those of `ridge.fit`.
    """
    model = ridge.fit(fitted, labels, classes=len(classes), **options)
    result = measures.scores(metrics.rank_scores(model.scores(held)), test_labels, classes)
    copies = len(fitted) - 1 if fitted.ndim == 3 else 0
    about = {"features": name, "classifier": "ridge", "copies": copies, "validation": model.validation}
    return about | measures.accuracies(result), result


def neighbor_row(
    name: str,
    fitted: Tensor,
    labels: Tensor,
    held: Tensor,
    test_labels: Tensor,
    classes: Sequence[str],
    transform: knn.Transform,
) -> dict[str, Any]:
    """The nearest neighbour's row of `measure`; ``fitted`` [n, F], ``held`` [m, F]."""
    ranked = knn.rank(fitted, labels, held, classes=len(classes), transform=transform)
    accuracies = measures.accuracies(measures.scores(ranked, test_labels, classes))
    return {"features": name, "classifier": "1-NN", "copies": 0} | accuracies


class _Convolutions:
    """Random convolutions of clips, standardised by those of a training part [n, M, T, V, 3]."""

    def __init__(self, train: Tensor, store: Store, seed: int) -> None:
        self._layout = store.layout
        x = self._channels(train)
        self._mean, self._deviation = (
            value[:, None] for value in knn.mean_and_deviation(x.transpose(1, 2).flatten(0, 1))
        )
        self._kernels = draw_kernels(KERNELS, x.shape[1], x.shape[2], seed)

    def _channels(self, clips: Tensor) -> Tensor:
        """[n, streams * M * V * 3, T]."""
        streams = torch.stack([Stream(name)(clips, self._layout) for name in STREAMS], dim=1)  # [n, S, M, T, V, 3]
        return streams.movedim(3, -1).flatten(1, -2)

    def __call__(self, clips: Tensor) -> Tensor:
        """[n, 2 * kernels]."""
        features = []
        for part in clips.split(_BATCH):
            x = (self._channels(part) - self._mean) / self._deviation
            features.append(torch.cat([kernels(x) for kernels in self._kernels], dim=1))
        return torch.cat(features)
