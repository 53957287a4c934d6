"""Reads PTX, as nvcc and Triton write it: kernels as lists of instructions, functions inlined at their calls."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from s2vfast.kernels.emulator.faults import EmulatorError, Site, Unsupported
from s2vfast.kernels.emulator.ptx import (
    BYTES,
    Address,
    Immediate,
    Instruction,
    Kernel,
    Negated,
    Operand,
    Pair,
    Register,
    Sink,
    Special,
    Symbol,
    Variable,
    Vector,
)


@dataclass
class _Body:
    """A function or entry: its header and statements."""

    header: str
    line: int
    statements: list[tuple[int, str, tuple[int, int]]] = field(default_factory=list)  # line, text, (file, line)


def parse(text: str) -> dict[str, Kernel]:
    """Kernels of a module by name.

    Raises:
        EmulatorError: this is no PTX.
        Unsupported: a call that cannot be inlined.
    """
    bodies, statements, files = _statements(text)
    shared_by_all = [_variable(statement) for _, statement, _ in statements if _is_variable(statement)]
    functions = {_function_name(body.header): body for body in bodies if ".entry" not in body.header}
    kernels = {}
    for body in bodies:
        if ".entry" in body.header:
            kernel = _Reader(body, functions, files, shared_by_all).kernel()
            kernels[kernel.name] = kernel
    if not kernels:
        raise EmulatorError("this text has no .entry: expected PTX")
    return kernels


def _statements(text: str) -> tuple[list[_Body], list[tuple[int, str, tuple[int, int]]], dict[int, str]]:
    """Bodies, the module's own statements, and the names of source files."""
    text = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment.group().count("\n"), text, flags=re.DOTALL)
    bodies: list[_Body] = []
    outside: list[tuple[int, str, tuple[int, int]]] = []
    files: dict[int, str] = {}
    current: _Body | None = None
    depth, pending, start, loc, in_section = 0, "", 0, (0, 0), False
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("//", 1)[0].strip() if '"' not in line else line.strip()
        if in_section:
            in_section = "}" not in line
            continue
        if line.startswith(".section"):
            in_section = "}" not in line
            continue
        if line.startswith(".file"):
            index, name = re.match(r"\.file\s+(\d+)\s+\"([^\"]*)\"", line).groups()
            files[int(index)] = name
            continue
        if re.match(r"\.loc\s", line):
            at = [int(word) for word in line.replace(",", " ").split()[1:3]]
            loc = (at[0], at[1]) if at[1] else loc
            continue
        if re.match(r"\.(version|target|address_size)\b", line):
            continue
        for piece in re.split(r"([;{}])", line):
            if not pending.strip():
                start = number
            if piece == ";":
                if pending.strip():
                    (current.statements if current else outside).append((start, pending.strip(), loc))
                pending = ""
            elif piece == "{" and (not pending.strip() or _is_header(pending)):
                if current is None:
                    current, depth = _Body(pending.strip(), start), 0
                else:
                    depth += 1
                    current.statements.append((start, "{", loc))
                pending = ""
            elif piece == "}" and not pending.strip():
                if depth == 0 and current is not None:
                    bodies.append(current)
                    current = None
                else:
                    depth -= 1
                    current.statements.append((start, "}", loc))
            else:
                pending += piece
                label = re.match(r"\s*([\w$]+):\s*(?![:\w])", pending)
                while label and current is not None:
                    current.statements.append((start, label.group(1) + ":", loc))
                    pending = pending[label.end() :]
                    label = re.match(r"\s*([\w$]+):\s*(?![:\w])", pending)
        pending += " "
    return bodies, outside, files


def _is_header(text: str) -> bool:
    return ".entry" in text or ".func" in text


def _is_variable(text: str) -> bool:
    return bool(re.match(r"(\.(extern|visible|weak|common)\s+)*\.(shared|global|const|local)\b", text))


