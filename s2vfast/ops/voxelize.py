"""Clips of points as the cells of a grid that hold points. Contract: `s2vfast.reference.voxelize`.

A cell is one number of 63 bits, its key: clip, frame + 1, x + 1024, y + 1024, z + 1024, from the highest bit down. No
neighbour of a cell leaves its field, so the key of a neighbour is the cell's plus a number that depends on the offset
alone, and sorted keys are cells sorted by clip, frame and place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from s2vfast.errors import ShapeError
from s2vfast.ops._dispatch import register, require
from s2vfast.reference.voxelize import HIGHEST, KERNELS, LOWEST, MOST_CLIPS, MOST_FRAMES, Level, Voxels, inverse
from s2vfast.reference.voxelize import voxelize as _reference

__all__ = ["KERNELS", "Level", "Voxels", "voxelize"]

EMPTY = 2**63 - 1
"""The key of a row that holds no cell; above all others."""
BIAS = 1024
SHIFTS = (43, 33, 22, 11, 0)
"""Where the fields of a key begin: clip, frame, x, y, z."""


def voxelize(
    clips: Tensor,
    size: float,
    *,
    kernel: str = "hybrid",
    strides: Sequence[tuple[int, int]] = (),
    capacity: int | None = None,
    impl: str | None = None,
) -> Voxels:
    """Cells of clips of points, sorted, at one or several sizes, with the tables that `sparse_conv` takes.

    A point is in the cell floor(coordinate / size) of its frame, so a point on a border is in the cell above it. Points
    with a coordinate that is NaN or infinite, or 1022 cells or more from the origin, are in none.

    Args:
        clips: float32 [N, T, P, 3], metres; fewer than 2**20 clips of at most 1022 frames.
        size: edge of a cell, metres.
        kernel: offsets of neighbours, one of `KERNELS`: ``cube`` (81), ``hybrid`` (29), ``cross`` (9).
        strides: of each further level, (frames, cells along x, y, z) of the level before that make one of its cells.
        capacity: rows R of every level. None: as many as a level has cells, for which the host waits for a GPU. A
            number keeps shapes static; N * T * P always suffices.
        impl: implementation; None: see `use_impl`.

    Returns:
        `Voxels`: ``features`` float32 [R, 4] of the first level, and ``levels``, of which each has ``children``,
        ``coordinates``, ``starts`` and ``neighbors``; see `Level`. ``sparse_conv(x, weight, level.neighbors)`` stays on
        a level, ``sparse_conv(x, weight, level.children)`` leads to it from the level before.

    Raises:
        ShapeError: an argument that does not fit; on a CPU, more cells than ``capacity``. On a GPU, where nobody may
            wait, those with the highest keys are left out then: ``starts[N]`` equals R.
    """
    require(clips.ndim == 4 and clips.shape[3] == 3, "voxelize", "clips", "[N, T, P, 3]", clips)
    require(clips.dtype == torch.float32, "voxelize", "clips", "float32", clips)
    fits = torch.compiler.is_compiling() or (clips.shape[0] < MOST_CLIPS and clips.shape[1] <= MOST_FRAMES)
    require(fits, "voxelize", "clips", f"fewer than {MOST_CLIPS} clips of at most {MOST_FRAMES} frames", clips)
    require(size > 0, "voxelize", "size", "metres above 0", size)
    require(kernel in KERNELS, "voxelize", "kernel", f"one of {', '.join(KERNELS)}", repr(kernel))
    strides = tuple((int(t), int(s)) for t, s in strides)
    require(all(min(s) >= 1 for s in strides), "voxelize", "strides", "pairs of numbers >= 1", strides)
    require(capacity is None or capacity >= 0, "voxelize", "capacity", "None or a number >= 0", capacity)
    return _op(impl, clips.device, clips, float(size), kernel=kernel, strides=strides, capacity=capacity)


class Stages(NamedTuple):
    """What an implementation consists of. Results have ``capacity`` rows; those without a cell have the key EMPTY."""

    cells: Callable[[Tensor, float, int], tuple[Tensor, Tensor]]
    """clips, factor, capacity → keys int64 [R], features float32 [R, 4]."""
    coarsen: Callable[[Tensor, int, int, int], tuple[Tensor, Tensor]]
    """keys, st, ss, capacity → keys of the coarser cells [R'], children int32 [st * ss**3, R']."""
    neighbors: Callable[[Tensor, str], Tensor]
    """keys, kernel → int32 [O, R]."""


def _build(
    stages: Stages,
    clips: Tensor,
    size: float,
    *,
    kernel: str,
    strides: tuple[tuple[int, int], ...],
    capacity: int | None,
) -> Voxels:
    """All levels, by the stages of an implementation."""
    keys, features = stages.cells(clips, inverse(size), clips[..., 0].numel() if capacity is None else capacity)
    if capacity is None:
        keys = _trimmed(keys)
        features = features[: len(keys)]
    children = keys.new_empty((0, keys.shape[0]), dtype=torch.int32)
    results = [features]
    for st, ss in (*strides, (0, 0)):
        fields, starts = _unpacked(keys, clips.shape[0])
        results += [children, fields, starts, stages.neighbors(keys, kernel)]
        if st:
            keys, children = stages.coarsen(keys, st, ss, keys.shape[0])
            if capacity is None:
                keys = _trimmed(keys)
                children = children[:, : len(keys)].contiguous()
    return Voxels(results)


def _trimmed(keys: Tensor) -> Tensor:
    """Without its empty rows; waits for the device."""
    return keys[: int((keys != EMPTY).sum())]


def _unpacked(keys: Tensor, clips: int) -> tuple[Tensor, Tensor]:
    """Coordinates int32 [R, 5] and where clips start, int32 [N + 1]."""
    clip, t, x, y, z = _fields(keys)
    coordinates = torch.where((keys != EMPTY)[:, None], torch.stack([clip, t, x, y, z], 1), 0).to(torch.int32)
    edges = torch.arange(clips + 1, device=keys.device) << SHIFTS[0]
    return coordinates, torch.searchsorted(keys, edges, out_int32=True)


def _fields(keys: Tensor) -> tuple[Tensor, ...]:
    """clip, t, x, y, z of keys, int64."""
    clip, t, *xyz = (
        keys >> shift & mask for shift, mask in zip(SHIFTS, (2**20 - 1, 1023, 2047, 2047, 2047), strict=True)
    )
    return clip, t - 1, *(field - BIAS for field in xyz)


def _packed(clip: Tensor, t: Tensor, xyz: Sequence[Tensor]) -> Tensor:
    """Keys of cells."""
    fields = clip, t + 1, *(field + BIAS for field in xyz)
    return sum(field << shift for field, shift in zip(fields, SHIFTS, strict=True))


def deltas(kernel: str) -> list[int]:
    """What each offset of a kernel adds to a key."""
    return [sum(d << shift for d, shift in zip(offset, SHIFTS[1:], strict=True)) for offset in KERNELS[kernel]]


def segments(ordered: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """The different numbers of a sorted list and where they lie in it.

    Args:
        ordered: int64 [M], ascending; EMPTY is none.
        capacity: R; numbers beyond it are left out.

    Returns:
        int64 [R] with EMPTY behind the last; int64 [R + 1], number r is at ``begin[r]`` to ``begin[r + 1]``; the row r
        of each of the M, which may be R or more, int64 [M].
    """
    present = ordered != EMPTY
    is_first = present.clone()
    is_first[1:] &= ordered[1:] != ordered[:-1]
    counts = is_first.cumsum(0)
    begin = torch.searchsorted(counts, torch.arange(1, capacity + 2, device=ordered.device))
    begin = torch.minimum(begin, present.sum())
    padded = torch.cat([ordered, ordered.new_full((1,), EMPTY)])
    return padded[begin[:-1]], begin, counts - 1


def coarsen(keys: Tensor, st: int, ss: int, capacity: int) -> tuple[Tensor, Tensor]:
    """A stage for any device, without waiting for it: one stable sort, one scatter to places that differ."""
    clip, t, *xyz = _fields(keys)
    present = keys != EMPTY
    t_up, up = t // st, [torch.div(c, ss, rounding_mode="floor") for c in xyz]
    child = t - t_up * st
    for c, coarse in zip(xyz, up, strict=True):
        child = child * ss + c - coarse * ss
    ordered, order = torch.where(present, _packed(clip, t_up, up), EMPTY).sort(stable=True)
    parents, _, row = segments(ordered, capacity)
    size = st * ss**3 * capacity
    inside = (ordered != EMPTY) & (row < capacity)
    children = torch.full((size + 1,), -1, dtype=torch.int32, device=keys.device)
    children[torch.where(inside, child[order] * capacity + row, size)] = order.to(torch.int32)
    return parents, children[:size].view(st * ss**3, capacity)


def _cells(clips: Tensor, factor: float, capacity: int) -> tuple[Tensor, Tensor]:
    N, T, P, _ = clips.shape
    scaled = clips * factor
    inside = ((scaled >= LOWEST) & (scaled < HIGHEST)).all(-1)  # not so for NaN
    scaled = torch.where(inside[..., None], scaled, 0.0)
    cell = scaled.floor()
    clip, frame = (torch.arange(n, device=clips.device) for n in (N, T))
    keys = _packed(clip[:, None, None], frame[:, None], cell.long().unbind(-1))
    ordered, order = torch.where(inside, keys, EMPTY).flatten().sort(stable=True)
    unique, begin, row = segments(ordered, capacity)
    if not clips.is_cuda and not torch.compiler.is_compiling():  # where nobody waits
        _check_capacity(int(row[-1]) + 1 if len(row) else 0, capacity)
    offsets = (scaled - (cell + 0.5)).flatten(0, 2)[order]
    row = torch.where((ordered != EMPTY) & (row < capacity), row, capacity)
    sums = offsets.new_zeros(capacity + 1, 3).index_put_((row,), offsets, accumulate=True)[:capacity]
    counts = begin.diff()[:, None]
    return unique, torch.cat([(counts > 0).to(sums.dtype), sums / counts.clamp(min=1)], 1)


def _check_capacity(cells: int, capacity: int) -> None:
    if cells > capacity:
        raise ShapeError(f"voxelize: capacity: {cells} cells where there are {capacity} rows")


def _neighbors(keys: Tensor, kernel: str) -> Tensor:
    near = torch.tensor(deltas(kernel), device=keys.device)[:, None] + keys  # [O, R]
    if not keys.shape[0]:
        return near.to(torch.int32)
    at = torch.searchsorted(keys, near).clamp_(max=keys.shape[0] - 1)
    return torch.where((keys[at] == near) & (keys != EMPTY), at, -1).to(torch.int32)


def _with_stages(stages: Stages) -> Callable[..., Voxels]:
    return lambda *args, **options: _build(stages, *args, **options)


_op = register("voxelize", reference=_reference, torch=_with_stages(Stages(_cells, coarsen, _neighbors)))
