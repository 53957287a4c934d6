"""The stages of voxelize that are more than a sort: keys of points and of larger cells, means, tables.

A key is clip, frame + 1, x + 1024, y + 1024, z + 1024, from the highest bit down (`s2vfast.ops.voxelize`). Sorting and
counting between the launches are PyTorch's, which need no wait for the device. `_keys_kernel` and `_means_kernel` read
every point once and are bound by bandwidth; a cell's points are added up by one lane in their order, so sums have the
same bits every time. `_neighbors_kernel` makes a binary search of the sorted keys for each offset and cell: its time is
the latency of dependent loads, the first of which all lanes share.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import cdiv, configuration, launch
from s2vfast.reference.voxelize import HIGHEST, LOWEST

_LOWEST, _HIGHEST = tl.constexpr(float(LOWEST)), tl.constexpr(float(HIGHEST))
_EMPTY = tl.constexpr(2**63 - 1)


@triton.jit
def _field(coordinate):
    """A coordinate in cells as the field of a key."""
    return tl.floor(coordinate).to(tl.int64) + 1024


@triton.jit
def _keys_kernel(clips_ptr, keys_ptr, factor, T, P, size, BLOCK: tl.constexpr):
    """The key of each point's cell; EMPTY where it is in none."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    x = tl.load(clips_ptr + i * 3, mask=inside, other=0.0) * factor
    y = tl.load(clips_ptr + i * 3 + 1, mask=inside, other=0.0) * factor
    z = tl.load(clips_ptr + i * 3 + 2, mask=inside, other=0.0) * factor
    present = (x >= _LOWEST) & (x < _HIGHEST)  # not so for NaN
    present = present & (y >= _LOWEST) & (y < _HIGHEST) & (z >= _LOWEST) & (z < _HIGHEST)
    x, y, z = tl.where(present, x, 0.0), tl.where(present, y, 0.0), tl.where(present, z, 0.0)
    frame = i // P
    clip = frame // T
    key = (clip << 43) + ((frame - clip * T + 1) << 33) + (_field(x) << 22) + (_field(y) << 11) + _field(z)
    tl.store(keys_ptr + i, tl.where(present, key, _EMPTY), mask=inside)


@triton.jit
def _unpack_kernel(keys_ptr, coordinates_ptr, rows, BLOCK: tl.constexpr):
    """coordinates[r] = clip, t, x, y, z of keys[r]; zeros where it is EMPTY."""
    r = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = r < rows
    key = tl.load(keys_ptr + r, mask=inside, other=_EMPTY)
    present = key != _EMPTY
    to = coordinates_ptr + r * 5
    tl.store(to, tl.where(present, key >> 43, 0).to(tl.int32), mask=inside)
    tl.store(to + 1, tl.where(present, ((key >> 33) & 1023) - 1, 0).to(tl.int32), mask=inside)
    for i in tl.static_range(3):
        tl.store(to + 2 + i, tl.where(present, ((key >> (22 - 11 * i)) & 2047) - 1024, 0).to(tl.int32), mask=inside)