def _function_name(header: str) -> str:
    header = re.sub(r"\.func\s*\(.*?\)", ".func", header, count=1, flags=re.DOTALL)
    return re.search(r"(?:\.func|\.entry)\s+(?:\.noreturn\s+)?([\w$]+)", header).group(1)


def _variable(text: str) -> Variable:
    """A variable from its declaration, with what it is initialised to."""
    match = re.search(
        r"\.(shared|global|const|local)\s+(?:\.attribute\([^)]*\)\s+)?(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)"
        r"((?:\[\d*\])*)\s*(?:=\s*(.*))?$",
        text,
        re.DOTALL,
    )
    if not match:
        raise Unsupported(f"a declaration that is not understood: {text}")
    space, align, kind, name, sizes, start = match.groups()
    count = 1
    for size in re.findall(r"\[(\d*)\]", sizes):
        count *= int(size or 0)
    data = b""
    if start:
        for word in re.findall(r"-?\w+", start):
            data += _bits(_number(word), kind)
    return Variable(name, space, int(align or BYTES[kind]), BYTES[kind] * count, data)


def _bits(number: Immediate, kind: str) -> bytes:
    if kind == "f32" and not number.bits:
        return struct.pack("<f", number.value)
    return (number.value & ((1 << 8 * BYTES[kind]) - 1)).to_bytes(BYTES[kind], "little")


def _number(word: str) -> Immediate:
    if match := re.fullmatch(r"(-?)0[fF]([0-9a-fA-F]{8})", word):
        return Immediate(int(match.group(2), 16) ^ (0x80000000 if match.group(1) else 0), 32)
    if match := re.fullmatch(r"(-?)0[dD]([0-9a-fA-F]{16})", word):
        return Immediate(int(match.group(2), 16) ^ (1 << 63 if match.group(1) else 0), 64)
    word = word.rstrip("U")
    if re.fullmatch(r"-?\d+\.\d*(e[-+]?\d+)?", word):
        return Immediate(struct.unpack("<Q", struct.pack("<d", float(word)))[0], 64)
    negative, digits = word.startswith("-"), word.lstrip("-")
    base = 16 if digits[:2] in ("0x", "0X") else 2 if digits[:2] in ("0b", "0B") else 8 if digits[:1] == "0" else 10
    value = int(digits, base) if digits != "0" else 0
    return Immediate(-value if negative else value)


