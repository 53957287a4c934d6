"""Steps that change which moments a clip shows: crops, resampling to T frames, and Hi-TRS's sliding windows.

Frame numbers are computed in float64 on any device, and no number of frames is read back from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from s2vfast.config.fields import option
from s2vfast.data.augment.base import Augmentation, ViewBatch, register_augmentation, uniform
from s2vfast.reference import philox


def take(clips: Tensor, frames: Tensor) -> Tensor:
    """Frames [B, T'] of clips [B, M, T, V, C]: [B, M, T', V, C]."""
    index = frames[:, None, :, None, None].expand(-1, clips.shape[1], -1, *clips.shape[3:])
    return torch.gather(clips, 2, index)


def resample(clips: Tensor, start: Tensor, length: Tensor, frames: int) -> Tensor:
    """Frames [start, start + length) of every sample, linearly interpolated to ``frames``.

    Frame t of the result lies at start + (t + ½) length / frames - ½ (half-pixel centres: OpenCV's and PyTorch's
    ``align_corners=False``), held within the first and the last of the frames.

    Args:
        clips: [B, M, T, V, C].
        start: int64 [B].
        length: int64 [B], 1 or more.
        frames: T of the result.
    """
    steps = torch.arange(frames, dtype=torch.float64, device=clips.device)
    last = (length - 1).clamp(min=0)[:, None]
    position = (steps + 0.5) * length[:, None] / frames - 0.5
    position = torch.minimum(position.clamp(min=0.0), last.double())
    lower = position.floor()
    weight = (position - lower).to(clips.dtype)[:, None, :, None, None]
    lower = lower.long()
    upper = torch.minimum(lower + 1, last)
    begin = start[:, None]
    return take(clips, begin + lower) * (1.0 - weight) + take(clips, begin + upper) * weight


@register_augmentation("resize", stream=26)
@dataclass(frozen=True)
class Resize(Augmentation):
    """All frames of a sample, linearly interpolated to a number of frames (see `resample`)."""

    frames: int = option(64, ge=1)
    """Frames that come out."""

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: none."""
        clips = resample(batch.clips, torch.zeros_like(batch.lengths), batch.lengths, self.frames)
        return replace(batch, clips=clips, lengths=torch.full_like(batch.lengths, self.frames))

    def frames_out(self, frames: int) -> int:
        """The field ``frames``."""
        return self.frames


