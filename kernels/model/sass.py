"""SASS as nvdisasm prints it: instructions, what they read and write, loops, and the path of a program through them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[0-9T]+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^(\.L_\w+):")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_REGISTER = re.compile(r"\b(U?R\d+|U?P\d)\b")
_STORES = ("STG", "STS", "STL", "STSM", "ST", "RED", "LDGSTS", "BAR", "BRA", "EXIT", "NOP", "DEPBAR", "LDGDEPBAR")
_MATRIX_SHAPE = re.compile(r"^(\d+)x(\d+)x(\d+)$")
_HMMA_SHAPES = {"16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4)}
_MATRIX = ("HGMMA", "HMMA")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: LDGSTS, HGMMA, FFMA …
        modifiers: what follows the name after points.
        guard: the predicate, or empty.
        text: operands.
        reads: registers.
        writes: registers.
        target: index of the instruction that a branch goes to, or None.
    """

    name: str
    modifiers: tuple[str, ...]
    guard: str
    text: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    target: int | None = None

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        """m, n, k of a matrix product of one warp (HMMA) or warpgroup (HGMMA)."""
        for modifier in self.modifiers:
            if sizes := _MATRIX_SHAPE.match(modifier):
                m, n, k = map(int, sizes.groups())
                return m, n, k
            if modifier in _HMMA_SHAPES:
                return _HMMA_SHAPES[modifier]
        raise ValueError(f"{self.name}.{'.'.join(self.modifiers)}: a matrix product of unknown shape")

    @property
    def off(self) -> bool:
        """Whether this is a copy to shared memory that reads nothing: a last operand that is false turns it off."""
        return self.name == "LDGSTS" and self.text.endswith("!PT")

    @property
    def width(self) -> int:
        """Bytes that a lane of a load or store moves."""
        if self.off:
            return 0
        if self.name in ("LDSM", "STSM"):
            return {"4": 16, "2": 8}.get(self.modifiers[-1].removeprefix("M88x"), 4) if self.modifiers else 4
        for bits in ("128", "64"):
            if bits in self.modifiers:
                return int(bits) // 8
        return 2 if "U16" in self.modifiers or "S16" in self.modifiers or "16" in self.modifiers else 4


@dataclass(frozen=True)
class Loop:
    """Instructions first to last, of which the last one branches to the first."""

    first: int
    last: int


