"""The instructions that the emulator knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from s2vfast.kernels.emulator.faults import Unsupported
from s2vfast.kernels.emulator.ptx import Instruction

Write = Callable[[Any, Instruction], None]  # of the writer and the instruction
TABLE: dict[str, Write] = {}
"""How each instruction is written."""


def instruction(*names: str) -> Callable[[Write], Write]:
    """Put a function into `TABLE`."""

    def enter(write: Write) -> Write:
        TABLE.update(dict.fromkeys(names, write))
        return write

    return enter


def known(modifiers: tuple[str, ...], *allowed: str) -> None:
    """Refuse modifiers that are not among those allowed."""
    for modifier in modifiers:
        if modifier not in allowed:
            raise Unsupported(f"the emulator does not know the modifier .{modifier}")
