"""Executes a kernel: all blocks of a launch in step, the group of threads furthest back first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from s2vfast.kernels.emulator import blocks, generate, ptx, special
from s2vfast.kernels.emulator.atomics import atomic
from s2vfast.kernels.emulator.copies import Copies
from s2vfast.kernels.emulator.counts import Counts, Traffic
from s2vfast.kernels.emulator.device import DeviceMemory
from s2vfast.kernels.emulator.faults import EmulatorError, Fault, Site, Unsupported
from s2vfast.kernels.emulator.groups import Group
from s2vfast.kernels.emulator.memory import MOST_BLOCKS, TIME, Space
from s2vfast.kernels.emulator.program import SHARED_START, Program
from s2vfast.kernels.emulator.tensor_cores import TensorCores
from s2vfast.kernels.emulator.warps import Warps

_WINDOWS = {"global": 0, "const": 0, "shared": 1 << 40, "local": 1 << 41}  # where spaces are among generic addresses
_THREADS_AT_ONCE = 1 << 15
_PATIENCE = 16  # basic blocks after which, where blocks talk to each other, the group that has waited longest goes on
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that a block can have."""


@dataclass(frozen=True)
class Checks:
    """What a launch is watched for, beside bounds, alignment and memory never written.

    Args:
        lanes: races between lanes of a warp too.
        worst: approximate instructions return results at the limit of their documented error.
        traffic: count sectors and bank conflicts, which costs time.
        most_blocks: basic blocks executed before a launch is said to make no progress.
    """

    lanes: bool = True
    worst: bool = False
    traffic: bool = False
    most_blocks: int = 10_000_000