class Code:
    """A program.

    Args:
        text: of nvdisasm -c.
    """

    def __init__(self, text: str) -> None:
        labels: dict[str, int] = {}
        rows: list[tuple[str, str, str]] = []
        for line in text.splitlines():
            if label := _LABEL.match(line):
                labels[label.group(1)] = len(rows)
            elif row := _LINE.match(line):
                _, guard, name, operands = row.groups()
                rows.append((name, guard or "", operands))
        self.instructions = [_instruction(*row, labels) for row in rows]
        self.loops = sorted(
            (
                Loop(instruction.target, i)
                for i, instruction in enumerate(self.instructions)
                # The last instruction of a program branches to itself.
                if instruction.target is not None and instruction.target < i
            ),
            key=lambda loop: (loop.first, -loop.last),
        )

    def matrix_loops(self) -> list[Loop]:
        """The innermost loops with matrix products, in order."""
        return [
            loop
            for loop in self.loops
            if any(self.instructions[i].name in _MATRIX for i in range(loop.first, loop.last + 1))
            and not any(
                loop.first <= inner.first and inner.last <= loop.last and inner != loop
                for inner in self.loops
                if any(self.instructions[i].name in _MATRIX for i in range(inner.first, inner.last + 1))
            )
        ]

    def path(self, without: tuple[Loop, ...] = (), avoided: tuple[Loop, ...] = ()) -> list[int]:
        """The way through the program, each loop once, with most matrix products, and then most instructions.

        Args:
            without: loops whose matrix products do not count, so that another way is taken.
            avoided: loops that are not gone through where there is a way around them.
        """
        hidden = {i for loop in without for i in range(loop.first, loop.last + 1)}
        closed = {i for loop in avoided for i in range(loop.first, loop.last + 1)}
        count = len(self.instructions)
        best: list[tuple[int, int]] = [(0, 0)] * (count + 1)
        following = [count] * (count + 1)
        for i in range(count - 1, -1, -1):
            instruction = self.instructions[i]
            options = [] if _always(instruction) else [i + 1]
            if instruction.target is not None and instruction.target > i:
                options.append(instruction.target)
            elif instruction.target is not None and _always(instruction):
                options.append(i + 1)
            value = (-count if i in closed else int(instruction.name in _MATRIX and i not in hidden), 1)
            if options:
                # Of two ways that are equal, the one that goes on: a branch around nothing is not taken.
                following[i] = max(options, key=lambda option: best[option])
                value = (value[0] + best[following[i]][0], value[1] + best[following[i]][1])
            best[i] = value
        result, i = [], 0
        while i < count:
            result.append(i)
            i = following[i]
        return result

    def trace(self, path: list[int], trips: dict[Loop, int]) -> Iterator[Instruction]:
        """The instructions of a path, those of each loop as often as said (once where nothing is said).

        Where copies of the first iterations stand before a loop, those in as many of its last ones are off: they are
        for iterations that do not come.
        """
        yield from self._trace(path, trips, None, off=False)

    def _copies(self, path: Iterable[int]) -> int:
        return sum(self.instructions[i].name == "LDGSTS" for i in path)

    def _trace(self, path: list[int], trips: dict[Loop, int], within: Loop | None, off: bool) -> Iterator[Instruction]:
        at = 0
        while at < len(path):
            i = path[at]
            loop = next((loop for loop in self.loops if loop.first == i and loop != within and loop in trips), None)
            if loop is None:
                instruction = self.instructions[i]
                yield _off(instruction) if off and instruction.name == "LDGSTS" else instruction
                at += 1
                continue
            end = at
            while end < len(path) and path[end] <= loop.last:
                end += 1
            inside = self._copies(path[at:end])
            ends = {other.last for other in self.loops}
            since = max((n + 1 for n in range(at) if path[n] in ends), default=0)  # the loop before this one
            before = self._copies(path[since:at]) // inside if inside else 0
            for times in range(trips[loop]):
                inner = {k: n for k, n in trips.items() if k != loop}
                yield from self._trace(path[at:end], inner, loop, off or times >= trips[loop] - before)
            at = end


def _off(instruction: Instruction) -> Instruction:
    """The copy, turned off."""
    return replace(instruction, text=f"{instruction.text}, !PT")


def _always(instruction: Instruction) -> bool:
    """Whether what follows is never reached from here: an exit, or a branch without a condition."""
    if instruction.name == "EXIT":
        return not instruction.guard
    return (
        instruction.name == "BRA"
        and not instruction.guard
        and not re.search(r"\bU?P\d", instruction.text.split("`")[0])
    )


def _instruction(name: str, guard: str, text: str, labels: dict[str, int]) -> Instruction:
    head, *modifiers = name.split(".")
    branch = _TARGET.search(text) if head == "BRA" else None
    operands = [part.strip() for part in text.split(",")]
    registers = [_REGISTER.findall(part) for part in operands]
    writes: list[str] = []
    reads = [register for part in registers for register in part]
    if head not in _STORES and registers and registers[0]:
        writes = registers[0][:1]
        start = 1
        # Comparisons write two predicates.
        if writes[0].lstrip("U").startswith("P") and len(operands) > 1 and registers[1]:
            writes += registers[1][:1]
            start = 2
        reads = [register for part in registers[start:] for register in part]
        writes += _more(writes[0], head, modifiers)
    reads += _REGISTER.findall(guard)
    target = labels.get(branch.group(1)) if branch else None
    return Instruction(head, tuple(modifiers), guard, text, tuple(reads), tuple(writes), target)


def _more(register: str, name: str, modifiers: list[str]) -> list[str]:
    """Registers that are written beside the first."""
    count = 1
    if name in ("LDG", "LDS", "LDC", "LD"):
        count = 4 if "128" in modifiers else 2 if "64" in modifiers else 1
    elif name == "LDSM":
        count = int(modifiers[-1]) if modifiers and modifiers[-1] in ("2", "4") else 1
    elif name == "HMMA":
        count = 4
    elif "WIDE" in modifiers:
        count = 2
    if count == 1 or not register.startswith("R"):
        return []
    first = int(register[1:])
    return [f"R{first + i}" for i in range(1, count)]
