"""Basic blocks of a kernel, and which registers live across them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from s2vfast.kernels.emulator.ptx import Address, Instruction, Kernel, Negated, Operand, Pair, Register, Vector

_ENDS = ("ret", "exit", "trap")
# Instructions whose first operand is no result.
_WITHOUT_RESULT = (
    "st bra bar barrier ret exit trap red stmatrix membar fence cp prefetch prefetchu nanosleep pragma setmaxnreg "
    "griddepcontrol brkpt discard applypriority stackrestore"
).split()


@dataclass
class Block:
    """Instructions [first, last) of a kernel, executed one after the other by all that enter."""

    first: int
    last: int
    barrier: bool  # the block is one barrier, at which threads wait for each other
    successors: tuple[int, ...] = ()
    reads: frozenset[int] = frozenset()  # registers read before they are written here
    writes: frozenset[int] = frozenset()
    live_in: frozenset[int] = frozenset()
    live_out: frozenset[int] = field(default_factory=frozenset)


def results(instruction: Instruction) -> list[Register]:
    """Registers that an instruction writes."""
    if instruction.name == "wgmma":
        return registers(instruction.operands[0]) if instruction.modifiers[0] == "mma_async" else []
    if instruction.name == "mbarrier":
        has = instruction.modifiers[0] in ("test_wait", "try_wait", "arrive", "pending_count")
        return registers(instruction.operands[0]) if has and len(instruction.operands) > 1 else []
    if instruction.name in _WITHOUT_RESULT or not instruction.operands:
        return []
    first = instruction.operands[0]
    return [] if isinstance(first, Address) else registers(first)


def arguments(instruction: Instruction) -> list[Register]:
    """Registers that an instruction reads; what it writes under a guard is read too."""
    found: list[Register] = []
    if instruction.guard is not None:
        found += registers(instruction.guard) + results(instruction)
    skip = 1 if results(instruction) else 0
    if instruction.name == "wgmma":
        skip = 0  # its accumulator is both
    for operand in instruction.operands[skip:]:
        found += registers(operand)
    if skip == 0 or instruction.name not in _WITHOUT_RESULT:
        first = instruction.operands[0] if instruction.operands else None
        if isinstance(first, Address):
            found += registers(first)
    return found


def registers(operand: Operand) -> list[Register]:
    """Registers of an operand, in order."""
    if isinstance(operand, Register):
        return [operand]
    if isinstance(operand, Negated):
        return [operand.register]
    if isinstance(operand, Address):
        return registers(operand.base)
    if isinstance(operand, Vector):
        return [register for item in operand.items for register in registers(item)]
    if isinstance(operand, Pair):
        return registers(operand.first) + registers(operand.second)
    return []


def is_barrier(instruction: Instruction) -> bool:
    """Whether threads of a block wait for each other here."""
    if instruction.name == "barrier":
        return "cluster" not in instruction.modifiers
    return instruction.name == "bar" and instruction.modifiers[0] != "warp"


def split(kernel: Kernel) -> tuple[list[Block], dict[int, int]]:
    """Blocks in the order of the text, and the block that starts at an instruction."""
    code = kernel.instructions
    starts = {0, len(code), *kernel.labels.values()}
    for i, instruction in enumerate(code):
        if instruction.name in ("bra", *_ENDS):
            starts.add(i + 1)
        elif is_barrier(instruction):
            starts |= {i, i + 1}
    bounds = sorted(start for start in starts if start <= len(code))
    blocks = [
        Block(first, last, first < len(code) and is_barrier(code[first])) for first, last in itertools.pairwise(bounds)
    ]
    index = {block.first: number for number, block in enumerate(blocks)}
    for number, block in enumerate(blocks):
        block.successors = _successors(kernel, number, block, index)
    _liveness(kernel, blocks)
    return blocks, index


def _successors(kernel: Kernel, number: int, block: Block, index: dict[int, int]) -> tuple[int, ...]:
    last = kernel.instructions[block.last - 1]
    following = (number + 1,) if block.last < len(kernel.instructions) else ()
    if last.name == "bra":
        target = index.get(kernel.labels[last.target])
        jump = () if target is None else (target,)
        return jump if last.guard is None else (*jump, *following)
    if last.name in _ENDS:
        return () if last.guard is None else following
    return following


def _liveness(kernel: Kernel, blocks: list[Block]) -> None:
    for block in blocks:
        reads: set[int] = set()
        writes: set[int] = set()
        for instruction in kernel.instructions[block.first : block.last]:
            reads |= {register.index for register in arguments(instruction)} - writes
            writes |= {register.index for register in results(instruction)}
        block.reads, block.writes = frozenset(reads), frozenset(writes)
        block.live_in = block.reads
    changed = True
    while changed:
        changed = False
        for block in reversed(blocks):
            out = frozenset().union(*(blocks[number].live_in for number in block.successors))
            live = block.reads | (out - block.writes)
            changed |= live != block.live_in or out != block.live_out
            block.live_in, block.live_out = live, out
