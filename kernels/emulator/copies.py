"""cp.async: copies from global to shared memory that are there when their group has been waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from s2vfast.kernels.emulator.faults import Site, Unsupported
from s2vfast.kernels.emulator.generate import address
from s2vfast.kernels.emulator.lanes import Lanes
from s2vfast.kernels.emulator.memory import COPYING, WORDS, Space
from s2vfast.kernels.emulator.ptx import Immediate, Instruction
from s2vfast.kernels.emulator.table import instruction, known

if TYPE_CHECKING:
    from s2vfast.kernels.emulator.generate import Writer
    from s2vfast.kernels.emulator.groups import Group
    from s2vfast.kernels.emulator.machine import Machine


@dataclass
class Copy:
    """What some threads copy."""

    shared: Space
    lanes: Lanes
    words: ndarray  # that shared memory will hold
    width: int

    def of(self, member: ndarray) -> Copy:
        """The part of some threads: ``member`` is bool [blocks, threads]."""
        self.shared.separate()
        part, selected_lanes = self.lanes.of(member)
        return Copy(
            self.shared, part, np.broadcast_to(self.words, selected_lanes.shape)[selected_lanes][None], self.width
        )


class Copies:
    """The copies of a launch.

    Args:
        machine: the launch.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def start(
        self,
        g: Group,
        to: ndarray,
        source: ndarray,
        width: int,
        size: ndarray | None,
        guard: ndarray | None,
        site: Site,
    ) -> None:
        """Begin a copy of ``width`` bytes for each thread, of which ``size`` come from memory and the others are 0."""
        shared = self.machine.shared
        lanes = shared.select(g, to, width, guard, site)
        if lanes is None:
            return
        if size is None or ((size == 0) | (size == width)).all():
            mask = guard if size is None else size != 0 if guard is None else guard & (size != 0)
            words = self._read(g, source, width, mask, site)
        else:
            words = self._read_parts(g, source, width, size, guard, site)
        values = lanes.narrow(words)
        shared.check_write(lanes, None, width, site, COPYING)
        g.copies.append(Copy(shared, lanes, values, width))

    def _read(self, g: Group, source: ndarray, width: int, mask: ndarray | None, site: Site) -> ndarray:
        """What memory holds, zeros where nothing is read."""
        read, words = self.machine.memory.load(g, source, width, mask, site)
        zero = np.zeros((1, 1), WORDS[width])
        return zero if read is None else read.spread(words, zero)

    def _read_parts(
        self, g: Group, source: ndarray, width: int, size: ndarray, guard: ndarray | None, site: Site
    ) -> ndarray:
        """The first ``size`` bytes of each word, piece by piece, the others 0."""
        piece = self.machine.memory.granule
        if (size % piece).any() or piece == width:
            raise Unsupported(f"{site}: cp.async of a part of what the kernel's other accesses read as a whole")
        pieces = np.zeros((*g.shape, width // piece), WORDS[piece])
        for i in range(width // piece):
            mask = size > i * piece if guard is None else guard & (size > i * piece)
            pieces[..., i] = self._read(g, source + np.uint64(i * piece), piece, mask, site)
        return pieces.view(WORDS[width])[..., 0]

    def commit(self, g: Group) -> None:
        """cp.async.commit_group."""
        g.copy_groups.append(g.copies)
        g.copies = []

    def wait(self, g: Group, left: int) -> None:
        """cp.async.wait_group: all but the last ``left`` groups are there."""
        done = g.copy_groups[: max(len(g.copy_groups) - left, 0)]
        g.copy_groups = g.copy_groups[len(done) :]
        for copies in done:
            for copy in copies:
                copy.shared.put(copy.lanes, copy.words, copy.width)
                copy.shared.note_writers(copy.lanes, copy.width)


@instruction("cp")
def _cp(w: Writer, ins: Instruction) -> None:
    mods = ins.modifiers
    if mods[:2] == ("async", "commit_group"):
        w.emit("m.copies.commit(g)")
    elif mods[:2] == ("async", "wait_group"):
        w.emit(f"m.copies.wait(g, {ins.operands[0].value})")
    elif mods[:2] == ("async", "wait_all"):
        w.emit("m.copies.commit(g)")
        w.emit("m.copies.wait(g, 0)")
    else:
        hints = ("L2::64B", "L2::128B", "L2::256B", "L2::cache_hint")
        known(mods, "async", "ca", "cg", "shared", "shared::cta", "global", *hints)
        to, source, width, *more = ins.operands
        if not isinstance(width, Immediate) or width.value not in (4, 8, 16):
            raise Unsupported(ins.opcode)
        more = more[:-1] if "L2::cache_hint" in mods else more
        size = w.use(more[0], "u4") if more else None
        shared_address, global_address = address(w, to, "shared"), address(w, source, "global")
        w.emit(f"m.copies.start(g, {shared_address}, {global_address}, {width.value}, {size}, {w.guard}, {w.site})")
