"""What a launch has executed: warp instructions by class, sectors of global memory, bank conflicts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from s2vfast.kernels.emulator.ptx import BYTES, Immediate, Instruction

if TYPE_CHECKING:
    from s2vfast.kernels.emulator.lanes import Lanes
    from s2vfast.kernels.emulator.machine import Machine

_UNITS = {"shfl": "shuffle", "vote": "vote", "redux": "redux", "match": "vote", "bra": "branch", "ret": "branch"}
_SPACES = ("global", "shared", "local", "param", "const")


def class_of(instruction: Instruction) -> str:
    """The class of an instruction: ``fma.f32``, ``mufu``, ``load.global.16`` (bytes a thread), ``mma.m16n8k16``."""
    name, mods = instruction.name, instruction.modifiers
    if name in ("mma", "wgmma"):
        shape = next((mod for mod in mods if mod[0] == "m" and "n" in mod and "k" in mod), mods[0])
        return f"{name}.{shape}"
    if name in ("ld", "st", "ldu"):
        count = next((int(mod[1]) for mod in mods if mod in ("v2", "v4", "v8")), 1)
        space = next((mod.split("::")[0] for mod in mods if mod.split("::")[0] in _SPACES), "generic")
        return f"{'store' if name == 'st' else 'load'}.{space}.{BYTES[mods[-1]] * count}"
    if name in ("ldmatrix", "stmatrix"):
        return f"{name}.{next(mod for mod in mods if mod[0] == 'x')}"
    if name == "cp":
        width = instruction.operands[2] if len(instruction.operands) > 2 else None
        return f"cp.async.{width.value}" if isinstance(width, Immediate) else ".".join(("cp", *mods[:2]))
    if name in ("bar", "barrier"):
        return "barrier.warp" if mods[0] == "warp" else "barrier"
    if "approx" in mods or name in ("ex2", "lg2", "sin", "cos", "tanh", "rsqrt") or (name == "div" and "full" in mods):
        return "mufu"
    if name in ("atom", "red", "fence", "membar"):
        return name
    if name in _UNITS:
        return _UNITS[name]
    kind = mods[-1] if mods else ""
    if name in ("add", "sub", "mul", "fma", "mad", "div", "min", "max", "sqrt", "rcp") and kind[:1] in ("f", "b"):
        return f"{'fma' if name in ('fma', 'mad') else name}.{kind}"
    return {"cvt": "convert", "mov": "move", "cvta": "move"}.get(name, "integer")


class Counts:
    """Warp instructions of a launch by class, and what its memory accesses cost.

    Attributes:
        instructions: class → executed by a warp; wgmma counts once for each of its four warps.
        threads: thread instructions in all.
        sectors: load, store → sectors of 32 bytes of global memory, each counted once a warp instruction.
        wavefronts: load, store → passes through shared memory.
        conflicts: those of them that bank conflicts add.
    """

    def __init__(self) -> None:
        self.instructions: Counter[str] = Counter()
        self.threads = 0
        self.sectors: Counter[str] = Counter()
        self.wavefronts: Counter[str] = Counter()
        self.conflicts: Counter[str] = Counter()

    @classmethod
    def of(cls, code: list[Instruction]) -> Counts:
        """One warp executing these."""
        counts = cls()
        counts.instructions.update(map(class_of, code))
        return counts

    @classmethod
    def total(cls, blocks: list[Counts], executed: ndarray) -> Counts:
        """Blocks of code executed by so many threads and warps, [blocks, 2]."""
        counts = cls()
        for block, (threads, warps) in zip(blocks, executed.tolist(), strict=True):
            for name, number in block.instructions.items():
                counts.instructions[name] += number * warps
            counts.threads += sum(block.instructions.values()) * threads
        counts.instructions = +counts.instructions
        return counts

    def add_traffic(self, traffic: Traffic) -> None:
        """Take over what memory accesses have cost."""
        self.sectors, self.wavefronts, self.conflicts = traffic.sectors, traffic.wavefronts, traffic.conflicts

    def __add__(self, other: Counts) -> Counts:
        result = Counts()
        result.threads = self.threads + other.threads
        for name in ("instructions", "sectors", "wavefronts", "conflicts"):
            setattr(result, name, getattr(self, name) + getattr(other, name))
        return result


class Traffic:
    """Counts sectors and bank conflicts as a launch goes on.

    Args:
        machine: the launch.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.sectors: Counter[str] = Counter()
        self.wavefronts: Counter[str] = Counter()
        self.conflicts: Counter[str] = Counter()

    def access(self, kind: str, what: str, lanes: Lanes, width: int) -> None:
        """One instruction's accesses by some lanes."""
        if kind == "local":
            return
        cta = lanes.cta if not lanes.uniform else lanes.cta[:1]
        shape = np.broadcast_shapes(lanes.offset.shape, lanes.tid.shape, np.shape(cta))
        offset, tid, cta = (np.broadcast_to(x, shape).reshape(-1) for x in (lanes.offset, lanes.tid, cta))
        warp = cta * 32 + (tid >> 5)
        if kind == "global":
            self.sectors[what] += len(np.unique(warp << 40 | offset >> 5))
            return
        # A pass serves 128 bytes of a warp: 32 lanes of 4 bytes, 8 of 16.
        phase = warp * 4 + (tid & 31) * max(width, 4) // 128
        words = (offset[:, None] >> 2) + np.arange(max(width // 4, 1))
        distinct = np.unique((phase[:, None] << 20) | words)
        banks, per_bank = np.unique((distinct >> 20) << 5 | distinct & 31, return_counts=True)
        phases, first = np.unique(banks >> 5, return_index=True)
        passes = int(np.maximum.reduceat(per_bank, first).sum())
        times = self.machine.rows if lanes.uniform else 1
        self.wavefronts[what] += passes * times
        self.conflicts[what] += (passes - len(phases)) * times
