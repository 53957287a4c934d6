"""The model of one launch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from s2vfast.kernels._launch import cdiv
from s2vfast.kernels.model import pipeline
from s2vfast.kernels.model.devices import Device
from s2vfast.kernels.model.sass import Code, Instruction, Loop
from s2vfast.kernels.model.work import seldom_loops, trips

_MATRIX = ("HGMMA", "HMMA")
_SIMULATED = 24  # times round a loop that are followed; more go on as the second half of them did
_REGISTERS_A_WARP = 256  # what registers are given out in
_BUSY = 0.7  # a unit that works for this share of the time is what binds


@dataclass(frozen=True)
class Modelled:
    """What a launch executes and how long it should take.

    Attributes:
        ms: modelled time.
        bound: the unit that is busiest, the device's memory, or what warps wait for.
        busy: unit → share of the time.
        waits: what for → share of the warps' time.
        flop: executed, of matrix products.
        exps: executed exponentials.
        fma: executed multiply-adds, additions and multiplications outside of matrix products.
        hbm: bytes of all tensors of the launch, each once.
        l2: bytes that instructions ask for.
        instructions: warp instructions of a block.
        blocks: of the launch.
        resident: blocks a multiprocessor.
        limited_by: registers, shared memory, warps or blocks.
        waves: blocks over those that are resident at once.
        ahead: iterations of matrix products between a copy to shared memory and the wait for it, the least; None
            without such copies.
        narrow_copies: copies of 4 bytes a lane in loops with matrix products.
    """

    ms: float
    bound: str
    busy: dict[str, float]
    waits: dict[str, float]
    flop: float
    exps: float
    fma: float
    hbm: float
    l2: float
    instructions: int
    blocks: int
    resident: int
    limited_by: str
    waves: float
    ahead: float | None
    narrow_copies: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def model_launch(
    op: str,
    kernel: str,
    sass: str,
    facts: dict[str, Any],
    *,
    blocks: int,
    warps: int,
    registers: int,
    shared: int,
    hbm: float,
    device: Device,
) -> Modelled:
    """The model of one launch.

    Args:
        op: the operation.
        kernel: forward, weight_grad …
        sass: of nvdisasm.
        facts: the launch's arguments and options by name.
        blocks: of the launch.
        warps: of a block.
        registers: of a thread.
        shared: bytes of a block.
        hbm: bytes of all tensors of the launch.
        device: the rates.
    """
    code = Code(sass)
    loops = code.matrix_loops()
    seldom = tuple(loops[len(loops) - seldom_loops(op, kernel) :])
    loops = loops[: len(loops) - len(seldom)]
    with_products = any(instruction.name in _MATRIX for instruction in code.instructions)
    count = trips(op, kernel, facts) if with_products else 1
    resident, limited_by = occupancy(warps, registers, shared, device)
    paths = _paths(code, loops, seldom)
    cycles, instructions = 0.0, 0
    executed: Counter[str] = Counter()
    busy: Counter[str] = Counter()
    waited: Counter[str] = Counter()
    each = blocks / len(paths)
    for path in paths:
        length, work = _cycles(code, path, loops, count, warps, resident, each, device)
        cycles += length
        busy += work.busy
        waited += work.waited
        counted, total = _executed(code.trace(path, dict.fromkeys(loops, count)), warps)
        instructions = max(instructions, total)
        for name, number in counted.items():
            executed[name] += number * each
    # The blocks that are followed stand for all of them, which no cache serves faster than its rate.
    seconds = max(cycles / device.clock, hbm / device.hbm, executed["l2"] / device.l2)
    load = {unit: round(number / device.clock / seconds, 3) for unit, number in busy.items() if unit}
    load |= {"HBM": round(hbm / device.hbm / seconds, 3), "L2": round(executed["l2"] / device.l2 / seconds, 3)}
    total_waited = sum(waited.values()) or 1.0
    waits = {what: round(number / total_waited, 3) for what, number in waited.items()}
    best = max(load, key=lambda unit: load[unit])
    bound = best if load[best] >= _BUSY or not waits else f"waits for {max(waits, key=lambda what: waits[what])}"
    return Modelled(
        ms=(seconds + device.launch_gap) * 1e3,
        bound=bound,
        busy=dict(sorted(load.items(), key=lambda item: -item[1])),
        waits=waits,
        flop=executed["flop"],
        exps=executed["exps"],
        fma=executed["fma"],
        hbm=hbm,
        l2=executed["l2"],
        instructions=instructions,
        blocks=blocks,
        resident=resident,
        limited_by=limited_by,
        waves=round(blocks / (resident * device.multiprocessors), 2),
        ahead=_ahead(code, paths[0], loops, count),
        narrow_copies=sum(
            code.instructions[i].name == "LDGSTS" and code.instructions[i].width == 4
            for loop in loops
            for i in range(loop.first, loop.last + 1)
        ),
    )


def occupancy(warps: int, registers: int, shared: int, device: Device) -> tuple[int, str]:
    """Blocks that a multiprocessor holds at once, and what limits them."""
    a_warp = cdiv(max(registers, 1) * 32, _REGISTERS_A_WARP) * _REGISTERS_A_WARP
    limits = {
        "registers": device.registers // a_warp // warps,
        "shared memory": device.shared // (cdiv(shared, 128) * 128 + 1024),
        "warps": device.warps // warps,
        "blocks": device.blocks,
    }
    name = min(limits, key=lambda limit: limits[limit])
    return max(limits[name], 1), name


def _paths(code: Code, loops: list[Loop], seldom: tuple[Loop, ...]) -> list[list[int]]:
    """Ways through the program, each loop with matrix products in one of them; blocks take them equally often."""
    paths = [code.path(avoided=seldom)]
    passed = set(paths[0])
    while missing := [loop for loop in loops if loop.last not in passed]:
        path = code.path(tuple(loop for loop in loops if loop not in missing), seldom)
        if not {loop.last for loop in missing} & set(path):
            break
        paths.append(path)
        passed |= set(path)
    return paths


def _cycles(
    code: Code,
    path: list[int],
    loops: list[Loop],
    count: int,
    warps: int,
    resident: int,
    blocks: float,
    device: Device,
) -> tuple[float, pipeline.Times]:
    """Cycles of all blocks on a multiprocessor, and what was busy: as if all of them had been followed."""
    a_multiprocessor = blocks / device.multiprocessors
    first = min(resident, cdiv(int(blocks), device.multiprocessors))
    partition_warps = cdiv(warps, pipeline.PARTITIONS)

    def followed(iterations: int) -> tuple[float, pipeline.Times]:
        trace = list(code.trace(path, dict.fromkeys(loops, iterations)))
        wave = pipeline.run([trace] * first, [0.0] * first, partition_warps, device)
        length = max(wave.ends)
        remaining = a_multiprocessor - first
        if remaining > 0:
            # Blocks that follow each other are at different points of their code: they start one after the other.
            starts = [length * i / first for i in range(first)]
            steady = pipeline.run([trace] * (3 * first), starts, partition_warps, device)
            ends = sorted(steady.ends)
            length += remaining * (ends[-1] - ends[first - 1]) / (2 * first)
        for counts in (wave.busy, wave.waited):
            for name in counts:
                counts[name] *= a_multiprocessor / first
        return length, wave

    few = min(count, _SIMULATED)
    length, times = followed(few)
    if count > few:
        fewer, before = followed(few // 2)
        more = (count - few) / (few - few // 2)
        length += (length - fewer) * more
        for unit, number in before.busy.items():
            times.busy[unit] += (times.busy[unit] - number) * more
        for what in times.waited:
            times.waited[what] += (times.waited[what] - before.waited[what]) * more
    return length, times


def _executed(trace: Iterable[Instruction], warps: int) -> tuple[Counter[str], int]:
    """What a block executes: flop, exps, fma, l2 of all its threads; and warp instructions."""
    counted: Counter[str] = Counter()
    total = 0
    for instruction in trace:
        total += 1
        if instruction.name in _MATRIX:
            m, n, k = instruction.matrix_shape
            groups = warps / 4 if instruction.name == "HGMMA" else warps
            counted["flop"] += 2 * m * n * k * groups
        elif instruction.name == "MUFU" and "EX2" in instruction.modifiers:
            counted["exps"] += 32 * warps
        elif pipeline.unit_of(instruction) == "FMA" and instruction.name != "IMAD":
            counted["fma"] += 32 * warps
        elif instruction.name in ("LDG", "STG", "LDGSTS"):
            counted["l2"] += instruction.width * 32 * warps
    return counted, total * warps


def _ahead(code: Code, path: list[int], loops: list[Loop], count: int) -> float | None:
    """Iterations of matrix products between copies and the waits for them, the least; a loop may be written out."""
    if not loops:
        straight = [code.instructions[i] for i in path]
        products = sum(instruction.name in _MATRIX for instruction in straight)
        return _distance(straight, products / count) if products else None
    distances = []
    for loop in loops:
        body = code.instructions[loop.first : loop.last + 1]
        distances.append(_distance(body * 6, sum(instruction.name in _MATRIX for instruction in body)))
    return min((distance for distance in distances if distance is not None), default=None)


def _distance(trace: list[Instruction], products: float) -> float | None:
    """The least number of iterations, each of so many products, between the copies of a trace and their waits."""
    done, waited = 0, 0
    groups: list[int | None] = []
    distances: list[int] = []
    opened: int | None = None
    for instruction in trace:
        if instruction.name in _MATRIX:
            done += 1
        elif instruction.name == "LDGSTS" and not instruction.off and opened is None:
            opened = done
        elif instruction.name == "LDGDEPBAR":
            groups.append(opened)
            opened = None
        elif instruction.name == "DEPBAR" and "LE" in instruction.modifiers:
            left = int(instruction.text.rpartition(",")[2].strip(), 16)
            closed = groups[waited : max(len(groups) - left, waited)]
            distances += [done - group for group in closed if group]  # those before the first product fill the stages
            waited = max(len(groups) - left, waited)
    return round(min(distances) / products, 2) if distances else None
