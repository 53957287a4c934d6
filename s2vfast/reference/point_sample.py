"""From ragged recordings of points to clips of as many points in every frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s2vfast.reference import philox

START, BINS = 0, 1
"""Draws of the stream POINT_FRAMES: where the window starts; frame t within its bin is draw BINS + t."""


@dataclass(frozen=True)
class PointSpec:
    """What a clip of points is."""

    frames: int
    """T."""
    points: int
    """P, drawn of every frame."""
    stride: int = 1
    """Frames of the recording from one of the clip's to the next, with ``window``."""
    sampling: str = "window"
    """``window``: frames ``stride`` apart; ``even``: one of each of T equal bins of the whole recording. A recording
    that is shorter than the window, or has fewer than T frames, is stretched: its frames are repeated."""

    def __post_init__(self) -> None:
        if min(self.frames, self.points, self.stride) < 1 or self.sampling not in ("window", "even"):
            raise ValueError(f"{self}: expected frames, points, stride >= 1, and sampling 'window' or 'even'")

    @property
    def span(self) -> int:
        """Frames of the recording that a window covers."""
        return (self.frames - 1) * self.stride + 1


def frame_table(offsets: Tensor, row: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Where the points of each frame lie; a frame without any has those of the nearest of its sequence that has some.

    Args:
        offsets: int64 [F + 1], frame f has the points ``offsets[f]`` to ``offsets[f + 1]``.
        row: int64 [Q], first frame of each sequence.
        count: [Q], its frames.

    Returns:
        begin int64 [F] and size int32 [F], as `point_sample` takes them. Of two frames as near, the earlier one. In a
        sequence without points all sizes are 0.
    """
    begin, size = offsets[:-1].clone(), offsets.diff()
    for first, frames in zip(row.tolist(), count.tolist(), strict=True):
        span = slice(first, first + frames)
        seen = torch.nonzero(size[span] > 0)[:, 0]
        if 0 < len(seen) < frames:
            # argmin takes the first of equal distances, which is the earlier frame.
            nearest = (torch.arange(frames)[:, None] - seen[None]).abs().argmin(1)
            begin[span], size[span] = begin[span][seen[nearest]], size[span][seen[nearest]]
    return begin, size.to(torch.int32)


def _pick(bins: int, i: int, n: int, draw: int | None) -> int:
    """One of the n things that lie in bin i of ``bins`` equal ones; the one at its start where the bin has none."""
    low, high = i * n // bins, (i + 1) * n // bins
    return low + ((high - low) // 2 if draw is None else draw * (high - low) >> 32)


def frames_of(count: int, sample: int, spec: PointSpec, seed: int, epoch: int, training: bool, window: tuple) -> list:
    """Frame numbers of a clip: T integers in [0, count), ascending.

    Args:
        count: frames of the recording.
        sample: its number.
        spec: what a clip is.
        seed: of the draws.
        epoch: of the draws.
        training: False: no draws.
        window: (i, n): without training, window i of n whose starts are spread evenly.
    """
    T = spec.frames
    draws = [None] * (T + 1)
    if training:
        draws = philox.random_bits(seed, epoch, torch.tensor([sample]), philox.POINT_FRAMES, T + 1)[0].tolist()
    if spec.sampling == "even" or count < spec.span:
        # A window that is longer than the recording has no start to draw: its frames are those at the start of bins.
        return [_pick(T, t, count, draws[BINS + t] if spec.sampling == "even" else 0) for t in range(T)]
    starts = count - spec.span + 1
    i, n = window
    start = draws[START] * starts >> 32 if training else (2 * i + 1) * starts // (2 * n)
    return [start + t * spec.stride for t in range(T)]


def point_sample(
    points: Tensor,
    begin: Tensor,
    size: Tensor,
    row: Tensor,
    count: Tensor,
    origin: Tensor,
    ids: Tensor,
    spec: PointSpec,
    *,
    seed: int = 0,
    epoch: int = 0,
    training: bool = True,
    window: int = 0,
    windows: int = 1,
) -> Tensor:
    """Arguments and result as of `s2vfast.ops.point_sample`.

    Points of a frame are drawn as frames of ``even`` are: point p of a clip is one of the p-th of P equal bins of the
    frame's points, uniformly, so that none comes twice while the frame has P or more; of fewer each comes as often as
    any other, give or take one. Draw t * P + p of the stream POINTS decides. Without training it is the middle one.
    """
    T, P = spec.frames, spec.points
    clips = torch.full((len(ids), T, P, 3), float("nan"), device=points.device)
    for b, sample in enumerate(ids.tolist()):
        first = int(row[sample])
        draws = [None] * (T * P)
        if training:
            draws = philox.random_bits(seed, epoch, torch.tensor([sample]), philox.POINTS, T * P)[0].tolist()
        frames = frames_of(int(count[sample]), sample, spec, seed, epoch, training, (window, windows))
        for t, frame in enumerate(frames):
            start, n = int(begin[first + frame]), int(size[first + frame])
            if n:
                index = [start + _pick(P, p, n, draws[t * P + p]) for p in range(P)]
                clips[b, t] = points[index].float() - origin[sample].float()
    return clips
