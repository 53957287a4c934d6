"""cp.async: copies from global to shared memory that are there when their group has been waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from s2vfast.kernels.emulator.faults import Site, Unsupported
from s2vfast.kernels.emulator.generate import address
from s2vfast.kernels.emulator.lanes import Lanes
from s2vfast.kernels.emulator.memory import COPYING, Space
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
        part, chosen = self.lanes.of(member)
        return Copy(self.shared, part, np.broadcast_to(self.words, chosen.shape)[chosen][None], self.width)


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
        shared, memory = self.machine.shared, self.machine.memory
        lanes = shared.select(g, to, width, guard, site)
        if lanes is None:
            return
        mask = guard
        if size is not None:
            if ((size != 0) & (size != width)).any():
                raise Unsupported(f"{site}: cp.async of a part of its bytes")
            mask = size != 0 if guard is None else guard & (size != 0)
        read, words = memory.load(g, source, width, mask, site)
        dtype = {4: np.uint32, 8: np.uint64, 16: np.complex128}[width]
        zero = np.zeros((1, 1), dtype)
        values = lanes.narrow(zero if read is None else read.spread(words, zero))
        shared.check_write(lanes, None, width, site, COPYING)
        g.copies.append(Copy(shared, lanes, values, width))

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
        where, place = address(w, to, "shared"), address(w, source, "global")
        w.emit(f"m.copies.start(g, {where}, {place}, {width.value}, {size}, {w.guard}, {w.site})")
