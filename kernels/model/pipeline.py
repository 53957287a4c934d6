"""How long a multiprocessor needs for the instructions of its blocks: each is issued in order, to units that it shares.

One of the four partitions of a multiprocessor is followed; the others are taken to do the same at the same time. Every
warp issues in order, when its operands are there and the unit is free; a partition issues one instruction a cycle, of
the warp that can go on first. Matrix products of a warpgroup and copies to shared memory run beside what follows, up to
the instruction that waits for them: what overlaps what comes from the order of the instructions alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from s2vfast.kernels.model.devices import Device
from s2vfast.kernels.model.sass import Instruction

PARTITIONS = 4
_FLOW = set("BAR BRA EXIT NOP DEPBAR LDGDEPBAR WARPGROUP WARPSYNC CCTL FENCE MEMBAR BSSY BSYNC BREAK".split())
_FMA = {"FFMA", "FMUL", "FADD", "FFMA2", "FMUL2", "FADD2", "HFMA2", "HMUL2", "HADD2"}
_SPECIAL = {"MUFU", "F2I", "I2F", "FRND", "F2F", "POPC", "FLO"}
_SHARED = {"LDS", "STS", "LDSM", "STSM", "SHFL", "ATOMS"}
_GLOBAL = {"LDG", "STG", "LDGSTS", "RED", "ATOMG", "ATOM", "LD", "ST", "LDL", "STL"}


@dataclass
class Times:
    """Cycles until the last block has ended, and what they were spent on.

    Attributes:
        ends: cycle at which each block ended.
        busy: unit → cycles it worked.
        waited: what for → cycles that warps waited with nothing of their own to issue.
    """

    ends: list[float] = field(default_factory=list)
    busy: Counter[str] = field(default_factory=Counter)
    waited: Counter[str] = field(default_factory=Counter)


class _Warp:
    def __init__(self, block: int, trace: Sequence[Instruction], start: float) -> None:
        self.block, self.trace, self.at, self.time = block, trace, 0, start
        self.ready: dict[str, float] = {}
        self.loads: set[str] = set()
        self.copies: list[float] = []  # when each closed group of copies arrives
        self.open_copies = 0.0
        self.matrix_end = 0.0
        self.waiting = False


def run(traces: Sequence[Sequence[Instruction]], starts: Sequence[float], warps: int, device: Device) -> Times:
    """Blocks on one partition of a multiprocessor.

    Args:
        traces: instructions of a warp of each block.
        starts: cycle at which each block may begin. Block i waits for block i - ``len(starts)`` where there are more
            blocks than starts: it takes that one's room.
        warps: of a block on a partition.
        device: the rates.
    """
    times = Times(ends=[0.0] * len(traces))
    resident: list[_Warp] = []
    queue = list(range(len(traces)))
    for _ in starts:
        block = queue.pop(0)
        resident += [_Warp(block, traces[block], starts[block]) for _ in range(warps)]
    free: Counter[str] = Counter()
    clock = 0.0
    while resident:
        candidate, when, reason = None, float("inf"), ""
        for warp in resident:
            if warp.waiting:
                continue
            at, why = _earliest(warp, free, clock)
            if at < when:
                candidate, when, reason = warp, at, why
            if when <= clock:
                break
        if candidate is None:
            raise ValueError("all warps wait at a barrier that some have passed: the path of a program is wrong")
        if reason and when > candidate.time + 1:
            times.waited[reason] += when - max(candidate.time, clock)
        _issue(candidate, when, free, times, device, resident)
        clock = when + 1
        # Greedy, then oldest: the warp that has just issued goes on where it can.
        if candidate.at == len(candidate.trace):
            resident.remove(candidate)
            times.ends[candidate.block] = max(times.ends[candidate.block], when)
            if not any(warp.block == candidate.block for warp in resident) and queue:
                block = queue.pop(0)
                resident += [_Warp(block, traces[block], when) for _ in range(warps)]
        elif resident[0] is not candidate:
            resident.remove(candidate)
            resident.insert(0, candidate)
    return times


def _earliest(warp: _Warp, free: Counter[str], clock: float) -> tuple[float, str]:
    """When a warp's next instruction can be issued, and what it waits for (empty: for a unit, or nothing)."""
    instruction = warp.trace[warp.at]
    when, reason = max(warp.time, clock), ""
    for register in (*instruction.reads, *instruction.writes):
        ready = warp.ready.get(register, 0.0)
        if ready > when:
            when, reason = ready, "loads" if register in warp.loads else ""
    if instruction.name == "DEPBAR" and "LE" in instruction.modifiers:
        left = int(instruction.text.rpartition(",")[2].strip(), 16)
        done = warp.copies[: len(warp.copies) - left] if left else warp.copies
        if done and max(done) > when:
            when, reason = max(done), "copies"
    elif instruction.name == "WARPGROUP" and "DEPBAR" in instruction.modifiers and warp.matrix_end > when:
        when, reason = warp.matrix_end, "matrix products"
    unit = unit_of(instruction)
    if unit not in ("", "memory", "matrix") and free[unit] > when:
        when, reason = free[unit], ""
    if instruction.name == "HMMA" and free["matrix"] > when:
        when, reason = free["matrix"], "matrix products"
    return when, reason


