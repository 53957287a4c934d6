"""Global, shared and local memory: bytes, and beside them who wrote and read what, by which faults are found.

Addresses are offsets into a row: global memory is one row, shared memory a row a block, local memory a row a thread.
Beside each granule (the narrowest access of the kernel) stand two codes, of its last writer and its last readers:

    time << 34 | many blocks << 33 | block << 12 | many warps << 11 | many lanes << 10 | thread

Time is counted in barriers. 0 is outside every allocation, or never read; 1 never written; 2 written before the launch.
An access is ordered after another of the same block if a barrier has passed since; of the same warp, a bar.warp.sync.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from s2vfast.kernels.emulator.faults import Fault, Site
from s2vfast.kernels.emulator.lanes import Lanes

if TYPE_CHECKING:
    from s2vfast.kernels.emulator.machine import Group, Machine

TIME = 34  # the bit at which it starts
OUTSIDE, UNWRITTEN, BEFORE = 0, 1, 2
MOST_BLOCKS = 1 << 21
_CTA, _CTA_MASK = 12, MOST_BLOCKS - 1
_MANY_LANES, _MANY_WARPS, _MANY_CTAS = 1 << 10, 1 << 11, 1 << 33
_THREAD, _WARP = 0x3FF, 0x3E0
COPYING = 1 << 62  # of a writer: cp.async has not been waited for; of a reader: wgmma has not
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


class Space:
    """One kind of memory of a launch.

    Args:
        machine: the launch.
        kind: global, shared or local.
        data: uint8 [rows, size], size a multiple of 16.
        codes: int64 [rows or 1, size / granule], of writers; None: nothing is written.
        granule: bytes; the narrowest access.
        base: address of offset 0.
    """

    def __init__(
        self, machine: Machine, kind: str, data: ndarray, codes: ndarray | None, granule: int, base: int
    ) -> None:
        self.machine, self.kind, self.data, self.base = machine, kind, data, base
        self.rows, self.size = data.shape
        self.granule, self.shift = granule, granule.bit_length() - 1
        self.words = {width: data.view(dtype) for width, dtype in WORDS.items()}
        count = self.size // granule
        self.single = kind == "shared"  # one row of codes stands for all of them
        rows = self.rows if kind == "local" else 1
        self.writers = np.full((rows, count), UNWRITTEN, np.int64) if codes is None else codes
        self.readers = np.zeros((rows, count), np.int64)

    def select(
        self,
        group: Group,
        address: ndarray,
        width: int,
        mask: ndarray | None,
        site: Site,
        columns: ndarray | None = None,
    ) -> Lanes | None:
        """The threads that take part, their addresses checked; None if none does.

        Args:
            group: who executes.
            address: of each thread, any integer dtype.
            width: bytes.
            mask: which take part.
            site: the instruction.
            columns: which columns of the group the addresses are of; None: all.
        """
        offset = address.astype(np.int64) - self.base
        tid, row, cta = group.tid, group.row, group.cta
        if columns is not None:
            tid = tid[:, columns]
            row, cta = (row, cta) if group.rectangular else (row[:, columns], cta[:, columns])
        row = self._row(row, tid)
        selected_lanes: ndarray | tuple[ndarray] | None = None
        shape = group.shape
        if mask is not None and not mask.all():
            if not mask.any():
                return None
            if mask.shape[0] == 1 and group.rectangular and self.kind != "local":
                columns = np.flatnonzero(np.broadcast_to(mask, (1, shape[1]))[0])
                selected_lanes = (columns,)
                offset = np.broadcast_to(offset, (offset.shape[0], shape[1]))[:, columns]
                tid = np.broadcast_to(tid, (1, shape[1]))[:, columns]
            else:
                selected_lanes = np.broadcast_to(mask, shape)
                offset, row, tid, cta = (
                    np.broadcast_to(x, shape)[selected_lanes][None] for x in (offset, row, tid, cta)
                )
        largest, low = int(offset.max()), int(np.bitwise_or.reduce(offset, axis=None))
        lanes = Lanes(offset, row, tid, cta, False, selected_lanes, shape)
        if low & (width - 1):
            self.fault("misaligned", f"{width} bytes at {{address}}", lanes, offset & (width - 1) != 0, site)
        if low < 0 or largest > self.size - width:
            wrong = (offset < 0) | (offset > self.size - width)
            self.fault("out of bounds", f"{width} bytes at {{address}} of {self.kind} memory", lanes, wrong, site)
        lanes.uniform = self.single and offset.shape[0] == 1 and group.all_rows and self.machine.epoch is not None
        if self.single and not lanes.uniform:
            self.separate()
        return lanes

    def _row(self, row: ndarray, tid: ndarray) -> ndarray | int:
        if self.kind == "global":
            return 0
        return row if self.kind == "shared" else row * self.machine.threads + tid

    def separate(self) -> None:
        """From now on every block has its own codes."""
        if not self.single:
            return
        self.single = False
        self.writers = np.repeat(self.writers, self.rows, axis=0)
        self.readers = np.repeat(self.readers, self.rows, axis=0)

    def _codes(self, codes: ndarray, lanes: Lanes, width: int) -> tuple[ndarray, ndarray]:
        """A flat view of codes, [granules of this width, parts], and where in it each lane's are."""
        parts = max(width >> self.shift, 1)
        index = lanes.offset >> (width.bit_length() - 1)
        if self.kind != "global" and not (lanes.uniform and self.single):  # it may be so no longer
            index = index + lanes.row * (self.size // width)
        return codes.reshape(-1, parts) if parts > 1 else codes.reshape(-1), index

    def load(self, group: Group, address: ndarray, width: int, mask: ndarray | None, site: Site) -> tuple:
        """(the lanes, what they read, as one word of ``width`` bytes each); (None, None) if none takes part."""
        lanes = self.select(group, address, width, mask, site)
        return (None, None) if lanes is None else (lanes, self.read(lanes, width, site))

    def read(self, lanes: Lanes, width: int, site: Site) -> ndarray:
        """Words of lanes that `select` has made."""
        self.check_read(lanes, width, site)
        if self.machine.traffic:
            self.machine.traffic.access(self.kind, "load", lanes, width)
        return self.fetch(lanes, width)

    def fetch(self, lanes: Lanes, width: int) -> ndarray:
        """Words without any check."""
        index = lanes.offset >> (width.bit_length() - 1)
        words = self.words[width]
        if lanes.uniform:
            return words.take(index[0], axis=1)
        if self.kind != "global":
            index = index + lanes.row * (self.size // width)
        return words.reshape(-1).take(index)

    def store(self, group: Group, address: ndarray, values: ndarray, mask: ndarray | None, site: Site) -> None:
        """Write one word of values' width for each thread."""
        width = values.dtype.itemsize
        lanes = self.select(group, address, width, mask, site)
        if lanes is not None:
            self.write(lanes, lanes.narrow(values), site)

    def write(self, lanes: Lanes, values: ndarray, site: Site) -> None:
        """Write to lanes that `select` has made."""
        width = values.dtype.itemsize
        duplicates = self.check_write(lanes, values, width, site)
        if self.machine.traffic:
            self.machine.traffic.access(self.kind, "store", lanes, width)
        self.put(lanes, values, width)
        if duplicates is not None:
            differing = duplicates & ~_same(self.fetch(lanes, width), values)
            if differing.any():
                kind = self._between_duplicates(lanes, width, differing)
                self.fault(kind, "threads write different values to {address}", lanes, differing, site)

    def put(self, lanes: Lanes, values: ndarray, width: int) -> None:
        """Bytes alone."""
        index = lanes.offset >> (width.bit_length() - 1)
        values = values.view(WORDS[width])
        if lanes.uniform:
            columns = np.broadcast_shapes(index.shape[1:], values.shape[1:])
            self.words[width][:, np.broadcast_to(index[0], columns)] = values
            return
        if self.kind != "global":
            index = index + lanes.row * (self.size // width)
        index = np.broadcast_to(index, np.broadcast_shapes(index.shape, values.shape))
        self.words[width].reshape(-1)[index] = values

    # --- what faults are found by

    def check_read(self, lanes: Lanes, width: int, site: Site) -> None:
        """Complain about what was never written, or written without order; note who read."""
        codes, index = self._codes(self.writers, lanes, width)
        previous = codes[index]
        if previous.min() < BEFORE:
            self._unwritten(previous, lanes, width, site)
        if self.kind == "local":
            return
        largest = previous.max()
        if largest > BEFORE and (self.kind == "global" or largest >= self._epoch_floor()):
            self._refuse(previous, lanes, width, site, "reads {address}, which {other} wrote", None)
        self._note_readers(lanes, width)

    def _unwritten(self, previous: ndarray, lanes: Lanes, width: int, site: Site) -> None:
        outside = _over_parts(previous == OUTSIDE, lanes)
        if outside.any():
            what = f"{width} bytes at {{address}} of {self.kind} memory"
            self.fault("out of bounds", what, lanes, outside, site)
        unwritten = _over_parts(previous == UNWRITTEN, lanes)
        self.fault("uninitialised", f"{self.kind} memory at {{address}}", lanes, unwritten, site)

    def _note_readers(self, lanes: Lanes, width: int) -> None:
        codes, index = self._codes(self.readers, lanes, width)
        current, flags = self._current_code(lanes), 0
        # Threads that read one place are noted as the first of them and others.
        if lanes.offset.shape[1] < current.shape[1]:
            flags = _MANY_WARPS if current.shape[1] > 32 else _MANY_LANES
            current = current[:, :1]
        if self.kind == "global" and lanes.offset.shape[0] < current.shape[0]:
            flags, current = flags | _MANY_CTAS, current[:1]
        old = codes[index]
        parts = old.ndim > current.ndim
        updated = (current[..., None] if parts else current) | flags
        different = old ^ updated
        if old.max() >= (self._epoch_floor() if self.kind == "shared" else 1):
            epoch, warp_epoch = self._epochs(lanes, parts, current.shape)
            same_warp = different & (_WARP | (_CTA_MASK << _CTA)) == 0
            recent = (old >= epoch) & (different & _THREAD != 0) & ~(same_warp & (old < warp_epoch))
            more = np.where(recent, np.where(same_warp, _MANY_LANES, _MANY_WARPS), 0)
            more |= np.where(old >= epoch, old & (_MANY_LANES | _MANY_WARPS | COPYING), 0)
            if self.kind == "global":
                other = (old > 0) & (different & (_CTA_MASK << _CTA) != 0)
                more = np.where(other, _MANY_CTAS, more | (old & _MANY_CTAS))
            updated = updated | more
        codes[index] = updated
        # Of lanes that read the same at once one has won; the others must be remembered too.
        different = codes[index] ^ updated
        lost = different & (_THREAD | (_CTA_MASK << _CTA)) != 0
        if lost.any():
            more = np.where(different & _WARP != 0, _MANY_WARPS, _MANY_LANES)
            if self.kind == "global":
                more = np.where(different & (_CTA_MASK << _CTA) != 0, _MANY_CTAS, more)
            index = np.broadcast_to(index, lost.shape[:2])
            for flag in (_MANY_LANES, _MANY_WARPS, _MANY_CTAS):
                at = np.nonzero(lost & (more == flag))
                if len(at[0]):
                    # Several lanes of one place set the same bit of the same code.
                    code_index = (index[at[:2]], at[2]) if parts else index[at]
                    codes[code_index] |= flag

    def check_write(
        self, lanes: Lanes, values: ndarray | None, width: int, site: Site, mark: int = 0
    ) -> ndarray | None:
        """Complain about a write without order; note who wrote. Returns which lanes were overwritten by others."""
        codes, index = self._codes(self.writers, lanes, width)
        previous = codes[index]
        if previous.min() == OUTSIDE:
            self._unwritten(np.where(previous == OUTSIDE, OUTSIDE, BEFORE), lanes, width, site)
        current = self._current_code(lanes)
        if self.kind != "local":
            floor = BEFORE if self.kind == "global" else self._epoch_floor() - 1
            if previous.max() > floor:
                self._refuse(previous, lanes, width, site, "writes {address}, which {other} wrote", values)
            reads, at = self._codes(self.readers, lanes, width)
            read = reads[at]
            if read.max() > (0 if self.kind == "global" else floor):
                self._refuse(read, lanes, width, site, "writes {address}, which {other} read", values)
        updated = current[..., None] if previous.ndim > current.ndim else current
        index = np.broadcast_to(index, np.broadcast_shapes(index.shape, current.shape))
        codes[index] = updated | mark
        if self.kind == "local":
            return None
        lost = codes[index] & ~COPYING != updated
        return _over_parts(lost, lanes) if lost.any() else None

    def check_atomic(self, lanes: Lanes, width: int, site: Site) -> None:
        """Complain about an atomic access to what was never written, or written without order."""
        codes, index = self._codes(self.writers, lanes, width)
        previous = codes[index]
        if previous.min() < BEFORE:
            self._unwritten(previous, lanes, width, site)
        if previous.max() > BEFORE and (self.kind == "global" or previous.max() >= self._epoch_floor()):
            self._refuse(previous, lanes, width, site, "changes {address}, which {other} wrote", None)
        codes[index] = BEFORE

    def note_writers(self, lanes: Lanes, width: int) -> None:
        """What was copied by cp.async has been written now."""
        codes, index = self._codes(self.writers, lanes, width)
        current = self._current_code(lanes)
        index = np.broadcast_to(index, np.broadcast_shapes(index.shape, current.shape))
        codes[index] = current[..., None] if codes.ndim == 2 else current

    def _refuse(
        self, previous: ndarray, lanes: Lanes, width: int, site: Site, what: str, values: ndarray | None
    ) -> None:
        """Raise if a code found forbids the access; a write that changes nothing is forgiven."""
        parts = previous.ndim > lanes.offset.ndim
        current = self._current_code(lanes)
        updated = current[..., None] if parts else current
        epoch, warp_epoch = self._epochs(lanes, parts)
        different = previous ^ updated
        copying = previous >= COPYING
        live = (previous >= epoch) & ~copying
        foreign = np.zeros(previous.shape, bool)
        if self.kind == "global" and not self.machine.fenced:
            foreign = (previous > BEFORE) & ((different & (_CTA_MASK << _CTA) != 0) | (previous & _MANY_CTAS != 0))
        same_warp = different & _WARP == 0
        warps = live & (~same_warp | (previous & _MANY_WARPS != 0))
        lanes_wrong = live & same_warp & (previous >= warp_epoch)
        lanes_wrong &= (different & _THREAD != 0) | (previous & _MANY_LANES != 0)
        if self.kind == "global":
            own = different & (_CTA_MASK << _CTA) == 0
            warps, lanes_wrong = warps & own, lanes_wrong & own
        if not self.machine.checks.lanes:
            lanes_wrong = np.zeros(previous.shape, bool)
        reading = "read" in what.rpartition(" ")[2]
        kinds = (
            ("wgmma before its wait" if reading else "cp.async before its wait", copying),
            ("race between blocks", foreign),
            ("race between warps", warps),
            ("race between lanes", lanes_wrong),
        )
        for kind, wrong in kinds:
            if not wrong.any():
                continue
            lanes_at = _over_parts(wrong, lanes)
            if values is not None and not copying.any():
                lanes_at = lanes_at & ~_same(self.fetch(lanes, width), values)
            if not lanes_at.any():
                continue
            at = np.unravel_index(int(np.argmax(lanes_at)), lanes_at.shape)
            code = previous[at] if not parts else previous[at][np.argmax(wrong[at])]
            other = f"thread {int(code) & _THREAD}"
            if kind == "race between blocks":
                other = f"block {self.machine.cta_name((int(code) >> _CTA) & _CTA_MASK)}"
            self.fault(kind, what.replace("{other}", other), lanes, lanes_at, site)

    def _current_code(self, lanes: Lanes) -> ndarray:
        """The code of each lane's access now."""
        code = (self.machine.clock << TIME) | lanes.tid
        return code | (lanes.cta << _CTA) if self.kind == "global" else np.asarray(code)

    def _epoch_floor(self) -> int:
        """No code below this belongs to anything after the oldest of the blocks' last barriers."""
        machine = self.machine
        return machine.epoch if machine.epoch is not None else int(machine.epochs.min())

    def _epochs(
        self, lanes: Lanes, parts: bool, shape: tuple[int, ...] | None = None
    ) -> tuple[ndarray | int, ndarray | int]:
        """When each lane's block was last at a barrier and its warp at bar.warp.sync; of a shape's first lanes."""
        machine = self.machine
        if machine.epoch is not None and machine.warp_epoch is not None:
            return machine.epoch, max(machine.epoch, machine.warp_epoch)
        row, tid = lanes.row if self.kind == "shared" else machine.row_of(lanes.cta), lanes.tid
        if shape is not None:
            row, tid = row[: shape[0], : shape[1]], tid[: shape[0], : shape[1]]
        epoch = machine.epochs[row]
        warp = np.maximum(machine.warp_epochs[row, tid >> 5], epoch)
        return (epoch[..., None], warp[..., None]) if parts else (epoch, warp)

    def _between_duplicates(self, lanes: Lanes, width: int, differing: ndarray) -> str:
        """Who the threads are that one instruction lets write to one place."""
        codes, index = self._codes(self.writers, lanes, width)
        after = codes[index]
        after = after if after.ndim == lanes.offset.ndim else after[..., 0]
        different = after ^ self._current_code(lanes)
        shape = np.broadcast_shapes(differing.shape, different.shape)
        different = np.broadcast_to(different, shape)[np.broadcast_to(differing, shape)]
        if self.kind == "global" and (different & (_CTA_MASK << _CTA)).any():
            return "race between blocks"
        return "race between warps" if (different & _WARP).any() else "race between lanes"

    def fault(self, kind: str, detail: str, lanes: Lanes, wrong: ndarray, site: Site) -> None:
        """Raise for the first lane that is wrong."""
        shape = np.broadcast_shapes(wrong.shape, lanes.offset.shape, lanes.tid.shape)
        at = np.unravel_index(int(np.argmax(np.broadcast_to(wrong, shape))), shape)
        offset = int(np.broadcast_to(lanes.offset, shape)[at])
        thread = int(np.broadcast_to(lanes.tid, shape)[at])
        cta = np.broadcast_to(lanes.cta, np.broadcast_shapes(np.shape(lanes.cta), shape))
        where = self.machine.name_address(self.kind, offset)
        detail = detail.replace("{address}", where)
        raise Fault(kind, detail, site, self.machine.cta_name(int(cta[at])), thread)


def _over_parts(wrong: ndarray, lanes: Lanes) -> ndarray:
    """Of each lane: whether one of the parts of its access is wrong."""
    return wrong.any(axis=-1) if wrong.ndim > lanes.offset.ndim else wrong


def _same(a: ndarray, b: ndarray) -> ndarray:
    """Whether words are equal bit by bit."""
    a, b = np.broadcast_arrays(a, b)
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    if a.dtype.itemsize == 16:
        a, b = (x[..., None].view(np.uint64) for x in (a, b))
        return (a == b).all(axis=-1)
    word = f"u{a.dtype.itemsize}"
    return a.view(word) == b.view(word)
