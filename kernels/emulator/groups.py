"""Threads that stand at the same place of a kernel: how they part at a branch and meet again."""

from __future__ import annotations

import numpy as np
from numpy import ndarray


class Group:
    """Threads of a launch that execute together.

    Values are arrays [R, C] that broadcast. Of a rectangular group, R are blocks and C threads of each; any other set
    of threads is one row, sorted by block and thread.

    Args:
        row: int64 [R, 1], or [1, n]: blocks, counted from the first of this part of the launch.
        tid: int64 [1, C], or [1, n]: threads of their blocks.
        first: number of the first block.
        blocks: how many there are in this part.
        registers: how many.
    """

    def __init__(self, row: ndarray, tid: ndarray, first: int, blocks: int, registers: list[ndarray | None]) -> None:
        self.row, self.tid, self.first, self.blocks = row, tid, first, blocks
        self.registers = registers
        self.block = 0
        self.shape = np.broadcast_shapes(row.shape, tid.shape)
        self.rectangular = row.shape[1] == 1
        self.cta = row + first
        self.all_rows = self.rectangular and row.shape[0] == blocks
        self.whole = self._whole()
        self.laid = None  # of the last instruction for whole warps
        # Of cp.async: copies not yet committed, and committed groups; of wgmma likewise: registers, reads.
        self.copies: list = []
        self.copy_groups: list[list] = []
        self.wgmma_open: frozenset[int] = frozenset()
        self.wgmma_reads: list = []
        self.wgmma_groups: list[tuple[frozenset[int], list]] = []

    @property
    def size(self) -> int:
        """How many threads."""
        return self.shape[0] * self.shape[1]

    def _whole(self) -> bool:
        """Whether these are whole warps, in order."""
        tid = self.tid[0]
        if len(tid) % 32:
            return False
        warps = tid.reshape(-1, 32)
        good = bool((warps == warps[:, :1] + np.arange(32)).all() and not (warps[:, 0] & 31).any())
        if good and not self.rectangular:
            rows = self.row[0].reshape(-1, 32)
            good = bool((rows == rows[:, :1]).all())
        return good

    def flat(self) -> tuple[ndarray, ndarray]:
        """Row and thread of each, [n]."""
        return tuple(np.broadcast_to(x, self.shape).reshape(-1) for x in (self.row, self.tid))

    def _part(self, row: ndarray, tid: ndarray, registers: list[ndarray | None]) -> Group:
        part = Group(row, tid, self.first, self.blocks, registers)
        part.block = self.block
        part.wgmma_open = self.wgmma_open
        if self.copies or self.copy_groups or self.wgmma_groups or self.wgmma_reads:
            member = np.zeros((self.blocks, int(self.tid.max()) + 1), bool)
            member[part.flat()] = True
            part.wgmma_reads = [lanes.of(member)[0] for lanes in self.wgmma_reads]
            part.wgmma_groups = [(busy, [lanes.of(member)[0] for lanes in reads]) for busy, reads in self.wgmma_groups]
            part.copies = [copy.of(member) for copy in self.copies]
            part.copy_groups = [[copy.of(member) for copy in copies] for copies in self.copy_groups]
        return part

    def take_rows(self, index: ndarray) -> Group:
        """Some blocks of a rectangular group."""
        registers = [x if x is None or x.shape[0] == 1 else x[index] for x in self.registers]
        return self._part(self.row[index], self.tid, registers)

    def take_columns(self, index: ndarray) -> Group:
        """Some threads of each block, or of a group that is one row."""
        registers = [x if x is None or x.shape[1] == 1 else x[:, index] for x in self.registers]
        row = self.row if self.rectangular else self.row[:, index]
        return self._part(row, self.tid[:, index], registers)

    def flattened(self) -> Group:
        """The same threads as one row."""
        if not self.rectangular:
            return self
        row, tid = self.flat()
        registers = [
            x if x is None or x.size == 1 else np.broadcast_to(x, self.shape).reshape(1, -1) for x in self.registers
        ]
        return self._part(row[None], tid[None], registers)

    def split(self, condition: ndarray) -> tuple[Group | None, Group | None]:
        """Those for which the condition holds, and the others."""
        if condition.all():
            return self, None
        if not condition.any():
            return None, self
        if self.rectangular:
            if (condition == condition[:, :1]).all():
                rows = np.broadcast_to(condition[:, 0], self.shape[:1])
                return self.take_rows(np.flatnonzero(rows)), self.take_rows(np.flatnonzero(~rows))
            if (condition == condition[:1]).all():
                columns = np.broadcast_to(condition[0], self.shape[1:])
                return self.take_columns(np.flatnonzero(columns)), self.take_columns(np.flatnonzero(~columns))
            condition = np.broadcast_to(condition, self.shape).reshape(1, -1)
        flat = self.flattened()
        columns = np.broadcast_to(condition, flat.shape)[0]
        return flat.take_columns(np.flatnonzero(columns)), flat.take_columns(np.flatnonzero(~columns))

    def keep(self, live: frozenset[int]) -> None:
        """Forget the registers that nothing will read."""
        self.registers = [x if index in live else None for index, x in enumerate(self.registers)]

    def merged(self, other: Group) -> Group:
        """Both, which stand at the same block."""
        if self.rectangular and other.rectangular:
            if np.array_equal(self.tid, other.tid):
                order = np.argsort(np.concatenate([self.row, other.row])[:, 0], kind="stable")
                return self._joined(other, 0, order, self.tid.shape)
            if np.array_equal(self.row, other.row):
                order = np.argsort(np.concatenate([self.tid, other.tid], axis=1)[0], kind="stable")
                return self._joined(other, 1, order, self.row.shape)
        a, b = self.flattened(), other.flattened()
        row, tid = np.concatenate([a.row, b.row], axis=1)[0], np.concatenate([a.tid, b.tid], axis=1)[0]
        return a._joined(b, 1, np.lexsort((tid, row)), None)._squared()

    def _joined(self, other: Group, axis: int, order: ndarray, common_shape: tuple[int, ...] | None) -> Group:
        """Concatenated along an axis and sorted."""

        def join(x: ndarray, y: ndarray) -> ndarray:
            shape_x, shape_y = list(x.shape), list(y.shape)
            shape_x[axis], shape_y[axis] = self.shape[axis], other.shape[axis]
            across = max(shape_x[1 - axis], shape_y[1 - axis])
            shape_x[1 - axis] = shape_y[1 - axis] = across
            return np.take(
                np.concatenate([np.broadcast_to(x, shape_x), np.broadcast_to(y, shape_y)], axis), order, axis
            )

        registers: list[ndarray | None] = []
        for x, y in zip(self.registers, other.registers, strict=True):
            if x is None or y is None:
                registers.append(None if x is None and y is None else self._filled(x, y, join))
            elif (x is y and x.shape[axis] == 1) or (x.size == 1 and y.size == 1 and x.tobytes() == y.tobytes()):
                registers.append(x)
            else:
                registers.append(join(x, y))
        row = join(self.row, other.row) if axis == 0 or common_shape is None else self.row
        tid = join(self.tid, other.tid) if axis == 1 else self.tid
        both = Group(row, tid, self.first, self.blocks, registers)
        both.block = self.block
        both.copies = self.copies + other.copies
        both.copy_groups = [a + b for a, b in _aligned(self.copy_groups, other.copy_groups, [])]
        both.wgmma_open = self.wgmma_open | other.wgmma_open
        both.wgmma_reads = self.wgmma_reads + other.wgmma_reads
        for (busy, reads), (more_busy, more) in _aligned(self.wgmma_groups, other.wgmma_groups, (frozenset(), [])):
            both.wgmma_groups.append((busy | more_busy, reads + more))
        return both

    @staticmethod
    def _filled(x: ndarray | None, y: ndarray | None, join) -> ndarray:
        """A register that only one side has written."""
        value = x if x is not None else y
        hole = np.zeros((1, 1), value.dtype)
        if value.dtype != bool:
            hole = np.full(8 // value.dtype.itemsize, 0, value.dtype)
            hole.view(np.uint64)[:] = 0x7FF97FF97FF97FF9
            hole = hole[:1].reshape(1, 1)
        return join(hole if x is None else x, hole if y is None else y)

    def _squared(self) -> Group:
        """As a rectangle, if these threads are one."""
        rows, counts = np.unique(self.row[0], return_counts=True)
        width = int(counts[0])
        if (counts != width).any():
            return self
        tids = self.tid[0].reshape(len(rows), width)
        if (tids != tids[:1]).any():
            return self
        registers = [x if x is None or x.size == 1 else x.reshape(len(rows), width) for x in self.registers]
        square = self._part(rows[:, None], tids[:1], registers)
        return square


def _aligned(a: list, b: list, nothing: object) -> list[tuple]:
    """Pairs of groups of copies, or of products, from the latest back."""
    length = max(len(a), len(b))
    a, b = ([nothing] * (length - len(x)) + x for x in (a, b))
    return list(zip(a, b, strict=True))
