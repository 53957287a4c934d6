"""A kernel ready to be executed: its blocks as Python functions, and where its variables lie."""

from __future__ import annotations

import functools
from typing import Any

from s2vfast.kernels.emulator import (
    accesses,
    blocks,
    conversions,
    copies,
    generate,
    instructions,
    ptx,
    tensor_cores,
    warps,
)
from s2vfast.kernels.emulator.counts import Counts
from s2vfast.kernels.emulator.parser import parse

# Modules that have entered their instructions into the table.
INSTRUCTION_SET = (accesses, conversions, copies, instructions, tensor_cores, warps)
SHARED_START = 1024  # where shared memory begins: the system has the first kilobyte


class Program:
    """A kernel ready to be executed; its blocks are written when they are first reached.

    Args:
        kernel: as parsed.
        worst: see `Checks`.
    """

    def __init__(self, kernel: ptx.Kernel, worst: bool = False) -> None:
        self.kernel, self.worst = kernel, worst
        self.blocks, self.block_at = blocks.split(kernel)
        self.kinds, self.computed = generate.canonical_types(self)
        self.maybe_unset = self.blocks[0].live_in if self.blocks else frozenset()
        self.asynchronous = any(ins.name == "wgmma" for ins in kernel.instructions)
        self.communicates = any(map(_communicates, kernel.instructions))  # blocks with each other
        self.granules = self._granules()
        self.symbols, self.static_shared = self._layout("shared", SHARED_START)
        local, self.local_bytes = self._layout("local", 0)
        self.symbols |= local
        self.namespace: dict[str, Any] = generate.constants()
        self.functions: list[Any] = [None] * len(self.blocks)
        self.counts = [Counts.of(kernel.instructions[block.first : block.last]) for block in self.blocks]

    def function(self, number: int) -> Any:
        """The block as a Python function."""
        if self.functions[number] is None:
            block = self.blocks[number]
            source = generate.Writer(self, block, self.namespace).source()
            scope = self.namespace
            exec(compile(source, f"<{self.kernel.name} block {number}>", "exec"), scope)
            self.functions[number] = scope["block"]
        return self.functions[number]

    def _layout(self, space: str, start: int) -> tuple[dict[str, int], int]:
        addresses, end = {}, start
        for variable in sorted(self.kernel.memory(space), key=lambda v: v.size == 0):
            # Memory whose size the launch gives comes last; swizzled layouts want it at multiples of 1024.
            align = variable.align if variable.size else 1024
            end = -(-end // align) * align
            addresses[variable.name] = end
            end += variable.size
        return addresses, end

    def _granules(self) -> dict[str, int]:
        """The narrowest access of each space, in bytes."""
        least = {"global": 16, "shared": 16, "local": 16}
        for ins in self.kernel.instructions:
            if ins.name not in ("ld", "st", "atom", "red", "ldu", "cp"):
                continue
            mods = ins.modifiers
            if ins.name == "cp":
                if mods[:1] == ("async",) and len(ins.operands) > 2:
                    for space in ("global", "shared"):
                        least[space] = min(least[space], ins.operands[2].value)
                continue
            count = next((int(mod[1]) for mod in mods if mod in ("v2", "v4", "v8")), 1)
            width = ptx.BYTES[mods[-1]] * count
            named = {"const": "global", "shared::cta": "shared"}
            spaces = [named.get(mod, mod) for mod in mods if named.get(mod, mod) in (*least, "param")]
            for space in spaces or ("global", "shared", "local"):
                if space != "param":
                    least[space] = min(least[space], width)
        return least


def _communicates(ins: ptx.Instruction) -> bool:
    """Whether blocks may wait for each other by this instruction."""
    return ins.name in ("atom", "red") or (ins.name in ("ld", "st") and bool(set(ins.modifiers) & accesses.STRONG))


@functools.lru_cache(maxsize=256)
def programs(text: str, worst: bool = False) -> dict[str, Program]:
    """Kernels of a PTX text by name."""
    return {name: Program(kernel, worst) for name, kernel in parse(text).items()}
