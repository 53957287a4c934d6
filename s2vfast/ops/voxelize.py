"""Clips of points as the cells of a grid that hold points. Contract: `s2vfast.reference.voxelize`.

A cell is one number of 63 bits, its key: clip, frame + 1, x + 1024, y + 1024, z + 1024, from the highest bit down. No
neighbour of a cell leaves its field, so the key of a neighbour is the cell's plus a number that depends on the offset
alone, and sorted keys are cells sorted by clip, frame and place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from s2vfast import _extension
from s2vfast.errors import ShapeError
from s2vfast.ops import _native, _triton
from s2vfast.ops._custom import fake, operator
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
    good = all(1 <= n <= 16 for stride in strides for n in stride)
    require(good, "voxelize", "strides", "pairs of numbers in [1, 16]", strides)
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
    coordinates: Callable[[Tensor], Tensor]
    """keys → int32 [R, 5]."""


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
        edges = torch.arange(clips.shape[0] + 1, device=keys.device) << SHIFTS[0]
        starts = torch.searchsorted(keys, edges, out_int32=True)
        results += [children, stages.coordinates(keys), starts, stages.neighbors(keys, kernel)]
        if st:
            keys, children = stages.coarsen(keys, st, ss, keys.shape[0])
            if capacity is None:
                keys = _trimmed(keys)
                children = children[:, : len(keys)].contiguous()
    return Voxels(results)


def _trimmed(keys: Tensor) -> Tensor:
    """Without its empty rows; waits for the device."""
    return keys[: int((keys != EMPTY).sum())]


def _coordinates(keys: Tensor) -> Tensor:
    return torch.where((keys != EMPTY)[:, None], torch.stack(_fields(keys), 1), 0).to(torch.int32)


def _fields(keys: Tensor) -> tuple[Tensor, ...]:
    """clip, t, x, y, z of keys, int64."""
    clip, t, *xyz = (
        keys >> shift & mask for shift, mask in zip(SHIFTS, (2**20 - 1, 1023, 2047, 2047, 2047), strict=True)
    )
    return clip, t - 1, *(field - BIAS for field in xyz)


def _packed(clip: Tensor, t: Tensor, xyz: Sequence[Tensor]) -> Tensor:
    """Keys of cells."""
    fields = clip, t + 1, *(field + BIAS for field in xyz)
    return functools.reduce(torch.add, (field << shift for field, shift in zip(fields, SHIFTS, strict=True)))


def deltas(kernel: str) -> list[int]:
    """What each offset of a kernel adds to a key."""
    return [sum(d << shift for d, shift in zip(offset, SHIFTS[1:], strict=True)) for offset in KERNELS[kernel]]


@functools.lru_cache(maxsize=16)
def _deltas(kernel: str, device: torch.device) -> Tensor:
    """`deltas` int64 [O], made once: to send numbers to a GPU, the host waits for it."""
    return torch.tensor(deltas(kernel), device=device)


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


def _coarsen(keys: Tensor, st: int, ss: int, capacity: int) -> tuple[Tensor, Tensor]:
    """One stable sort, and a scatter to places that differ: a GPU is not waited for."""
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
    _check_capacity(_last(row), capacity)
    offsets = (scaled - (cell + 0.5)).flatten(0, 2)[order]
    row = torch.where((ordered != EMPTY) & (row < capacity), row, capacity)
    sums = offsets.new_zeros(capacity + 1, 3).index_put_((row,), offsets, accumulate=True)[:capacity]
    counts = begin.diff()[:, None]
    return unique, torch.cat([(counts > 0).to(sums.dtype), sums / counts.clamp(min=1)], 1)


def _last(row: Tensor) -> int:
    """How many cells the points' rows are of; 0 on a GPU and in an exported graph, for which nobody waits."""
    if row.is_cuda or torch.compiler.is_compiling():
        return 0
    return int(row[-1]) + 1 if len(row) else 0


def _check_capacity(cells: int, capacity: int) -> None:
    if cells > capacity:
        raise ShapeError(f"voxelize: capacity: {cells} cells where there are {capacity} rows")


def _neighbors(keys: Tensor, kernel: str) -> Tensor:
    near = _deltas(kernel, keys.device)[:, None] + keys  # [O, R]
    if not keys.shape[0]:
        return near.to(torch.int32)
    at = torch.searchsorted(keys, near).clamp_(max=keys.shape[0] - 1)
    return torch.where((keys[at] == near) & (keys != EMPTY), at, -1).to(torch.int32)