def _issue(warp: _Warp, when: float, free: Counter[str], times: Times, device: Device, resident: list[_Warp]) -> None:
    instruction = warp.trace[warp.at]
    warp.at += 1
    warp.time = when + 1
    times.busy["issue"] += 1
    name, unit = instruction.name, unit_of(instruction)
    cycles = cost(instruction, device)
    if unit:
        begin = max(when, free[unit])
        free[unit] = begin + cycles
        times.busy[unit] += cycles
    latency = device.latency["arithmetic"]
    if name == "HGMMA":
        warp.matrix_end = free["matrix"] + device.latency["matrix"]
    elif name == "HMMA":
        latency = cycles + device.latency["matrix"]
    elif name == "BAR":
        _arrive(warp, when, resident, times, device)
    elif name in _GLOBAL and not instruction.off:
        moved = instruction.width * 32 / (device.l2_bytes_a_cycle / PARTITIONS)
        begin = max(when, free["L2"])
        free["L2"] = begin + moved
        times.busy["L2"] += moved
        arrival = free["L2"] + device.latency["L2"]
        if name == "LDGSTS":
            warp.open_copies = max(warp.open_copies, arrival)
        latency = arrival - when
    elif name == "LDGDEPBAR":
        warp.copies.append(warp.open_copies)
        warp.open_copies = 0.0
    elif name in _SHARED:
        latency = cycles + device.latency["shared"]
    elif name in _SPECIAL:
        latency = cycles + device.latency["special"]
    for register in instruction.writes if name != "HGMMA" else ():
        warp.ready[register] = when + latency
        if name in ("LDG", "LD"):
            warp.loads.add(register)
        else:
            warp.loads.discard(register)


def _arrive(warp: _Warp, when: float, resident: list[_Warp], times: Times, device: Device) -> None:
    warp.waiting = True
    warp.time = when
    block = [other for other in resident if other.block == warp.block]
    if all(other.waiting for other in block):
        for other in block:
            times.waited["barriers"] += when - other.time
            other.waiting, other.time = False, when + device.latency["barrier"]


def unit_of(instruction: Instruction) -> str:
    """The unit that executes an instruction; empty: none but the one that issues."""
    name = instruction.name
    if name in ("HGMMA", "HMMA"):
        return "matrix"
    if name in _FMA or name == "IMAD":
        return "FMA"
    if name in _SPECIAL:
        return "exponentials"
    if name in _SHARED or name in _GLOBAL:
        return "shared memory"
    if name in _FLOW:
        return ""
    return "uniform" if name.startswith("U") or name in ("R2UR", "S2UR") else "integer"


def cost(instruction: Instruction, device: Device) -> float:
    """Cycles that an instruction of one warp keeps its unit, of a partition, busy."""
    name, unit = instruction.name, unit_of(instruction)
    if unit == "matrix":
        m, n, k = instruction.matrix_shape
        if name == "HMMA":
            return 2 * m * n * k * PARTITIONS / (device.flop_a_cycle * device.mma_sync)
        # Operands come from shared memory: the right one, and the left one where it is no register.
        left = 0 if instruction.text.split(",")[1].strip().startswith("R") else m * k * 2
        wide = 4 if any(modifier in ("TF32", "F32_TF32") for modifier in instruction.modifiers) else 2
        shared = (left + n * k * 2) * wide / 2 / device.shared_bytes_a_cycle
        return max(2 * m * n * k / device.flop_a_cycle * (wide / 2) ** 2, shared)
    if unit == "shared memory":
        width = 4 if name == "SHFL" else instruction.width
        return width * 32 * PARTITIONS / device.shared_bytes_a_cycle
    if unit == "FMA":
        rate = device.fma_a_cycle / 2 if name == "IMAD" else device.fma_a_cycle
        return 32 * PARTITIONS / rate
    if unit == "exponentials":
        return 32 * PARTITIONS / device.special_a_cycle
    return 32 * PARTITIONS / device.integer_a_cycle if unit == "integer" else 1.0 if unit else 0.0