class _Reader:
    """Turns the statements of one entry, and of the functions that it calls, into instructions."""

    def __init__(
        self, body: _Body, functions: dict[str, _Body], files: dict[int, str], module_variables: list[Variable]
    ) -> None:
        self.body, self.functions, self.files = body, functions, files
        self.name = _function_name(body.header)
        self.registers: list[Register] = []
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.variables = {variable.name: variable for variable in module_variables}
        self.scopes: list[dict[str, str]] = [{}]  # of names (or prefixes, ending in <) to types
        self.resolved: list[dict[str, Register]] = [{}]
        self.aliases: list[dict[str, str]] = [{}]  # of a function's parameters to those of the call
        self.passed: dict[tuple[str, int], Register] = {}
        self.inlined = 0
        self.parameter_sizes: list[int] = []
        self.parameters, self.parameter_bytes = self._entry_parameters()

    def kernel(self) -> Kernel:
        """The whole entry."""
        self._read(self.body, "", None)
        threads = re.search(r"\.reqntid\s+([\d,\s]+)", self.body.header)
        sizes = [int(word) for word in threads.group(1).split(",")] if threads else []
        return Kernel(
            name=self.name,
            parameters=self.parameters,
            parameter_sizes=self.parameter_sizes,
            parameter_bytes=self.parameter_bytes,
            registers=self.registers,
            instructions=self.instructions,
            labels=self.labels,
            variables=self.variables,
            threads=tuple([*sizes, 1, 1][:3]) if sizes else None,
        )

    def _entry_parameters(self) -> tuple[dict[str, int], int]:
        offsets, end = {}, 0
        for align, kind, name, count in _parameters(self.body.header):
            size = BYTES[kind] * (count or 1)
            align = align if count is not None and align else BYTES[kind]
            end = -(-end // align) * align
            offsets[name] = end
            self.parameter_sizes.append(size)
            end += size
        return offsets, end

    def _read(self, body: _Body, prefix: str, end: str | None) -> None:
        """Append a body's instructions; labels get ``prefix``, ``ret`` becomes a branch to ``end``."""
        depth = len(self.scopes)
        for line, text, loc in body.statements:
            if text == "{":
                self._open()
            elif text == "}":
                self._close()
            elif text.endswith(":"):
                self.labels[prefix + text[:-1]] = len(self.instructions)
            elif text.startswith(".reg"):
                self._declare(text)
            elif _is_variable(text):
                variable = _variable(text)
                self.variables[variable.name] = variable
            elif text.startswith(".param"):
                pass  # made at its first st.param
            elif not text.startswith("."):
                self._instruction(text, line, loc, prefix, end)
            elif not text.startswith((".pragma", ".maxntid", ".reqntid", ".minnctapersm")):
                raise Unsupported(f"{self.name}: PTX line {line}: {text}")
        while len(self.scopes) > depth:
            self._close()

    def _open(self) -> None:
        self.scopes.append({})
        self.resolved.append({})

    def _close(self) -> None:
        self.scopes.pop()
        self.resolved.pop()

    def _declare(self, text: str) -> None:
        _, kind, names = text.split(None, 2)
        for name in names.split(","):
            name = name.strip()
            self.scopes[-1][name[: name.index("<") + 1] if "<" in name else name] = kind.lstrip(".")

    def _register(self, name: str) -> Register | None:
        for scope, resolved in zip(reversed(self.scopes), reversed(self.resolved), strict=True):
            if name in resolved:
                return resolved[name]
            kind = scope.get(name) or scope.get(re.sub(r"\d+$", "", name) + "<")
            if kind:
                resolved[name] = self._new(name, kind)
                return resolved[name]
        return None

    def _new(self, name: str, kind: str) -> Register:
        register = Register(len(self.registers), name, kind)
        self.registers.append(register)
        return register

    def _instruction(self, text: str, line: int, loc: tuple[int, int], prefix: str, end: str | None) -> None:
        match = re.match(r"(?:@(!?)\s*([%\w$]+)\s+)?([a-z]\w*)((?:\.[\w:]+)*)\s*(.*)$", text, re.DOTALL)
        if not match:
            raise EmulatorError(f"{self.name}: PTX line {line}: this is no instruction: {text}")
        negated, guard_name, name, modifiers, words = match.groups()
        source = f"{PurePosixPath(self.files.get(loc[0], '')).name}:{loc[1]}" if loc[0] in self.files else ""
        site = Site(self.name, line, " ".join(text.split()), source)
        guard: Register | Negated | None = None
        if guard_name:
            guard = self._register(guard_name)
            if guard is None:
                raise EmulatorError(f"{site}: {guard_name} is not declared")
            guard = Negated(guard) if negated else guard
        mods = tuple(modifiers.split(".")[1:])
        if name == "call":
            self._call(words, site, guard)
            return
        if name == "ret" and end is not None:
            self.instructions.append(Instruction("bra", (), (), guard, site, end))
            return
        if name == "bra":
            self.instructions.append(Instruction("bra", mods, (), guard, site, prefix + words.strip()))
            return
        if name in ("ld", "st") and mods[0] == "param" and self._pass(name, mods, words, site, guard):
            return
        operands = tuple(self._operand(word, site) for word in _split(words))
        self.instructions.append(Instruction(name, mods, operands, guard, site))

    def _pass(self, name: str, mods: tuple[str, ...], words: str, site: Site, guard: Register | Negated | None) -> bool:
        """A parameter of a call becomes moves to and from registers; False for one of the entry's own."""
        memory, value = _split(words) if name == "st" else reversed(_split(words))
        symbol, _, offset = memory.strip("[] ").partition("+")
        symbol = self.aliases[-1].get(symbol.strip(), symbol.strip())
        if symbol in self.parameters or symbol.startswith("%"):  # by name, or by an address of one
            return False
        kind = mods[-1]
        values = self._operand(value, site)
        for i, item in enumerate(values.items if isinstance(values, Vector) else (values,)):
            key = symbol, int(offset or 0) + i * BYTES[kind]
            if key not in self.passed:
                self.passed[key] = self._new(f"{symbol}+{key[1]}", kind)
            pair = (self.passed[key], item) if name == "st" else (item, self.passed[key])
            self.instructions.append(Instruction("mov", (kind,), pair, guard, site))
        return True

    def _call(self, words: str, site: Site, guard: Register | Negated | None) -> None:
        """Put the function's instructions here."""
        parts = [part.strip() for part in _split(words)]
        results = _split(parts.pop(0)[1:-1]) if parts[0].startswith("(") else []
        function = parts.pop(0)
        arguments = _split(parts.pop(0)[1:-1]) if parts and parts[0].startswith("(") else []
        if function not in self.functions or guard is not None or len(self.aliases) > 8:
            raise Unsupported(f"{site}: only functions of the same module can be called, without a guard or recursion")
        body = self.functions[function]
        header = body.header
        result_names = [
            name for *_, name, _ in _parameters(re.search(r"\.func\s*(\(.*?\))?", header, re.DOTALL).group())
        ]
        named = _parameters(header[header.index(function) :])
        aliases = dict(zip(result_names, results, strict=True))
        aliases |= dict(zip([name for *_, name, _ in named], arguments, strict=True))
        self.inlined += 1
        prefix = f"{function}#{self.inlined}:"
        self.aliases.append({name: self.aliases[-1].get(word.strip(), word.strip()) for name, word in aliases.items()})
        self._open()
        self._read(body, prefix, prefix + "end")
        self._close()
        self.aliases.pop()
        self.labels[prefix + "end"] = len(self.instructions)

    def _operand(self, word: str, site: Site) -> Operand:
        word = word.strip()
        if word.startswith("{"):
            return Vector(tuple(self._operand(item, site) for item in _split(word[1:-1])))
        if word.startswith("["):
            inner = word[1:-1].strip()
            match = re.fullmatch(r"([%\w$.]+?)\s*(?:([+-])\s*(-?\w+))?", inner)
            if not match:
                raise Unsupported(f"{site}: the address {word}")
            base, sign, offset = match.groups()
            number = _number(offset).value if offset else 0
            return Address(self._operand(base, site), -number if sign == "-" else number)
        if word == "_":
            return Sink()
        if "|" in word:
            first, second = word.split("|")
            return Pair(self._operand(first, site), self._operand(second, site))
        if word.startswith("!"):
            return Negated(self._operand(word[1:], site))
        if register := self._register(word):
            return register
        if word.startswith("%"):
            return Special(word)
        if re.fullmatch(r"-?(\d\w*|\d+\.\d*(e[-+]?\d+)?)", word):
            return _number(word)
        return Symbol(self.aliases[-1].get(word, word))


def _split(words: str) -> list[str]:
    """At commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(words):
        if character in "[{(":
            depth += 1
        elif character in ")}]":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(words[start:i].strip())
            start = i + 1
    last = words[start:].strip()
    return [*parts, last] if last else parts


def _parameters(header: str) -> list[tuple[int, str, str, int | None]]:
    """(align, type, name, elements or None) of each .param in a header."""
    pattern = (
        r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
        r"(?:\.ptr\s*(?:\.\w+\s*)*?(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?"
    )
    return [
        (int(align or 0), kind, name, int(count) if count else None)
        for align, kind, name, count in re.findall(pattern, header)
    ]
