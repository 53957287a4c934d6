"""Which frames, windows and videos go through Hi-TRS's levels, and what dropout keeps of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from s2vfast.networks.noise import Draws, dropout_keep, word_count

if TYPE_CHECKING:
    from s2vfast.networks.hitrs import HiTRSConfig

PAIRS = 2046
"""Frames and windows of a track have smaller numbers; the windows that `HiTRSLoss` swaps frames in have these."""
Scale = Callable[[int], Tensor]
"""Factors of a block's two branches by its number in the level, [2, …], broadcast over rows."""
_CHUNK = 2**22
"""Random words at a time."""


@dataclass(frozen=True)
class Packing:
    """Rows of the three levels.

    Parts number the rows of a track within a level, for draws that are to be a row's own; frames, windows and videos of
    one track have parts of their own.
    """

    frames: Tensor
    """int64 [F]: rows of clips [N * T, V, C]. Packed frame 0 is empty, frame i + 1 is ``frames[i]``."""
    windows: Tensor
    """int64 [W, window]: packed frames of each window."""
    videos: tuple[Tensor, ...]
    """int64 [n, k] each: windows of n videos that have k; all n together are R."""
    order: Tensor
    """int64 [R]: where each video stands among those of ``videos`` in turn."""
    tracks: tuple[Tensor, Tensor, Tensor]
    """int64 [1 + F] (0 for the empty frame), [W], and [R] of videos of ``videos`` in turn."""
    parts: tuple[Tensor, Tensor, Tensor]
    """Likewise, each below 2**11: frame, window, and 0 or 1 of a track's videos."""
    present: Tensor | None = None
    """bool [R, k]: which windows of the one tensor in ``videos`` are there; None: all."""


def pad_and_span(section: HiTRSConfig) -> tuple[int, int]:
    """Empty frames before and after a clip, and frames from the first of a window to its last."""
    return section.window // 2 * section.dilation, (section.window - 1) * section.dilation + 1