class Machine:
    """One launch of a kernel.

    Args:
        program: what is executed.
        grid: blocks, x, y, z.
        block: threads of a block, x, y, z.
        parameters: bytes of the kernel's parameters.
        device: global memory.
        dynamic_shared: bytes of shared memory beside the kernel's own.
        checks: what is watched for.
    """

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        parameters: bytes,
        device: DeviceMemory,
        dynamic_shared: int,
        checks: Checks,
    ) -> None:
        self.program, self.grid, self.block, self.device, self.checks = program, grid, block, device, checks
        if len(parameters) < program.kernel.parameter_bytes:
            needed_bytes = program.kernel.parameter_bytes
            raise EmulatorError(
                f"{program.kernel.name}: {len(parameters)} bytes of parameters, it takes {needed_bytes}"
            )
        self.parameters = np.frombuffer(parameters, np.uint8)
        self.threads = block[0] * block[1] * block[2]
        if program.kernel.threads not in (None, block) or not 0 < self.threads <= 1024:
            raise EmulatorError(
                f"{program.kernel.name}: launched with {block} threads, made for {program.kernel.threads}"
            )
        self.shared_bytes = -(-(program.static_shared + dynamic_shared) // 16) * 16
        self.dynamic_shared = dynamic_shared
        self.clock = 1
        self.fenced = False  # device-wide fences have been seen: order between blocks is no longer known
        self.traffic = Traffic(self) if checks.traffic else None
        self.executed = np.zeros((len(program.blocks), 2), np.int64)  # threads, warps
        self.tensor, self.warps, self.copies = TensorCores(self), Warps(self), Copies(self)
        self.global_symbols = device.declare(program.kernel)
        self.memory = device.space(self, program.granules["global"])

    def run(self) -> Counts:
        """Execute all blocks; what was executed."""
        count = self.grid[0] * self.grid[1] * self.grid[2]
        if count >= MOST_BLOCKS:
            raise EmulatorError(f"{self.program.kernel.name}: {count} blocks, the emulator takes {MOST_BLOCKS - 1}")
        at_once = count if self.program.communicates else max(_THREADS_AT_ONCE // self.threads, 1)
        with np.errstate(all="ignore"):
            for first in range(0, count, at_once):
                self._start(first, min(at_once, count - first))
                self._run()
        self.device.finish(self.memory)
        total = Counts.total(self.program.counts, self.executed)
        if self.traffic:
            total.add_traffic(self.traffic)
        return total

    def _start(self, first: int, rows: int) -> None:
        """Shared and local memory of the next blocks, and their threads."""
        self.first, self.rows = first, rows
        shared = np.full((rows, self.shared_bytes // 2), 0x7FF9, np.uint16).view(np.uint8)
        self.shared = Space(self, "shared", shared, None, self.program.granules["shared"], 0)
        self.shared.writers[:, : SHARED_START >> self.shared.shift] = 0
        size = -(-self.program.local_bytes // 16) * 16
        local = np.full((rows * self.threads, size // 2), 0x7FF9, np.uint16).view(np.uint8)
        self.local = Space(self, "local", local, None, self.program.granules["local"], 0) if size else None
        self.clock += 1
        self.epoch: int | None = self.clock << TIME
        self.warp_epoch: int | None = self.epoch
        self.epochs = np.full(rows, self.epoch, np.int64)
        self.warp_epochs = np.full((rows, 32), self.epoch, np.int64)
        self.proxy_fence = self.epoch
        self.exited = np.zeros(rows, np.int64)
        registers: list[ndarray | None] = [None] * len(self.program.kernel.registers)
        group = Group(np.arange(rows)[:, None], np.arange(self.threads)[None], first, rows, registers)
        self.ready: list[Group] = [group]
        self.waiting: list[Group] = []
        self.steps = 0

    def _run(self) -> None:
        program = self.program
        while self.ready or self.waiting:
            if not self.ready:
                self._release_across()
                continue
            # Whoever spins for a lock stands before its holder, who must come on all the same.
            fair = program.communicates and self.steps % _PATIENCE == 0
            group = self.ready[0] if fair else min(self.ready, key=lambda g: g.block)
            self.ready.remove(group)
            for other in [g for g in self.ready if g.block == group.block]:
                self.ready.remove(other)
                group = group.merged(other)
            block = program.blocks[group.block]
            self.steps += 1
            if self.steps > self.checks.most_blocks:
                site = program.kernel.instructions[block.first].site
                self._refuse("no progress", f"{self.steps} basic blocks executed", site, group)
            if block.barrier:
                self._arrive(group, block)
                continue
            counted = self.executed[group.block]
            counted[0] += group.size
            counted[1] += group.size // 32 if group.whole else _warps(group)
            condition = program.function(group.block)(self, group)
            self._continue(group, block, condition)

    def _continue(self, group: Group, block: blocks.Block, condition: ndarray | None) -> None:
        """Send a group on from the end of a block."""
        last = self.program.kernel.instructions[block.last - 1]
        following = block.successors
        if last.name in ("ret", "exit"):
            going = (group, None) if condition is None else group.split(condition)
            targets: tuple[int | None, ...] = (None, *following)
        elif condition is not None:
            if condition.size > 1:
                group.keep(block.live_out)
            going = group.split(condition)
            # A branch to the end of the kernel has no block of its own.
            targets = following if len(following) == 2 else (None, *following)
        else:
            going, targets = (group,), following or (None,)
        for part, target in zip(going, (*targets, None), strict=False):
            if part is None:
                continue
            if target is None:
                self._exit(part)
            else:
                part.block = target
                if part is not group:
                    part.keep(self.program.blocks[target].live_in)
                self.ready.append(part)

    def _exit(self, group: Group) -> None:
        rows, _ = group.flat()
        self.exited += np.bincount(rows, minlength=self.rows)

    # --- barriers

    def _arrive(self, group: Group, block: blocks.Block) -> None:
        """A group is at a barrier: those blocks go on of which all threads are there."""
        for other in [g for g in self.waiting if g.block == group.block]:
            self.waiting.remove(other)
            group = group.merged(other)
        ins = self.program.kernel.instructions[block.first]
        counted = self.executed[group.block]
        needed = self._needed(ins)
        rows, _ = group.flat()
        present = np.bincount(rows, minlength=self.rows)
        complete = present == needed
        if not complete[rows].any():
            self.waiting.append(group)
            return
        go, stay = group.split(complete[group.row])
        if stay is not None:
            self.waiting.append(stay)
        counted[0] += go.size
        counted[1] += go.size // 32 if go.whole else _warps(go)
        self._pass(go, block)

    def _needed(self, ins: ptx.Instruction) -> int:
        """How many threads of a block a barrier waits for."""
        known_modifiers = {"sync", "cta", "aligned"}
        if set(ins.modifiers) - known_modifiers or ins.guard is not None:
            raise Unsupported(f"{ins.site}: the emulator does not know {ins.opcode}")
        if len(ins.operands) < 2:
            return self.threads
        if not isinstance(ins.operands[1], ptx.Immediate):
            raise Unsupported(f"{ins.site}: a barrier whose number of threads is computed")
        return ins.operands[1].value

    def _pass(self, group: Group, block: blocks.Block) -> None:
        """The barrier lets a group through."""
        self.clock += 1
        now = self.clock << TIME
        if group.all_rows:
            self.epoch = now
            self.epochs[:] = now
        else:
            self.epochs[group.row.reshape(-1)] = now
            self.epoch = now if (self.epochs == now).all() else None
        self._continue(group, block, None)

    def _release_across(self) -> None:
        """No group can go on: barriers of one number that are reached at several places, or a fault."""
        arrived: dict[int, ndarray] = {}
        for group in self.waiting:
            ins = self._barrier(group)
            if len(ins.operands) == 2:
                rows, _ = group.flat()
                number = ins.operands[0].value
                arrived[number] = arrived.get(number, 0) + np.bincount(rows, minlength=self.rows)
        for group in list(self.waiting):
            ins = self._barrier(group)
            if len(ins.operands) == 2 and isinstance(ins.operands[0], ptx.Immediate):
                complete = arrived[ins.operands[0].value] == self._needed(ins)
                go, stay = group.split(np.broadcast_to(complete[group.row], group.row.shape))
                if go is not None:
                    self.waiting.remove(group)
                    if stay is not None:
                        self.waiting.append(stay)
                    self._pass(go, self.program.blocks[go.block])
        if not self.ready:
            self._stuck()

    def _barrier(self, group: Group) -> ptx.Instruction:
        return self.program.kernel.instructions[self.program.blocks[group.block].first]

    def _stuck(self) -> None:
        group = self.waiting[0]
        row = int(np.ravel(group.row)[0])
        rows, _ = group.flat()
        here = int((rows == row).sum())
        elsewhere = sum(int((g.flat()[0] == row).sum()) for g in self.waiting[1:])
        detail = f"{here} threads wait at this barrier, {elsewhere} at another, {self.exited[row]} have exited"
        self._refuse("divergent", detail, self._barrier(group).site, group)

    def _refuse(self, kind: str, detail: str, site: Site, group: Group) -> None:
        raise Fault(kind, detail, site, self.cta_name(int(np.ravel(group.cta)[0])), int(np.ravel(group.tid)[0]))

    def order_warps(self, group: Group) -> None:
        """bar.warp.sync has been executed by whole warps of a group."""
        self.clock += 1
        now = self.clock << TIME
        if group.all_rows and group.shape[1] == self.threads:
            self.warp_epoch = now
            self.warp_epochs[:] = now
        else:
            rows, tids = group.flat()
            self.warp_epochs[rows, tids >> 5] = now
            used = self.warp_epochs[:, : -(-self.threads // 32)]
            self.warp_epoch = now if (used == now).all() else None

    def fence_proxy(self, group: Group) -> None:
        """fence.proxy.async: what was written before can be read by wgmma."""
        self.clock += 1
        self.proxy_fence = self.clock << TIME

    def fence_device(self) -> None:
        """A fence for other blocks: from here on their order is not known to the emulator."""
        self.fenced = True

    # --- what generated code calls

    def parameter(self, at: int, dtype: type) -> ndarray:
        """A parameter, [1, 1]."""
        return self.parameters[at : at + np.dtype(dtype).itemsize].view(dtype).reshape(1, 1)

    def parameter_at(self, where: ndarray, dtype: type, site: Site) -> ndarray:
        """The bytes of parameters at an address, which is the same for all threads: [1, 1]."""
        first, size = int(where.flat[0]), np.dtype(dtype).itemsize
        if (where != first).any() or first % size or first + size > len(self.parameters):
            raise Unsupported(f"{site}: {size} bytes of parameters at addresses that differ, or that are outside")
        return self.parameter(first, dtype)

    def symbol(self, name: str, site: Site) -> ndarray:
        """The address of a variable, or of a parameter among parameters, [1, 1]."""
        address = self.program.symbols.get(
            name, self.global_symbols.get(name, self.program.kernel.parameters.get(name))
        )
        if address is None:
            raise Unsupported(f"{site}: {name} is no variable")
        return np.array([[address]], np.uint64)

    def window(self, space: str) -> int:
        """Where a space begins among generic addresses."""
        return _WINDOWS[space]

    def unset(self, g: Group, index: int, site: Site, old: bool) -> ndarray:
        """A register that nothing has written: what it held does not matter to a guarded result."""
        register = self.program.kernel.registers[index]
        if old:
            return generate.undefined(self.program.kinds[index])
        self._refuse("uninitialised", f"register {register.name}", site, g)

    def space(self, name: str, where: ndarray) -> tuple[Space, ndarray]:
        """The memory that an address is of."""
        if name == "global":
            return self.memory, where
        if name == "shared":
            return self.shared, where
        if name == "local":
            return self.local, where
        for candidate in ("local", "shared"):
            window = _WINDOWS[candidate]
            inside = (where >= window) & (where < window + (1 << 40))
            if inside.all():
                return self.space(candidate, where - np.uint64(window))
            if inside.any():
                raise Unsupported("a generic access to several kinds of memory at once")
        return self.memory, where

    def load(
        self,
        g: Group,
        space: str,
        where: ndarray,
        size: int,
        count: int,
        guard: ndarray | None,
        olds: tuple,
        site: Site,
    ) -> list[ndarray]:
        """``count`` values of ``size`` bytes for each thread; ``olds`` where the guard does not hold."""
        memory, where = self.space(space, where)
        lanes, words = memory.load(g, where, size * count, guard, site)
        if lanes is None:
            return list(olds)
        if count > 1:
            words = words.view(f"u{size}").reshape(*words.shape, count)
            return [lanes.spread(words[..., i], olds[i]) for i in range(count)]
        return [lanes.spread(words, olds[0])]

    def store(self, g: Group, space: str, where: ndarray, values: tuple, guard: ndarray | None, site: Site) -> None:
        """Write the values of each thread."""
        memory, where = self.space(space, where)
        if len(values) == 1:
            memory.store(g, where, values[0], guard, site)
            return
        shape = np.broadcast_shapes(*(value.shape for value in values))
        size = values[0].dtype.itemsize
        words = np.empty((*shape, len(values)), values[0].dtype)
        for i, value in enumerate(values):
            words[..., i] = value
        word = {2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}[size * len(values)]
        memory.store(g, where, words.view(word)[..., 0], guard, site)

    def atomic(self, g: Group, space: str, where: ndarray, *more: Any) -> ndarray | None:
        """atom and red."""
        memory, where = self.space(space, where)
        return atomic(self, g, memory, where, *more)

    def trap(self, g: Group, guard: ndarray | None, site: Site) -> None:
        """Stop."""
        if guard is None or guard.any():
            raise EmulatorError(f"{site}: the kernel stops itself")

    def special(self, g: Group, name: str) -> ndarray:
        """A register of the machine."""
        return special.value(self, g, name)

    # --- names for messages

    def cta_name(self, cta: int) -> tuple[int, int, int]:
        """x, y, z of a block."""
        return cta % self.grid[0], cta // self.grid[0] % self.grid[1], cta // (self.grid[0] * self.grid[1])

    def row_of(self, cta: ndarray) -> ndarray:
        """Blocks counted from the first of this part."""
        return cta - self.first

    def name_address(self, kind: str, offset: int) -> str:
        """An address as a reader knows it."""
        if kind == "global":
            return self.device.describe(offset)
        names = sorted((start, name) for name, start in self.program.symbols.items() if start <= offset)
        return (
            f"{kind} {names[-1][1]} + {offset - names[-1][0]}" if names and kind == "shared" else f"{kind} + {offset}"
        )


def _warps(group: Group) -> int:
    rows, tids = group.flat()
    return len(np.unique(rows * 32 + (tids >> 5)))
