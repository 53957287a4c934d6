"""Clips of points as the cells of a grid in space and time that hold points, and who is whose neighbour."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

LOWEST, HIGHEST = -1022, 1022
"""Cells along x, y and z are in [LOWEST, HIGHEST); points outside are ignored."""
MOST_CLIPS, MOST_FRAMES = 2**20, 1022

_CUBE = tuple(itertools.product((-1, 0, 1), repeat=4))
KERNELS = {
    "cube": _CUBE,
    "hybrid": tuple(o for o in _CUBE if o[0] == 0 or o[1:] == (0, 0, 0)),
    "cross": tuple(o for o in _CUBE if sum(map(abs, o)) <= 1),
}
"""Offsets (t, x, y, z) of a cell's neighbours, itself among them, ascending, so that the one against an offset is as
far from the end as that is from the start: ``cube`` 81, ``hybrid`` 29 (a cube in space, a cross in time; Choy et al.,
CVPR 2019), ``cross`` 9."""


class Level(NamedTuple):
    """Cells of one size, sorted by clip, frame, x, y, z. Rows from ``starts[N]`` on are empty: zeros, -1 in tables."""

    children: Tensor
    """int32 [st * ss**3, R]: rows of the level before that lie in a cell, by their place (t, x, y, z) in it; -1: none.
    Of the first level [0, R]."""
    coordinates: Tensor
    """int32 [R, 5]: clip, t, x, y, z, in cells of this level."""
    starts: Tensor
    """int32 [N + 1]: the cells of clip n are the rows ``starts[n]`` to ``starts[n + 1]``."""
    neighbors: Tensor
    """int32 [O, R]: the row of the cell at each offset of the kernel; -1: none."""


class Voxels(tuple):
    """Features float32 [R, 4] of the first level, then the tensors of each `Level` in order, all in one tuple."""

    __slots__ = ()

    @property
    def features(self) -> Tensor:
        """[R, 4]: 1, then the mean offset (x, y, z) of the cell's points from its centre, in cells."""
        return self[0]

    @property
    def levels(self) -> tuple[Level, ...]:
        """Fine to coarse."""
        return tuple(Level(*self[i : i + 4]) for i in range(1, len(self), 4))


def inverse(size: float) -> float:
    """The factor that makes cells of metres, as float32: a product is rounded alike on all devices, a quotient not."""
    return float(torch.tensor(1.0 / size, dtype=torch.float32))


def voxelize(
    clips: Tensor,
    size: float,
    *,
    kernel: str = "hybrid",
    strides: tuple[tuple[int, int], ...] = (),
    capacity: int | None = None,
) -> Voxels:
    """Arguments and result as of `s2vfast.ops.voxelize`."""
    sums: dict[tuple, list[float]] = {}
    scaled = clips.float() * inverse(size)
    for (n, t), frame in zip(itertools.product(*map(range, clips.shape[:2])), scaled.flatten(0, 1), strict=True):
        for point in frame.tolist():
            if all(LOWEST <= q < HIGHEST for q in point):  # not so for NaN
                cell = tuple(math.floor(q) for q in point)
                values = sums.setdefault((n, t, *cell), [0.0] * 4)
                for i, value in enumerate((1.0, *(q - (c + 0.5) for q, c in zip(point, cell, strict=True)))):
                    values[i] += value
    cells = sorted(sums)
    if capacity is not None and len(cells) > capacity:
        raise ValueError(f"voxelize: capacity: {len(cells)} cells where there are {capacity} rows")
    features = torch.zeros(len(cells) if capacity is None else capacity, 4)
    for r, (count, *offsets) in enumerate(sums[cell] for cell in cells):
        features[r] = torch.tensor([1.0, *(offset / count for offset in offsets)])
    results = [features.to(clips.device)]
    children = torch.zeros(0, len(features), dtype=torch.int32)
    for st, ss in (*strides, (0, 0)):
        level = (children, *_level(cells, len(clips), KERNELS[kernel], capacity))
        results += [tensor.to(clips.device) for tensor in level]
        if st:
            factors = (1, st, ss, ss, ss)
            parents = [tuple(c // f for c, f in zip(cell, factors, strict=True)) for cell in cells]
            coarse = sorted(set(parents))
            rows = {cell: r for r, cell in enumerate(coarse)}
            size_now = len(coarse) if capacity is None else capacity
            children = torch.full((st * ss**3, size_now), -1, dtype=torch.int32)
            for r, (cell, parent) in enumerate(zip(cells, parents, strict=True)):
                _, t, x, y, z = (c % f for c, f in zip(cell, factors, strict=True))
                children[((t * ss + x) * ss + y) * ss + z, rows[parent]] = r
            cells = coarse
    return Voxels(results)


def _level(cells: list[tuple], clips: int, kernel: tuple, capacity: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates, starts and neighbours of sorted cells."""
    rows = {cell: r for r, cell in enumerate(cells)}
    R = len(cells) if capacity is None else capacity
    coordinates = torch.zeros(R, 5, dtype=torch.int32)
    neighbors = torch.full((len(kernel), R), -1, dtype=torch.int32)
    coordinates[: len(cells)] = torch.tensor(cells, dtype=torch.int32).view(-1, 5)
    for o, (dt, dx, dy, dz) in enumerate(kernel):
        near = [rows.get((n, t + dt, x + dx, y + dy, z + dz), -1) for n, t, x, y, z in cells]
        neighbors[o, : len(cells)] = torch.tensor(near, dtype=torch.int32)
    starts = torch.tensor([sum(cell[0] < n for cell in cells) for n in range(clips + 1)], dtype=torch.int32)
    return coordinates, starts, neighbors
