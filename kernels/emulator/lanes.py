"""Which threads take part in an access, and what each of them accesses."""

from __future__ import annotations

import numpy as np
from numpy import ndarray


class Lanes:
    """Some threads of a group and what each of them accesses: arrays [rows, lanes] that broadcast.

    Args:
        offset: int64 offsets into the rows, checked.
        row: rows of the memory; [R, 1] or [1, n].
        tid: threads in their blocks.
        cta: blocks in the launch.
        uniform: whether all rows do the same.
        selected_lanes: None: all threads of the group; else which of the full shape, or which columns.
        shape: of the group.
    """

    __slots__ = ("cta", "offset", "row", "selected_lanes", "shape", "tid", "uniform")

    def __init__(self, offset, row, tid, cta, uniform, selected_lanes, shape) -> None:
        self.offset, self.row, self.tid, self.cta = offset, row, tid, cta
        self.uniform, self.selected_lanes, self.shape = uniform, selected_lanes, shape

    def narrow(self, values: ndarray) -> ndarray:
        """Values of all threads of the group as those of the lanes that take part."""
        if self.selected_lanes is None:
            return values
        if isinstance(self.selected_lanes, tuple):
            return np.broadcast_to(values, (values.shape[0], self.shape[1]))[:, self.selected_lanes[0]]
        return np.broadcast_to(values, self.shape)[self.selected_lanes][None]

    def spread(self, values: ndarray, old: ndarray | None) -> ndarray:
        """What was read as an array of the group's threads; ``old`` where nothing was."""
        if self.selected_lanes is None:
            return values
        dtype = values.dtype
        if isinstance(self.selected_lanes, tuple):  # columns
            shape = (values.shape[0], self.shape[1])
            result = np.zeros(shape, dtype) if old is None else np.broadcast_to(old, shape).copy()
            result[:, self.selected_lanes[0]] = values
        else:
            result = np.zeros(self.shape, dtype) if old is None else np.broadcast_to(old, self.shape).copy()
            result[self.selected_lanes] = values[0]
        return result

    def of(self, member: ndarray) -> tuple[Lanes, ndarray]:
        """Those of some threads, bool [rows, threads], as one row of lanes; and which they are of the full shape."""
        shape = np.broadcast_shapes(self.offset.shape, np.shape(self.row), self.tid.shape)
        selected_lanes = member[np.broadcast_to(self.row, shape), np.broadcast_to(self.tid, shape)]
        parts = (np.broadcast_to(x, shape)[selected_lanes][None] for x in (self.offset, self.row, self.tid, self.cta))
        offset, row, tid, cta = parts
        return Lanes(offset, row, tid, cta, False, None, offset.shape), selected_lanes