@register_augmentation("crop_resize", stream=27)
@dataclass(frozen=True)
class CropResize(Augmentation):
    """A stretch of a sample's frames, linearly interpolated to a number of frames (CTR-GCN's loader for NTU).

    Training takes floor(p · length) frames, p uniform in [low, high], but at least ``least`` or all, from a uniform
    start. Testing (``central``, low = high = 0.95) leaves int((1 - p) · length / 2) frames out at each end.
    """

    frames: int = option(64, ge=1)
    """Frames that come out."""
    low: float = option(0.5, gt=0, le=1)
    """Smallest stretch, relative to the sample's length, in (0, 1]."""
    high: float = 1.0
    """Largest stretch, in [low, 1]."""
    least: int = option(64, ge=1)
    """Frames that a random stretch has at least, where the sample has them."""
    central: bool = False
    """The middle of the sample, in place of a random start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.low <= self.high <= 1, "high", "a number from low to 1")

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: 2, p and the start."""
        start, length = self.stretch(self.draws(batch, 2), batch.lengths)
        clips = resample(batch.clips, start, length, self.frames)
        return replace(batch, clips=clips, lengths=torch.full_like(batch.lengths, self.frames))

    def stretch(self, draws: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """First frame and number of frames, int64 [B] each, of draws [B, 2] and lengths [B]."""
        ratio = uniform(draws[:, 0], self.low, self.high, torch.float64)
        if self.central:
            start = ((1.0 - ratio) * lengths / 2).long()
            return start, lengths - 2 * start
        length = torch.minimum((lengths * ratio).floor().long().clamp(min=self.least), lengths)
        return philox.randint(draws[:, 1], lengths - length + 1), length

    def frames_out(self, frames: int) -> int:
        """The field ``frames``."""
        return self.frames


@register_augmentation("mirror_crop", stream=28)
@dataclass(frozen=True)
class MirrorCrop(Augmentation):
    """As many frames as a sample has, from a clip that goes on in a mirror at both ends (SkeAttnCLR's temporal crop).

    length // ratio reversed frames are put before the first and after the last frame, which are repeated; the start is
    uniform on all that leave a whole clip.
    """

    ratio: int = option(6, ge=1)
    """The part of the length that is put at each end."""

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: 1, the start."""
        lengths = batch.lengths[:, None]
        pad = lengths // self.ratio
        start = philox.randint(self.draws(batch, 1), 2 * pad + 1)
        clips = take(batch.clips, mirrored_frames(start - pad, lengths, batch.clips.shape[2]))
        return replace(batch, clips=clips.masked_fill(~batch.in_length, 0.0))


def mirrored_frames(first: Tensor, lengths: Tensor, frames: int) -> Tensor:
    """Frame numbers first, first + 1, … in a clip that goes on in a mirror: int64 [B, frames] of [B, 1] each."""
    at = first + torch.arange(frames, device=first.device)
    at = torch.where(at < 0, -1 - at, at)
    at = torch.where(at >= lengths, 2 * lengths - 1 - at, at)
    return torch.minimum(at.clamp(min=0), (lengths - 1).clamp(min=0))


@register_augmentation("sample_frames", stream=29)
@dataclass(frozen=True)
class SampleFrames(Augmentation):
    """Frames drawn without replacement from so many copies of every frame, in their order (NW-UCLA: 52 of 100 copies).

    ``even`` takes floor(linspace(0, length - 1, frames)) instead, without a draw (NW-UCLA's test). A sample with fewer
    than frames / copies frames shows each of them equally often.
    """

    frames: int = option(52, ge=1)
    """Frames that come out."""
    copies: int = option(100, ge=1, le=1000)
    """Copies of each frame that are drawn from; 1: no frame twice."""
    even: bool = False
    """Evenly spaced frames, as published for testing."""

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: one for each frame that comes out."""
        if self.even:
            index = even_frames(batch.lengths, self.frames)
        else:
            copies = (self.copies * batch.lengths).clamp(min=self.frames)
            copy = without_replacement(self.draws(batch, self.frames), copies)
            index = copy * batch.lengths[:, None] // copies[:, None]
        return replace(batch, clips=take(batch.clips, index), lengths=torch.full_like(batch.lengths, self.frames))

    def frames_out(self, frames: int) -> int:
        """The field ``frames``."""
        return self.frames


def even_frames(lengths: Tensor, frames: int) -> Tensor:
    """floor(linspace(0, length - 1, frames)) with NumPy's rounding: int64 [B, frames]."""
    last = (lengths - 1).clamp(min=0)[:, None]
    step = last.double() / max(frames - 1, 1)
    index = (torch.arange(frames, dtype=torch.float64, device=lengths.device) * step).floor().long()
    # linspace ends in its end, whatever the product was rounded to.
    is_end = torch.arange(frames, device=lengths.device) == frames - 1
    return torch.where(is_end & (frames > 1), last, index)


def without_replacement(draws: Tensor, population: Tensor) -> Tensor:
    """A uniformly drawn subset of {0, …, population - 1}, ascending: int64 [B, n].

    Floyd's algorithm (Bentley and Floyd, CACM 30, 1987): one draw an element, whatever the population's size.

    Args:
        draws: int64 [B, n], uniform in [0, 2**32).
        population: int64 [B], n or more.
    """
    n = draws.shape[1]
    subset = torch.full_like(draws, -1)
    for at in range(n):
        newest = population - n + at
        candidate = philox.randint(draws[:, at], newest + 1)
        repeated = (subset[:, :at] == candidate[:, None]).any(1)
        subset[:, at] = torch.where(repeated, newest, candidate)
    return subset.sort(dim=1).values


@register_augmentation("interpolate", stream=30)
@dataclass(frozen=True)
class Interpolate(Augmentation):
    """x[t] ← x[t] + r (x[t + 1] - x[t]), one r uniform in [0, 1) a sample; the last frame stays (Hi-TRS)."""

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: 1."""
        clips, T = batch.clips, batch.clips.shape[2]
        ratio = uniform(self.draws(batch, 1), 0.0, 1.0, clips.dtype)[:, :, None, None, None]
        following = torch.arange(T, device=clips.device).expand(clips.shape[0], T) + 1
        last = (batch.lengths - 1).clamp(min=0)[:, None]
        moved = clips + ratio * (take(clips, torch.minimum(following, last)) - clips)
        return replace(batch, clips=torch.where(batch.in_length, moved, clips))


@register_augmentation("trim", stream=31)
@dataclass(frozen=True)
class Trim(Augmentation):
    """round(u · length) frames are cut off, u uniform, divided at random between start and end (Hi-TRS: u to 0.2).

    Rounding is to the even number, as Python's; the number that the start loses is uniform on 0 … all of them.
    """

    most: float = option(0.2, ge=0, lt=1)
    """Largest u, in [0, 1)."""

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: 2, u and the number of frames that the start loses."""
        clips, T = batch.clips, batch.clips.shape[2]
        draws = self.draws(batch, 2)
        cut = torch.round(batch.lengths * uniform(draws[:, 0], 0.0, self.most, torch.float64)).long()
        start = philox.randint(draws[:, 1], cut + 1)
        index = (start[:, None] + torch.arange(T, device=clips.device)).clamp(max=T - 1)
        trimmed = replace(batch, clips=take(clips, index), lengths=batch.lengths - cut)
        return replace(trimmed, clips=trimmed.clips.masked_fill(~trimmed.in_length, 0.0))


@register_augmentation("pad", stream=44)
@dataclass(frozen=True)
class Pad(Augmentation):
    """All frames as they were recorded, then zeros up to a number of frames; what is longer is cut at its end."""

    frames: int = option(300, ge=1)
    """Frames that come out."""

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: none."""
        missing = max(0, self.frames - batch.clips.shape[2])
        clips = torch.nn.functional.pad(batch.clips[:, :, : self.frames], (0, 0, 0, 0, 0, missing))
        return replace(batch, clips=clips, lengths=batch.lengths.clamp(max=self.frames))

    def frames_out(self, frames: int) -> int:
        """The field ``frames``."""
        return self.frames


def sliding_windows(length: int, width: int = 7, stride: int = 7, dilation: int = 2) -> list[list[int]]:
    """Hi-TRS's windows of a clip: frame numbers in the clip with width // 2 · dilation zero frames put at both ends.

    Windows begin at 0, stride, 2 · stride, …: all that lie within the padded clip, and as many more as it takes to see
    the clip's last frame. Numbers beyond the padded clip mean zero frames.

    Args:
        length: frames of the clip, without the zero frames; 1 or more.
        width: frames of a window.
        stride: frames from the start of one window to the next.
        dilation: frames from one frame of a window to the next.
    """
    pad = width // 2 * dilation
    span = (width - 1) * dilation + 1
    padded, last = length + 2 * pad, pad + length - 1
    within = (padded - span) // stride + 1 if padded >= span else 0
    needed = max(0, -(-(last + 1 - span) // stride)) + 1
    starts = range(0, max(within, needed) * stride, stride)
    return [[start + dilation * at for at in range(width)] for start in starts]
