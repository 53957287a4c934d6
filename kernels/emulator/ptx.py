"""What a PTX kernel is made of."""

from __future__ import annotations

from dataclasses import dataclass

from s2vfast.kernels.emulator.faults import Site

BYTES = {"pred": 1, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "b32": 4, "u32": 4}
BYTES |= {"s32": 4, "f32": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8, "f16x2": 4, "bf16x2": 4, "b128": 16}
"""Sizes of PTX's types."""


@dataclass(frozen=True)
class Register:
    """A register of a kernel."""

    index: int
    name: str
    type: str  # as declared: pred, b16, f32 …


@dataclass(frozen=True)
class Immediate:
    """A number: an int, or a float with its bits."""

    value: int
    bits: int = 0  # 32 or 64 where it is written as a float's bits, else 0


@dataclass(frozen=True)
class Special:
    """A register of the machine, such as %tid.x."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """The address of a variable."""

    name: str


@dataclass(frozen=True)
class Address:
    """[base + offset]."""

    base: Register | Symbol | Immediate
    offset: int


@dataclass(frozen=True)
class Vector:
    """{a, b, …}."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Negated:
    """!p."""

    register: Register


@dataclass(frozen=True)
class Pair:
    """a|b: two results."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Sink:
    """_: a result that nobody wants."""


Operand = Register | Immediate | Special | Symbol | Address | Vector | Negated | Pair | Sink


@dataclass
class Instruction:
    """One instruction: ``@guard name.modifiers operands``."""

    name: str  # the part before the first point
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | Negated | None
    site: Site
    target: str = ""  # label of a branch

    @property
    def opcode(self) -> str:
        """Name and modifiers."""
        return ".".join((self.name, *self.modifiers))


@dataclass(frozen=True)
class Variable:
    """Memory that a module or kernel declares."""

    name: str
    space: str  # shared, global, const, local
    align: int
    size: int  # bytes; 0: as much as the launch asks for
    data: bytes = b""


@dataclass
class Kernel:
    """An entry point."""

    name: str
    parameters: dict[str, int]  # offset of each
    parameter_sizes: list[int]
    parameter_bytes: int
    registers: list[Register]
    instructions: list[Instruction]
    labels: dict[str, int]  # index of the instruction that follows
    variables: dict[str, Variable]  # those of the module too
    threads: tuple[int, int, int] | None  # .reqntid

    def memory(self, space: str) -> list[Variable]:
        """Variables of a space."""
        return [variable for variable in self.variables.values() if variable.space == space]