@triton.jit
def _parents_kernel(
    keys_ptr, parents_ptr, child_ptr, rows, FRAMES: tl.constexpr, CELLS: tl.constexpr, BLOCK: tl.constexpr
):
    """The key of each cell's parent, and which of its FRAMES * CELLS ** 3 children the cell is."""
    r = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = r < rows
    key = tl.load(keys_ptr + r, mask=inside, other=_EMPTY)
    t = ((key >> 33) & 1023) - 1
    child = t % FRAMES
    parent = ((key >> 43) << 43) + ((t // FRAMES + 1) << 33)
    for i in tl.static_range(3):
        # Above 0, where quotients are rounded down: 1024 cells of the larger size are added.
        at = ((key >> (22 - 11 * i)) & 2047) + 1024 * (CELLS - 1)
        child = child * CELLS + at % CELLS
        parent += (at // CELLS) << (22 - 11 * i)
    tl.store(parents_ptr + r, tl.where(key == _EMPTY, _EMPTY, parent), mask=inside)
    tl.store(child_ptr + r, child.to(tl.int32), mask=inside)


@triton.jit
def _children_kernel(ordered_ptr, order_ptr, row_ptr, child_ptr, children_ptr, rows, capacity, BLOCK: tl.constexpr):
    """children[child, row] = the cell that is it; `children` holds -1 before."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < rows
    row = tl.load(row_ptr + i, mask=inside, other=0)
    present = inside & (tl.load(ordered_ptr + i, mask=inside, other=_EMPTY) != _EMPTY) & (row < capacity)
    cell = tl.load(order_ptr + i, mask=present, other=0)
    child = tl.load(child_ptr + cell, mask=present, other=0).to(tl.int64)
    tl.store(children_ptr + child * capacity + row, cell.to(tl.int32), mask=present)


@triton.jit
def _means_kernel(clips_ptr, order_ptr, begin_ptr, features_ptr, factor, rows, BLOCK: tl.constexpr):
    """features[r] = 1 and the mean offset from the cell's centre of points order[begin[r]] to order[begin[r + 1]]."""
    r = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = r < rows
    first = tl.load(begin_ptr + r, mask=inside, other=0)
    count = tl.load(begin_ptr + r + 1, mask=inside, other=0) - first
    x, y, z = (tl.zeros([BLOCK], dtype=tl.float32),) * 3
    for i in range(tl.max(count, axis=0)):
        present = i < count
        at = tl.load(order_ptr + first + i, mask=present, other=0) * 3
        px = tl.load(clips_ptr + at, mask=present, other=0.0) * factor
        py = tl.load(clips_ptr + at + 1, mask=present, other=0.0) * factor
        pz = tl.load(clips_ptr + at + 2, mask=present, other=0.0) * factor
        x += tl.where(present, px - (tl.floor(px) + 0.5), 0.0)
        y += tl.where(present, py - (tl.floor(py) + 0.5), 0.0)
        z += tl.where(present, pz - (tl.floor(pz) + 0.5), 0.0)
    number = tl.maximum(count, 1).to(tl.float32)
    to = features_ptr + r * 4
    tl.store(to, tl.where(count > 0, 1.0, 0.0), mask=inside)
    tl.store(to + 1, tl.div_rn(x, number), mask=inside)
    tl.store(to + 2, tl.div_rn(y, number), mask=inside)
    tl.store(to + 3, tl.div_rn(z, number), mask=inside)


@triton.jit
def _neighbors_kernel(keys_ptr, deltas_ptr, neighbors_ptr, rows, steps, BLOCK: tl.constexpr):
    """neighbors[o, r] = the row of keys[r] + deltas[o], -1 where there is none."""
    o = tl.program_id(1).to(tl.int64)
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = r < rows
    key = tl.load(keys_ptr + r, mask=inside, other=_EMPTY)
    present = key != _EMPTY
    near = tl.where(present, key, 0) + tl.load(deltas_ptr + o)
    low, high = tl.zeros([BLOCK], dtype=tl.int32), tl.zeros([BLOCK], dtype=tl.int32) + rows
    for _ in range(steps):
        middle = (low + high) // 2
        open = low < high
        right = open & (tl.load(keys_ptr + middle, mask=present & open, other=_EMPTY) < near)
        low = tl.where(right, middle + 1, low)
        high = tl.where(right, high, middle)
    # Where no key is as large, low is behind the last row.
    hit = tl.load(keys_ptr + low, mask=present & (low < rows), other=_EMPTY) == near
    tl.store(neighbors_ptr + o * rows + r, tl.where(present & hit, low, -1), mask=inside)


def point_keys(clips: Tensor, factor: float) -> Tensor:
    """int64 [N * T * P].

    Args:
        clips: float32 [N, T, P, 3].
        factor: cells a metre.
    """
    size = clips[..., 0].numel()
    keys = torch.empty(size, dtype=torch.int64, device=clips.device)
    options = configuration("voxelize", "keys", clips.device)
    T, P = clips.shape[1:3]
    launch(_keys_kernel, (cdiv(size, options["BLOCK"]),), clips, keys, factor, T, P, size, **options)
    return keys


def coordinates(keys: Tensor) -> Tensor:
    """int32 [R, 5]: clip, t, x, y, z of keys int64 [R]."""
    rows = len(keys)
    out = torch.empty(rows, 5, dtype=torch.int32, device=keys.device)
    options = configuration("voxelize", "unpack", keys.device)
    launch(_unpack_kernel, (cdiv(rows, options["BLOCK"]),), keys, out, rows, **options)
    return out


def parents(keys: Tensor, frames: int, cells: int) -> tuple[Tensor, Tensor]:
    """Keys of the larger cells, int64 [R], and the child of them that each cell is, int32 [R].

    Args:
        keys: int64 [R].
        frames: of these cells that make a larger one.
        cells: the same along x, y and z.
    """
    rows = len(keys)
    up, child = torch.empty_like(keys), torch.empty(rows, dtype=torch.int32, device=keys.device)
    options = configuration("voxelize", "parents", keys.device) | {"FRAMES": frames, "CELLS": cells}
    launch(_parents_kernel, (cdiv(rows, options["BLOCK"]),), keys, up, child, rows, **options)
    return up, child


def children(ordered: Tensor, order: Tensor, row: Tensor, child: Tensor, count: int, capacity: int) -> Tensor:
    """int32 [count, R'].

    Args:
        ordered: int64 [R], `parents`' keys, sorted.
        order: int64 [R], which cell each is of.
        row: int64 [R], the larger cell's row.
        child: int32 [R], of `parents`.
        count: children of a cell.
        capacity: R'.
    """
    table = torch.full((count, capacity), -1, dtype=torch.int32, device=ordered.device)
    options = configuration("voxelize", "children", ordered.device)
    grid = (cdiv(len(ordered), options["BLOCK"]),)
    launch(_children_kernel, grid, ordered, order, row, child, table, len(ordered), capacity, **options)
    return table


def means(clips: Tensor, factor: float, order: Tensor, begin: Tensor) -> Tensor:
    """float32 [R, 4].

    Args:
        clips: float32 [N, T, P, 3].
        factor: cells a metre.
        order: int64 [N * T * P], points sorted by their keys.
        begin: int64 [R + 1], where the points of each cell begin in that order.
    """
    rows = len(begin) - 1
    features = torch.empty(rows, 4, device=clips.device)
    options = configuration("voxelize", "means", clips.device) | {"enable_fp_fusion": False}
    grid = (cdiv(rows, options["BLOCK"]),)
    launch(_means_kernel, grid, clips, order, begin, features, factor, rows, **options)
    return features


def neighbors(keys: Tensor, deltas: Tensor) -> Tensor:
    """int32 [O, R].

    Args:
        keys: int64 [R], ascending.
        deltas: int64 [O], what each offset adds to a key.
    """
    rows, offsets = len(keys), len(deltas)
    table = torch.empty(offsets, rows, dtype=torch.int32, device=keys.device)
    options = configuration("voxelize", "neighbors", keys.device)
    grid = (cdiv(rows, options["BLOCK"]), offsets)
    launch(_neighbors_kernel, grid, keys, deltas, table, rows, rows.bit_length(), **options)
    return table