def window_count(length: int, section: HiTRSConfig) -> int:
    """Windows of a sequence of ``length`` frames with ``window // 2 * dilation`` empty frames put at both ends.

    All that lie within it, and as many more as it takes to see the last frame; `data.augment.temporal.sliding_windows`
    lists their frames.
    """
    pad, span = pad_and_span(section)
    within = (length + 2 * pad - span) // section.stride + 1 if length + 2 * pad >= span else 0
    return max(within, max(0, -(-(pad + length - span) // section.stride)) + 1)


def is_window(lengths: Tensor, count: int, section: HiTRSConfig) -> Tensor:
    """bool [N, count]: which windows sequences of ``lengths`` [N] have, by the rule of `window_count`."""
    pad, span = pad_and_span(section)
    starts = torch.arange(count, device=lengths.device) * section.stride
    length = lengths[:, None]
    return (starts + span <= length + 2 * pad) | (starts - section.stride + span < pad + length) | (starts == 0)


def lengths_of(clips: Tensor, bodies: int) -> Tensor:
    """int64 [N]: frames of each track, up to the last one in which any body of its sample is seen.

    Args:
        clips: [N, T, V, C], bodies of a sample next to each other, zeros where a body is absent.
        bodies: of a sample.
    """
    seen = (clips != 0).any(-1).any(-1).unflatten(0, (-1, bodies)).any(1)  # [B, T]
    steps = torch.arange(1, clips.shape[1] + 1, device=clips.device)
    return (seen * steps).amax(1).repeat_interleave(bodies)


def packed_frames(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the frames where a body is seen, and of every frame the number that it has when packed (0: empty).

    Args:
        seen: bool [N, T].

    Returns:
        (int64 [F], int64 [N, T]).
    """
    number = seen.flatten().cumsum(0).reshape(seen.shape) * seen
    return seen.flatten().nonzero()[:, 0], number


def window_frames(number: Tensor, tracks: Tensor, starts: Tensor, offsets: Tensor, pad: int) -> Tensor:
    """Packed frames [W, window] of windows of tracks [W]; frames before and after a clip are empty.

    Args:
        number: as `packed_frames` gives it.
        tracks: int64 [W].
        starts: int64 [W], first frame of a window in the padded clip.
        offsets: int64 [window] or [W, window], frames after the start.
        pad: empty frames before the clip.
    """
    at = starts[:, None] + offsets - pad
    within = (at >= 0) & (at < number.shape[1])
    return number[tracks[:, None], at.clamp(0, number.shape[1] - 1)] * within


def grouped(videos: Sequence[Sequence[int]], device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
    """Videos of as many windows together: `Packing.videos` and `Packing.order`."""
    by_count: dict[int, list[int]] = {}
    for number, video in enumerate(videos):
        by_count.setdefault(len(video), []).append(number)
    row_of = [0] * len(videos)
    turn = [number for count in sorted(by_count) for number in by_count[count]]
    for position, number in enumerate(turn):
        row_of[number] = position
    groups = tuple(torch.tensor([videos[i] for i in by_count[count]], device=device) for count in sorted(by_count))
    return groups, torch.tensor(row_of, dtype=torch.int64, device=device)


def rounded_up(count: int, most: int) -> int:
    """A capacity for ``count`` of at most ``most`` rows: one of 16, so that shapes repeat from step to step."""
    step = max(1, most // 16)
    return min(-(-count // step) * step, most)


def offsets(section: HiTRSConfig, device: torch.device) -> Tensor:
    """int64 [window]: frames of a window after its start."""
    return torch.arange(section.window, device=device) * section.dilation


def pack(clips: Tensor, bodies: int, section: HiTRSConfig) -> Packing:
    """All windows of every track of clips [N, T, V, C]. Waits for the device, as numbers of windows are shapes."""
    T, device = clips.shape[1], clips.device
    frames, number = packed_frames((clips != 0).any(-1).any(-1))
    counts = [window_count(length, section) for length in lengths_of(clips, bodies).tolist()]
    numbers = torch.tensor([i for count in counts for i in range(count)], device=device)
    tracks = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
    firsts = [sum(counts[:i]) for i in range(len(counts))]
    videos = [list(range(first, first + count)) for first, count in zip(firsts, counts, strict=True)]
    groups, order = grouped(videos, device)
    pad, _ = pad_and_span(section)
    windows = window_frames(number, tracks, numbers * section.stride, offsets(section, device), pad)
    empty, of_videos = frames.new_zeros(1), order.argsort()
    return Packing(
        frames,
        windows,
        groups,
        order,
        (torch.cat([empty, frames // T]), tracks, of_videos),
        (torch.cat([empty, frames % T]), numbers, torch.zeros_like(of_videos)),
    )


def pack_fixed(clips: Tensor, bodies: int, section: HiTRSConfig) -> Packing:
    """The same of all frames and windows that clips can have, with shapes that depend on those of clips alone."""
    (N, T), device = clips.shape[:2], clips.device
    count, (pad, _) = window_count(T, section), pad_and_span(section)
    frames, tracks = torch.arange(N * T, device=device), torch.arange(N, device=device)
    numbers = torch.arange(count, device=device).expand(N, -1).flatten()
    of_window = tracks[:, None].expand(-1, count).flatten()
    number = (frames + 1).view(N, T)
    windows = window_frames(number, of_window, numbers * section.stride, offsets(section, device), pad)
    empty = tracks.new_zeros(1)
    return Packing(
        frames,
        windows,
        (torch.arange(N * count, device=device).view(N, count),),
        tracks,
        (torch.cat([empty, frames // T]), of_window, tracks),
        (torch.cat([empty, frames % T]), numbers, torch.zeros_like(tracks)),
        is_window(lengths_of(clips, bodies), count, section),
    )


def window_shares(packing: Packing, tracks: int, dtype: torch.dtype) -> Tensor:
    """[W]: what each window counts in the mean over those of its track; 0 where a window is not there."""
    if packing.present is not None:
        present = packing.present.to(dtype)
        return (present / present.sum(1, keepdim=True)).flatten()
    ones = torch.ones(len(packing.windows), dtype=dtype, device=packing.windows.device)
    return 1.0 / ones.new_zeros(tracks).index_add(0, packing.tracks[1], ones)[packing.tracks[1]]


@dataclass(frozen=True)
class LevelNoise:
    """What dropout keeps in each block of a level, uint8 [2, rows, …, D], of attention and of the MLP; 0 or 1."""

    frames: tuple[Tensor, ...]
    """[2, 1 + F, V, D]; what it says of the empty frame does not count."""
    windows: tuple[Tensor, ...]
    """[2, W, L, D], in the last block [2, W, D], of the token."""
    videos: tuple[Tensor, ...]
    """[2, rows, D], of the windows and the token of each video of `Packing.videos` in turn, the token last."""


def level_noise(packing: Packing, section: HiTRSConfig, joints: int, draws: Draws) -> LevelNoise:
    """What dropout keeps of a packing's rows."""
    tracks, parts, first = [], [], 0
    for video in packing.videos:
        n, k = video.shape
        position = torch.arange(1, k + 2, device=video.device) % (k + 1)  # 0: the token
        tracks.append(packing.tracks[2][first : first + n].repeat_interleave(k + 1))
        parts.append((packing.parts[2][first : first + n, None] + 2 * position).flatten())
        first += n
    empty = packing.order.new_zeros(0)
    return LevelNoise(
        _kept(0, section, joints, packing.tracks[0], packing.parts[0], draws),
        window_noise(section, joints, packing.tracks[1], packing.parts[1], draws),
        _kept(2, section, joints, torch.cat([empty, *tracks]), torch.cat([empty, *parts]), draws),
    )


def window_noise(section: HiTRSConfig, joints: int, tracks: Tensor, parts: Tensor, draws: Draws) -> tuple[Tensor, ...]:
    """`LevelNoise.windows` of windows ``parts`` [W] of ``tracks`` [W]."""
    return _kept(1, section, joints, tracks, parts, draws)


def scales(noise: LevelNoise | None, rate: float) -> tuple[Scale | None, Scale | None, Scale | None]:
    """Factors of each level by what dropout of a rate keeps."""
    if noise is None:
        return None, None, None
    frames, windows, videos = (functools.partial(_factors, layers, rate) for layers in vars(noise).values())

    def of_frames(layer: int) -> Tensor:
        factors = frames(layer)
        factors[:, 0] = 1.0  # all tracks share the empty frame, of which nothing is dropped
        return factors

    return of_frames, windows, videos


def _factors(layers: Sequence[Tensor], rate: float, layer: int) -> Tensor:
    return layers[layer].to(torch.float32).mul_(1.0 / (1.0 - rate))


def _kept(
    level: int, section: HiTRSConfig, joints: int, tracks: Tensor, parts: Tensor, draws: Draws
) -> tuple[Tensor, ...]:
    """What dropout keeps of a level's rows, by layer."""
    width = section.width * 2**level
    tokens = [(joints, section.window * joints + 1, 1)[level]] * section.depth
    if level == 1:
        tokens[-1] = 1
    sizes = [2 * count * width for count in tokens]
    words = word_count(sum(sizes), section.dropout)
    rows = max(1, _CHUNK // words)
    chunks = zip(tracks.split(rows), (parts | level << 12).split(rows), strict=True)
    keep = torch.cat([dropout_keep(draws(words, *chunk), sum(sizes), section.dropout) for chunk in chunks])
    layers = [
        layer.unflatten(1, (2, count, width)).transpose(0, 1)
        for layer, count in zip(keep.split(sizes, 1), tokens, strict=True)
    ]
    return tuple(layer.squeeze(2) if count == 1 else layer for layer, count in zip(layers, tokens, strict=True))