@operator("voxelize_native_cells(Tensor clips, float factor, int capacity) -> (Tensor, Tensor)")
def _native_cells(clips, factor, capacity):
    clips = clips.contiguous()
    keys = clips.new_empty((capacity,), dtype=torch.int64)
    features = clips.new_empty((capacity, 4))
    counts = dict(zip(("clips", "frames", "points"), clips.shape[:3], strict=True))
    try:
        _extension.load().voxel_cells(
            **counts,
            **_native.addresses(xyz=clips, keys=keys, features=features),
            **_native.place(clips),
            factor=factor,
            capacity=capacity,
        )
    except ValueError as error:  # more cells than there are rows
        raise ShapeError(str(error)) from None
    return keys, features


@operator("voxelize_triton_cells(Tensor clips, float factor, int capacity) -> (Tensor, Tensor)")
def _triton_cells(clips, factor, capacity):
    clips = clips.contiguous()
    ordered, order = _triton.kernels("voxelize").point_keys(clips, factor).sort(stable=True)
    keys, begin, row = segments(ordered, capacity)
    _check_capacity(_last(row), capacity)
    return keys, _triton.kernels("voxelize").means(clips, factor, order, begin)


@operator("voxelize_triton_coarsen(Tensor keys, int st, int ss, int capacity) -> (Tensor, Tensor)")
def _triton_coarsen(keys, st, ss, capacity):
    kernels = _triton.kernels("voxelize")
    parents, child = kernels.parents(keys.contiguous(), st, ss)
    ordered, order = parents.sort(stable=True)
    parents, _, row = segments(ordered, capacity)
    return parents, kernels.children(ordered, order, row, child, st * ss**3, capacity)


@operator("voxelize_triton_coordinates(Tensor keys) -> Tensor")
def _triton_coordinates(keys):
    return _triton.kernels("voxelize").coordinates(keys.contiguous())


@fake(_triton_coordinates)
def _(keys):
    return keys.new_empty((keys.shape[0], 5), dtype=torch.int32)


@fake(_native_cells)
@fake(_triton_cells)
def _(clips, factor, capacity):
    return clips.new_empty((capacity,), dtype=torch.int64), clips.new_empty((capacity, 4))


@operator("voxelize_native_coarsen(Tensor keys, int st, int ss, int capacity) -> (Tensor, Tensor)")
def _native_coarsen(keys, st, ss, capacity):
    keys = keys.contiguous()
    parents = keys.new_empty((capacity,))
    children = keys.new_empty((st * ss**3, capacity), dtype=torch.int32)
    _extension.load().voxel_coarsen(
        **_native.addresses(keys=keys, parents=parents, children=children),
        **_native.place(keys),
        rows=len(keys),
        capacity=capacity,
        frames=st,
        cells=ss,
    )
    return parents, children


@fake(_native_coarsen)
@fake(_triton_coarsen)
def _(keys, st, ss, capacity):
    return keys.new_empty((capacity,)), keys.new_empty((st * ss**3, capacity), dtype=torch.int32)


@operator("voxelize_native_neighbors(Tensor keys, str kernel) -> Tensor")
def _native_neighbors(keys, kernel):
    keys, near = keys.contiguous(), deltas(kernel)
    out = keys.new_empty((len(near), len(keys)), dtype=torch.int32)
    addresses = _native.addresses(keys=keys, neighbors=out)
    _extension.load().voxel_neighbors(rows=len(keys), deltas=near, **addresses, **_native.place(keys))
    return out


@operator("voxelize_triton_neighbors(Tensor keys, str kernel) -> Tensor")
def _triton_neighbors(keys, kernel):
    return _triton.kernels("voxelize").neighbors(keys.contiguous(), _deltas(kernel, keys.device))


@fake(_native_neighbors)
@fake(_triton_neighbors)
def _(keys, kernel):
    return keys.new_empty((len(KERNELS[kernel]), keys.shape[0]), dtype=torch.int32)


def _with_stages(stages: Stages) -> Callable[..., Voxels]:
    return lambda *args, **options: _build(stages, *args, **options)


_op = register(
    "voxelize",
    reference=_reference,
    torch=_with_stages(Stages(_cells, _coarsen, _neighbors, _coordinates)),
    triton=_with_stages(Stages(_triton_cells, _triton_coarsen, _triton_neighbors, _triton_coordinates)),
    native=_with_stages(Stages(_native_cells, _native_coarsen, _native_neighbors, _coordinates)),
    reasons={
        "triton": _triton.reasons(floats=(torch.float32,)),
        "native": _native.reasons(floats=(torch.float32,), cuda=False),
    },
)
