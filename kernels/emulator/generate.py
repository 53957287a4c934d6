"""Writes a basic block as a Python function over NumPy arrays, one value a thread of a group.

A value is an array [blocks, threads] that broadcasts: what depends on the thread alone is [1, threads], what is the
same for all is [1, 1], so that each number is computed once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from s2vfast.kernels.emulator import arithmetic, blocks
from s2vfast.kernels.emulator.faults import Unsupported
from s2vfast.kernels.emulator.ptx import (
    BYTES,
    Address,
    Immediate,
    Instruction,
    Negated,
    Operand,
    Register,
    Sink,
    Special,
    Symbol,
)
from s2vfast.kernels.emulator.table import TABLE

if TYPE_CHECKING:
    from s2vfast.kernels.emulator.program import Program

# NumPy's dtypes, as the generated code names them.
DTYPES: dict[str, type] = {
    f"{kind}{size}": getattr(arithmetic, f"{kind}{size}") for kind in "ui" for size in (1, 2, 4, 8)
}
DTYPES |= {"f2": np.float16, "f4": np.float32, "f8": np.float64, "b1": np.bool_}
UNDEFINED = 0x7FF97FF97FF97FF9  # what a register or memory holds before it is written: NaN in every format

_TOKENS = {"pred": "b1", "f32": "f4", "f64": "f8", "f16": "u2", "bf16": "u2", "f16x2": "u4", "bf16x2": "u4"}
FLOATS = ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")
NARROW = {"f16": "f16", "bf16": "bf16", "f16x2": "f16", "bf16x2": "bf16"}
"""Types narrower than float32, and what their numbers are."""
_FLOAT_RESULTS = "add sub mul fma mad div rcp sqrt rsqrt ex2 lg2 sin cos tanh".split()


def token(kind: str) -> str:
    """The dtype of a PTX type; b types are unsigned."""
    if kind in _TOKENS:
        return _TOKENS[kind]
    if kind not in BYTES or kind == "b128":
        raise Unsupported(f"the type .{kind}")
    return ("i" if kind[0] == "s" else "u") + str(BYTES[kind])


def canonical_types(program: Program) -> tuple[list[str], frozenset[int]]:
    """How each register is kept between blocks, and those that hold results of float32 arithmetic alone."""
    votes = [0] * len(program.kernel.registers)
    arithmetic_only: dict[int, bool] = {}
    for instruction in program.kernel.instructions:
        float32 = "f32" in instruction.modifiers[-1:] and instruction.name not in ("cvt", "wgmma", "ld", "st")
        wrote = blocks.results(instruction)
        for register in wrote:
            votes[register.index] += 1 if float32 or instruction.name in ("mma", "wgmma") else -1
            computed = float32 and instruction.name in _FLOAT_RESULTS and instruction.guard is None
            arithmetic_only[register.index] = arithmetic_only.get(register.index, True) and computed
        for register in blocks.arguments(instruction):
            votes[register.index] += 1 if float32 else -1
    kinds = []
    for register in program.kernel.registers:
        kind = token(register.type)
        kinds.append("f4" if kind == "u4" and votes[register.index] > 0 else kind)
    return kinds, frozenset(index for index, good in arithmetic_only.items() if good and kinds[index] == "f4")


class Writer:
    """Writes the function of one block.

    Args:
        program: the kernel.
        block: which of its blocks.
        namespace: globals of the generated functions; gets the constants.
    """

    def __init__(self, program: Program, block: blocks.Block, namespace: dict[str, Any]) -> None:
        self.program, self.block, self.namespace = program, block, namespace
        self.lines: list[str] = []
        self.current: dict[int, dict[str, str]] = {}  # of each register: dtype → variable
        self.changed: set[int] = set()
        self.computed: set[str] = set()  # variables that hold results of float32 arithmetic: their NaN is canonical
        self.count = 0
        self.guard: str | None = None
        self.busy: set[int] = set()  # registers of wgmma that this block has started
        self.written_since_fence: set[str] = set()  # names, since wgmma.fence
        self.instruction: Instruction | None = None
        self.run: list[Instruction] = []  # it and those that are written together with it
        self.site = ""

    def source(self) -> str:
        """The function ``block(m, g)``; it returns the condition of the branch at its end, if there is one."""
        result = None
        code = self.program.kernel.instructions[self.block.first : self.block.last]
        at = 0
        while at < len(code):
            instruction = self.instruction = code[at]
            run = _independent(code[at:]) if instruction.name == "mma" else [instruction]
            following = code[at:]
            at += len(run)
            self.site = self.constant_object(instruction.site)
            if self.program.asynchronous:
                self._check_asynchronous(instruction, following)
            self.guard = None if instruction.guard is None else self.condition(instruction.guard)
            if instruction.name in ("bra", "ret", "exit"):
                result = self.guard
                continue
            write = TABLE.get(instruction.name)
            if write is None:
                raise Unsupported(f"{instruction.site}: the emulator does not know {instruction.opcode}")
            try:
                self.run = run
                write(self, instruction)
            except Unsupported as error:
                if str(instruction.site) in str(error):
                    raise
                raise Unsupported(f"{instruction.site}: {error}") from None
            if instruction.name == "wgmma" and instruction.modifiers[0] == "wait_group":
                self.busy.clear()
                self._emit_check(_touched(following[1:]))
        for index in sorted(self.changed & self.block.live_out):
            register = self.program.kernel.registers[index]
            self.lines.append(f"R[{index}] = {self.use(register, self.program.kinds[index])}")
        body = ["R = g.registers", *self.lines, f"return {result}"]
        return "def block(m, g):\n" + "\n".join(f"    {line}" for line in body) + "\n"

    def _check_asynchronous(self, instruction: Instruction, following: list[Instruction]) -> None:
        """Emit checks that no register is touched while wgmma works on it."""
        if instruction.name == "wgmma":
            if instruction.modifiers[0] == "mma_async":
                for operand in instruction.operands[:2]:
                    self.busy |= {register.index for register in blocks.registers(operand)}
            return
        if instruction is self.program.kernel.instructions[self.block.first]:
            self._emit_check(_touched(following))
        if self.busy:
            self._emit_check(_touched([instruction]) & self.busy)

    def _emit_check(self, touched: set[int]) -> None:
        if touched:
            name = self.constant_object(frozenset(touched))
            self.emit(f"if g.wgmma_groups or g.wgmma_open: m.tensor.check_registers(g, {name}, {self.site})")

    # --- values

    def variable(self, expression: str) -> str:
        """A new variable of that value."""
        self.count += 1
        self.lines.append(f"v{self.count} = {expression}")
        return f"v{self.count}"

    def emit(self, line: str) -> None:
        """One more line."""
        self.lines.append(line)

    def constant(self, bits: int, kind: str) -> str:
        """A [1, 1] array of these bits."""
        dtype = np.dtype(DTYPES[kind])
        bits &= (1 << 8 * dtype.itemsize) - 1
        name = f"k_{kind}_{bits:x}"
        if name not in self.namespace:
            if kind == "b1":
                self.namespace[name] = np.array([[bool(bits)]])
            else:
                self.namespace[name] = np.frombuffer(bits.to_bytes(dtype.itemsize, "little"), dtype).reshape(1, 1)
        return name

    def constant_object(self, value: Any) -> str:
        """A name for any object."""
        name = f"o{id(value)}"
        self.namespace[name] = value  # which keeps it alive, so that its id stays its own
        return name

    def condition(self, operand: Operand) -> str:
        """A predicate, maybe negated."""
        if isinstance(operand, Negated):
            return self.variable(f"~{self.use(operand.register, 'b1')}")
        return self.use(operand, "b1")

    def use(self, operand: Operand, kind: str) -> str:
        """The variable of an operand in a dtype: its bits, cut or extended by zeros."""
        if isinstance(operand, Register):
            return self._register(operand, kind)
        if isinstance(operand, Immediate):
            return self._immediate(operand, kind)
        if isinstance(operand, Negated):
            return self.condition(operand)
        if isinstance(operand, Special):
            return self.variable(f"m.special(g, {operand.name!r}).astype({kind})")
        if isinstance(operand, Symbol):
            return self.variable(f"m.symbol({operand.name!r}, {self.site}).astype({kind})")
        raise Unsupported(f"the operand {operand}")

    def _immediate(self, operand: Immediate, kind: str) -> str:
        value = operand.value
        if kind == "b1":
            return self.constant(int(value != 0), kind)
        if operand.bits == 64 and kind == "f4":
            value = int(np.array(value, np.uint64).view(np.float64).astype(np.float32).view(np.uint32))
        elif operand.bits == 32 and kind == "f8":
            value = int(np.array(value, np.uint32).view(np.float32).astype(np.float64).view(np.uint64))
        return self.constant(value, kind)

    def _register(self, register: Register, kind: str) -> str:
        versions = self._versions(register)
        if kind in versions:
            return versions[kind]
        have, name = next(iter(versions.items()))
        if (have == "b1") != (kind == "b1"):
            raise Unsupported(f"{register.name} is a predicate on one side only")
        if have == "f4" and name in self.computed and kind not in ("f4", "f8"):
            versions["u4"] = self.variable(f"canonical({name})")
            have, name = "u4", versions["u4"]
            if kind == "u4":
                return name
        if have[1] == kind[1]:
            versions[kind] = self.variable(f"{name}.view({kind})")
        else:
            if have[0] == "f":
                name = self.variable(f"{name}.view(u{have[1]})")
            unsigned = f"u{kind[1]}"
            name = self.variable(f"{name}.astype({unsigned})")
            versions[kind] = name if unsigned == kind else self.variable(f"{name}.view({kind})")
        return versions[kind]

    def _versions(self, register: Register) -> dict[str, str]:
        """Variables that hold a register, by dtype."""
        index = register.index
        if index not in self.current:
            kind = self.program.kinds[index]
            self.current[index] = {kind: f"r{index}"}
            self.lines.append(f"r{index} = R[{index}]")
            if index in self.program.maybe_unset:
                self.lines.append(f"if r{index} is None: r{index} = m.unset(g, {index}, {self.site}, {self.is_old!r})")
            if index in self.program.computed:
                self.computed.add(f"r{index}")
        return self.current[index]

    is_old = False  # whether a register is looked up for what a guarded instruction leaves as it was

    def old(self, operand: Operand, kind: str) -> str | None:
        """What a register held before, where a guarded instruction leaves it; None without a guard."""
        if self.guard is None or not isinstance(operand, Register):
            return None
        self.is_old = True
        try:
            return self.use(operand, kind)
        finally:
            self.is_old = False

    def define(self, operand: Operand, kind: str, expression: str, masked: bool = False) -> None:
        """A register gets a value of a dtype, where the guard holds.

        Args:
            operand: where it goes.
            kind: the dtype of the expression.
            expression: Python.
            masked: whether the expression has regarded the guard already.
        """
        if isinstance(operand, Sink):
            return
        if not isinstance(operand, Register):
            raise Unsupported(f"a result in {operand}")
        size = token(operand.type)[1]
        if kind != "b1" and kind[1] != size:
            wide = f"{'i' if kind[0] == 'i' else 'u'}{size}"
            expression, kind = f"({expression}).astype({wide})", wide
        if not masked and (old := self.old(operand, kind)) is not None:
            expression = f"where({self.guard}, {expression}, {old})"
        name = self.variable(expression)
        self.current[operand.index] = {kind: name}
        self.changed.add(operand.index)
        if self.program.asynchronous and self.instruction.name != "wgmma":
            self.written_since_fence.add(operand.name)
        plain = self.guard is None and kind == "f4"
        if plain and self.instruction.name in _FLOAT_RESULTS:
            self.computed.add(name)

    def alias(self, target: Register, source: Register, kind: str) -> None:
        """mov without a guard: no code."""
        self.use(source, kind)
        self.current[target.index] = dict(self.current[source.index])
        self.changed.add(target.index)


def address(w: Writer, operand: Address, space: str) -> str:
    """An address as an array of unsigned numbers."""
    narrow = space == "shared" and isinstance(operand.base, Register) and operand.base.type in ("b32", "u32", "s32")
    kind = "u4" if narrow else "u8"
    base = w.use(operand.base, kind)
    return w.variable(f"{base} + {w.constant(operand.offset, kind)}") if operand.offset else base


def constants() -> dict[str, Any]:
    """What generated code can name."""
    names: dict[str, Any] = {**DTYPES, "where": np.where, "np": np}
    for name in dir(arithmetic):
        value = getattr(arithmetic, name)
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == arithmetic.__name__:
            names[name] = value
    return names


def undefined(kind: str) -> ndarray:
    """[1, 1]: what a register of a dtype holds before anything is written."""
    if kind == "b1":
        return np.zeros((1, 1), bool)
    dtype = np.dtype(DTYPES[kind])
    bits = (UNDEFINED & ((1 << 8 * dtype.itemsize) - 1)).to_bytes(dtype.itemsize, "little")
    return np.frombuffer(bits, dtype).reshape(1, 1)


def _independent(code: list[Instruction]) -> list[Instruction]:
    """As many mma from the start as are alike and need no result of each other."""
    run, wrote = [], set()
    for instruction in code:
        if instruction.opcode != code[0].opcode or instruction.guard is not None:
            break
        if wrote & {register.index for register in blocks.arguments(instruction)}:
            break
        run.append(instruction)
        wrote |= {register.index for register in blocks.results(instruction)}
    return run or code[:1]


def _touched(code: list[Instruction]) -> set[int]:
    """Registers that instructions other than wgmma read or write before the next wgmma.wait_group."""
    touched: set[int] = set()
    for instruction in code:
        if instruction.name == "wgmma":
            if instruction.modifiers[0] == "wait_group":
                break
            continue
        touched |= {register.index for register in (*blocks.results(instruction), *blocks.arguments(instruction))}
    return touched
