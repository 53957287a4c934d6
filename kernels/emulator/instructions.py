"""Each PTX instruction as Python: arithmetic, moves, memory. Tensor cores and warps: `tensor_cores`, `warps`.

An instruction is a function of the writer and the instruction; `TABLE` has them by name. What it does not know it
refuses by `Unsupported`.
"""

from __future__ import annotations

from collections.abc import Callable

from s2vfast.kernels.emulator.arithmetic import APPROXIMATE, DIVISION
from s2vfast.kernels.emulator.faults import Unsupported
from s2vfast.kernels.emulator.generate import Writer, token
from s2vfast.kernels.emulator.ptx import BYTES, Address, Immediate, Instruction, Pair, Register, Sink, Symbol, Vector

Write = Callable[[Writer, Instruction], None]
TABLE: dict[str, Write] = {}
"""How each instruction is written."""

_FLOATS = ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")
_NARROW = {"f16": "f16", "bf16": "bf16", "f16x2": "f16", "bf16x2": "bf16"}


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


def _float(w: Writer, ins: Instruction, form: str, *, fused: str = "") -> None:
    """A float instruction of the form given, a Python expression of {0}, {1} …; ``fused`` names one that rounds once.

    Args:
        w: the writer.
        ins: the instruction.
        form: for float32 and float64.
        fused: for numbers narrower than float32: what gives a float64 rounded to odd.
    """
    *mods, kind = ins.modifiers
    known(tuple(mods), "rn", "ftz", "sat", "approx", "full")
    target, *sources = ins.operands
    if kind in _NARROW:
        name = _NARROW[kind]
        letters = [chr(ord("a") + i) for i in range(len(sources))]
        widened = [f"widen_{name}({letter})" for letter in letters]
        inner = f"narrow_{name}({(fused or form).format(*widened)})"
        values = [w.use(source, token(kind)) for source in sources]
        if kind.endswith("x2"):
            w.define(target, "u4", f"on_halves(lambda {', '.join(letters)}: {inner}, {', '.join(values)})")
        else:
            w.define(target, "u2", f"(lambda {', '.join(letters)}: {inner})({', '.join(values)})")
        return
    dtype = token(kind)
    values = [w.use(source, dtype) for source in sources]
    if "ftz" in mods:
        values = [w.variable(f"flush({value})") for value in values]
    expression = form.format(*values)
    if "ftz" in mods:
        expression = f"flush({expression})"
    if "sat" in mods:
        expression = f"saturate({expression})"
    w.define(target, dtype, expression)


def _integer(w: Writer, ins: Instruction, form: str) -> None:
    *mods, kind = ins.modifiers
    known(tuple(mods))
    dtype = token(kind)
    target, *sources = ins.operands
    w.define(target, dtype, form.format(*(w.use(source, dtype) for source in sources)))


def _sum(symbol: str) -> Write:
    def write(w: Writer, ins: Instruction) -> None:
        form = f"{{0}} {symbol} {{1}}"
        if ins.modifiers[-1] in _FLOATS:
            _float(w, ins, form)
        else:
            _integer(w, ins, form)

    return write


TABLE["add"], TABLE["sub"] = _sum("+"), _sum("-")


@instruction("mul", "mad", "fma")
def _product(w: Writer, ins: Instruction) -> None:
    *mods, kind = ins.modifiers
    third = ins.name != "mul"
    if kind in _FLOATS:
        if not third:
            _float(w, ins, "{0} * {1}")
        else:
            _float(w, ins, f"fma{32 if kind == 'f32' else 64}({{0}}, {{1}}, {{2}})", fused="fma_narrow({0}, {1}, {2})")
        return
    known(tuple(mods), "lo", "hi", "wide")
    dtype = token(kind)
    target, a, b, *c = ins.operands
    x, y = w.use(a, dtype), w.use(b, dtype)
    if "wide" in mods:
        dtype = f"{dtype[0]}{2 * int(dtype[1])}"
        expression = f"np.multiply({x}, {y}, dtype={dtype})"
    else:
        expression = f"high_product({x}, {y})" if "hi" in mods else f"{x} * {y}"
    if third:
        expression += f" + {w.use(c[0], dtype)}"
    w.define(target, dtype, expression)


@instruction("div")
def _div(w: Writer, ins: Instruction) -> None:
    *mods, kind = ins.modifiers
    if kind not in _FLOATS:
        _integer(w, ins, "quotient({0}, {1})")
    elif kind == "f32" and w.program.worst and ("full" in mods or "approx" in mods):
        _float(w, ins, f"perturbed({{0}}.astype(f8) / {{1}}, {{0}}, {DIVISION}, 0.0)")
    else:
        _float(w, ins, "{0} / {1}")


@instruction("rem")
def _rem(w: Writer, ins: Instruction) -> None:
    _integer(w, ins, "remainder({0}, {1})")


@instruction("rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh")
def _function(w: Writer, ins: Instruction) -> None:
    *mods, kind = ins.modifiers
    name = ins.name
    if kind in _NARROW:
        _float(w, ins, f"approximate({name!r}, {{0}}, {w.program.worst})")
    elif "approx" in mods and kind == "f32":
        _float(w, ins, f"approximate({name!r}, {{0}}, {w.program.worst})")
    elif kind == "f64" and "approx" in mods and name in ("rcp", "rsqrt"):
        # The upper halves of the result alone are defined.
        value = "1.0 / {0}" if name == "rcp" else "1.0 / np.sqrt({0})"
        form = f"(({value}).view(u8) & u8(0xFFFFFFFF00000000)).view(f8)"
        _float(w, ins, form)
    elif name in ("rcp", "sqrt"):
        _float(w, ins, "{0}.dtype.type(1) / {0}" if name == "rcp" else "np.sqrt({0})")
    else:
        raise Unsupported(f"the emulator does not know {ins.opcode}")


@instruction("abs", "neg")
def _sign(w: Writer, ins: Instruction) -> None:
    *mods, kind = ins.modifiers
    if kind in _NARROW or kind in ("f32", "f64"):
        dtype = token(kind)
        bits = f"u{dtype[1]}"
        sign = {"u2": 0x8000, "u4": 0x80008000 if kind.endswith("x2") else 1 << 31, "u8": 1 << 63}[bits]
        x = w.use(ins.operands[1], dtype if kind == "f32" else bits)
        known(tuple(mods), "ftz")
        if kind == "f32":
            x = f"flush({x})" if "ftz" in mods else x
            w.define(ins.operands[0], "f4", f"np.abs({x})" if ins.name == "abs" else f"-{x}")
            return
        value = f"{x} & {bits}({sign ^ ((1 << 8 * int(bits[1])) - 1)})" if ins.name == "abs" else f"{x} ^ {bits}({sign})"
        w.define(ins.operands[0], bits, value)
        return
    _integer(w, ins, "np.abs({0})" if ins.name == "abs" else "-{0}")


@instruction("min", "max")
def _extreme(w: Writer, ins: Instruction) -> None:
    *mods, kind = ins.modifiers
    full = "minimum" if ins.name == "min" else "maximum"
    if kind not in _FLOATS:
        _integer(w, ins, f"np.{full}({{0}}, {{1}})")
        return
    nan = "NaN" in mods
    plain = Instruction(ins.name, (*(mod for mod in mods if mod != "NaN"), kind), ins.operands, ins.guard, ins.site)
    form = f"{full}({{0}}, {{1}}, {nan})"
    if len(ins.operands) == 4:
        form = f"{full}({form}, {{2}}, {nan})"
    _float(w, plain, form)


@instruction("copysign")
def _copysign(w: Writer, ins: Instruction) -> None:
    _float(w, ins, "np.copysign({1}, {0})")


def _bitwise(symbol: str) -> Write:
    def write(w: Writer, ins: Instruction) -> None:
        _integer(w, ins, f"{{0}} {symbol} {{1}}")

    return write


TABLE.update({name: _bitwise(symbol) for name, symbol in (("and", "&"), ("or", "|"), ("xor", "^"))})


@instruction("not", "cnot", "popc", "clz", "brev")
def _bits(w: Writer, ins: Instruction) -> None:
    target, source = ins.operands
    dtype = token(ins.modifiers[-1])
    known(ins.modifiers[:-1])
    x = w.use(source, dtype)
    form = {
        "not": f"~{x}",
        "cnot": f"({x} == 0).astype({dtype})",
        "popc": f"count_ones({x})",
        "clz": f"leading_zeros({x})",
        "brev": f"reversed_bits({x})",
    }[ins.name]
    w.define(target, "u4" if ins.name in ("popc", "clz") else dtype, form)


@instruction("lop3")
def _lop3(w: Writer, ins: Instruction) -> None:
    known(ins.modifiers, "b32")
    target, *sources, table = ins.operands
    a, b, c = (w.use(source, "u4") for source in sources)
    terms = []
    for i in range(8):
        if table.value >> i & 1:
            signs = (("" if i >> bit & 1 else "~") for bit in (2, 1, 0))
            terms.append("&".join(f"{sign}{x}" for sign, x in zip(signs, (a, b, c), strict=True)))
    w.define(target, "u4", "|".join(f"({term})" for term in terms) or f"{a} & u4(0)")


@instruction("shl", "shr")
def _shift(w: Writer, ins: Instruction) -> None:
    known(ins.modifiers[:-1])
    target, source, count = ins.operands
    dtype = token(ins.modifiers[-1])
    x = w.use(source, dtype)
    if isinstance(count, Immediate) and 0 <= count.value < 8 * int(dtype[1]):
        symbol = "<<" if ins.name == "shl" else ">>"
        w.define(target, dtype, f"{x} {symbol} {w.constant(count.value, dtype)}")
    else:
        name = "shift_left" if ins.name == "shl" else "shift_right"
        w.define(target, dtype, f"{name}({x}, {w.use(count, 'u4')})")


@instruction("shf")
def _funnel(w: Writer, ins: Instruction) -> None:
    known(ins.modifiers, "l", "r", "clamp", "wrap", "b32")
    target, *sources = ins.operands
    a, b, c = (w.use(source, "u4") for source in sources)
    w.define(target, "u4", f"funnel({a}, {b}, {c}, {'r' in ins.modifiers}, {'clamp' in ins.modifiers})")


@instruction("bfe")
def _bfe(w: Writer, ins: Instruction) -> None:
    known(ins.modifiers[:-1])
    dtype = token(ins.modifiers[-1])
    target, source, position, length = ins.operands
    x = w.use(source, dtype)
    if isinstance(position, Immediate) and isinstance(length, Immediate):
        width, at, bits = 8 * int(dtype[1]), position.value, length.value
        if 0 < bits and at + bits <= width:
            shifted = f"({x} << {dtype}({width - at - bits})) >> {dtype}({width - bits})"
            w.define(target, dtype, shifted)
            return
    w.define(target, dtype, f"extract({x}, {w.use(position, 'u4')}, {w.use(length, 'u4')})")


@instruction("bfi")
def _bfi(w: Writer, ins: Instruction) -> None:
    dtype = token(ins.modifiers[-1])
    known(ins.modifiers[:-1])
    target, a, b, position, length = ins.operands
    values = ", ".join([w.use(a, dtype), w.use(b, dtype), w.use(position, "u4"), w.use(length, "u4")])
    w.define(target, dtype, f"insert({values})")


@instruction("prmt")
def _prmt(w: Writer, ins: Instruction) -> None:
    known(ins.modifiers, "b32")
    target, *sources = ins.operands
    w.define(target, "u4", f"permute({', '.join(w.use(source, 'u4') for source in sources)})")


_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_COMPARE |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


@instruction("setp", "set")
def _setp(w: Writer, ins: Instruction) -> None:
    compare, *mods, kind = ins.modifiers
    combine = next((mod for mod in mods if mod in ("and", "or", "xor")), None)
    result = "pred" if ins.name == "setp" else mods.pop()
    known(tuple(mods), "and", "or", "xor", "ftz")
    target, a, b, *c = ins.operands
    dtype = token(kind)
    x, y = w.use(a, dtype), w.use(b, dtype)
    if kind in _NARROW:
        x, y = (w.variable(f"widen_{_NARROW[kind]}({value})") for value in (x, y))
    if "ftz" in mods:
        x, y = (w.variable(f"flush({value})") for value in (x, y))
    if compare in ("num", "nan"):
        test = f"np.isnan({x}) | np.isnan({y})"
        test = f"~({test})" if compare == "num" else test
    elif compare[:-1] in _COMPARE and compare.endswith("u") and kind in _FLOATS:
        opposite = {"eq": "!=", "ne": "==", "lt": ">=", "le": ">", "gt": "<=", "ge": "<"}[compare[:-1]]
        test = f"~({x} {opposite} {y})" if compare != "equ" and compare != "neu" else ""
        if compare == "neu":
            test = f"{x} != {y}"
        elif compare == "equ":
            test = f"({x} == {y}) | np.isnan({x}) | np.isnan({y})"
    elif compare == "ne" and kind in _FLOATS:
        test = f"({x} < {y}) | ({x} > {y})"
    elif compare in _COMPARE:
        test = f"{x} {_COMPARE[compare]} {y}"
    else:
        raise Unsupported(f"the comparison .{compare}")
    if ins.name == "set":
        if combine or c:
            raise Unsupported("set with a predicate")
        one = f"f4({test})" if result == "f32" else f"-({test}).astype(i4)"
        w.define(target, "f4" if result == "f32" else "i4", one)
        return
    positive = w.variable(test)
    negative = f"~{positive}"
    if combine:
        symbol, third = {"and": "&", "or": "|", "xor": "^"}[combine], w.condition(c[0])
        positive, negative = f"{positive} {symbol} {third}", f"{negative} {symbol} {third}"
    if isinstance(target, Pair):
        negative = w.variable(negative)
        w.define(target.first, "b1", positive)
        w.define(target.second, "b1", negative)
    else:
        w.define(target, "b1", positive)


@instruction("selp")
def _selp(w: Writer, ins: Instruction) -> None:
    target, a, b, predicate = ins.operands
    dtype = token(ins.modifiers[-1])
    known(ins.modifiers[:-1])
    w.define(target, dtype, f"where({w.condition(predicate)}, {w.use(a, dtype)}, {w.use(b, dtype)})")


@instruction("slct")
def _slct(w: Writer, ins: Instruction) -> None:
    known(ins.modifiers[:-2])
    dtype, by = token(ins.modifiers[-2]), token(ins.modifiers[-1])
    target, a, b, c = ins.operands
    w.define(target, dtype, f"where({w.use(c, by)} >= 0, {w.use(a, dtype)}, {w.use(b, dtype)})")


@instruction("testp")
def _testp(w: Writer, ins: Instruction) -> None:
    test, kind = ins.modifiers
    x = w.use(ins.operands[1], token(kind))
    form = {"finite": "np.isfinite({0})", "infinite": "np.isinf({0})", "number": "~np.isnan({0})"}
    form |= {"notanumber": "np.isnan({0})"}
    if test not in form:
        raise Unsupported(f"the test .{test}")
    w.define(ins.operands[0], "b1", form[test].format(x))


@instruction("mov")
def _mov(w: Writer, ins: Instruction) -> None:
    target, source = ins.operands
    kind = ins.modifiers[-1]
    known(ins.modifiers[:-1])
    if isinstance(target, Vector):
        size = BYTES[kind] // len(target.items)
        whole = w.use(source, f"u{BYTES[kind]}")
        for i, item in enumerate(target.items):
            if not isinstance(item, Sink):
                w.define(item, f"u{size}", f"({whole} >> u{BYTES[kind]}({8 * size * i})).astype(u{size})")
    elif isinstance(source, Vector):
        whole, size = BYTES[kind], BYTES[kind] // len(source.items)
        pieces = [w.use(item, f"u{size}") for item in source.items]
        shifted = [f"({piece}.astype(u{whole}) << u{whole}({8 * size * i}))" for i, piece in enumerate(pieces)]
        w.define(target, f"u{whole}", " | ".join(shifted))
    elif isinstance(target, Register) and isinstance(source, Register) and w.guard is None:
        if token(target.type)[1] != token(source.type)[1] or (target.type == "pred") != (source.type == "pred"):
            raise Unsupported("a move between registers of different widths")
        w.alias(target, source, w.program.kinds[source.index])
    else:
        w.define(target, token(kind), w.use(source, token(kind)))


@instruction("cvta")
def _cvta(w: Writer, ins: Instruction) -> None:
    space = next((mod for mod in ins.modifiers if mod in ("global", "shared", "local", "const", "param")), None)
    if space in (None, "param"):
        raise Unsupported(ins.opcode)
    target, source = ins.operands
    sign = "-" if "to" in ins.modifiers else "+"
    kind = token(ins.modifiers[-1])
    w.define(target, kind, f"{w.use(source, kind)} {sign} {kind}(m.window({space!r}))")


_ROUNDINGS = ("rni", "rzi", "rmi", "rpi")


@instruction("cvt")
def _cvt(w: Writer, ins: Instruction) -> None:
    *mods, to, of = ins.modifiers
    known(tuple(mods), "rn", "rz", "rna", "ftz", "sat", "satfinite", "relu", *_ROUNDINGS)
    target, *sources = ins.operands
    if "satfinite" in mods or to in ("f16x2", "bf16x2") and len(sources) != 2:
        raise Unsupported(ins.opcode)
    if to == "tf32":
        w.define(target, "u4", f"narrow_tf32({w.use(sources[0], 'f4')}, {'rna' in mods})")
        return
    values = []
    for source in sources:
        value = w.use(source, token(of))
        if of in _NARROW:
            value = w.variable(f"widen_{_NARROW[of]}({value})")
        if "ftz" in mods and of == "f32":
            value = w.variable(f"flush({value})")
        values.append(value)
    if to in ("bf16x2", "f16x2"):
        high, low = (_to_narrow(to[:-2], mods, value) for value in values)
        w.define(target, "u4", f"({high}.astype(u4) << u4(16)) | {low}")
        return
    value = values[0]
    from_float, to_float = of in _FLOATS, to in _FLOATS
    rounding = next((mod for mod in mods if mod in _ROUNDINGS), None)
    dtype = token(to)
    if from_float and not to_float:
        if rounding is None:
            raise Unsupported(f"{ins.opcode}: no rounding")
        w.define(target, dtype, f"to_integer({value}, {dtype}, {rounding!r})")
    elif from_float:
        expression = f"to_integral({value}, {rounding!r})" if rounding else value
        if to in _NARROW:
            if of in _NARROW and of == to:
                raise Unsupported(ins.opcode)
            expression, dtype = _to_narrow(to, mods, expression), "u2"
        elif (to, of) == ("f32", "f64"):
            if "rz" in mods:
                raise Unsupported(ins.opcode)
            expression = f"({expression}).astype(f4)"
        elif to != of:
            expression = f"({expression}).astype({dtype})"
        if "sat" in mods:
            expression = f"saturate({expression})"
        if "ftz" in mods and to == "f32":
            expression = f"flush({expression})"
        w.define(target, dtype, expression)
    elif to_float:
        if to in _NARROW:
            narrow = f"narrow_{to}(int_to_float({value}, f4))"
            if int(token(of)[1]) > 2:
                raise Unsupported(ins.opcode)
            w.define(target, "u2", narrow)
        else:
            if "rz" in mods:
                raise Unsupported(ins.opcode)
            w.define(target, dtype, f"{value}.astype({dtype})")
    else:
        if "sat" in mods:
            raise Unsupported(ins.opcode)
        # The source's type extends, the target's cuts.
        w.define(target, dtype, f"{value}.astype({dtype})")


def _to_narrow(kind: str, mods: list[str], value: str) -> str:
    if "relu" in mods:
        value = f"np.maximum({value}, 0)"
    if "rz" in mods:
        if kind != "bf16":
            raise Unsupported("cvt.rz to half precision")
        return f"truncate_bf16({value})"
    return f"narrow_{kind}({value})"


# --- memory

_CACHE = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "volatile", "relaxed", "acquire", "release", "weak", "gpu")
_CACHE += ("cta", "sys", "L1::no_allocate", "L1::evict_last", "L1::evict_first", "L1::evict_normal", "L1::evict_unchanged")
_CACHE += ("L2::64B", "L2::128B", "L2::256B", "L2::cache_hint", "L2::evict_first", "L2::evict_last", "unified")
_SPACES = ("global", "shared", "shared::cta", "local", "const", "param")


def _memory(ins: Instruction) -> tuple[str, int, str]:
    """Space, elements and type of a load or store."""
    space, count = "generic", 1
    *mods, kind = ins.modifiers
    for modifier in mods:
        if modifier in _SPACES:
            space = "shared" if modifier.startswith("shared") else modifier
        elif modifier in ("v2", "v4", "v8"):
            count = int(modifier[1])
        elif modifier not in _CACHE:
            raise Unsupported(f"the emulator does not know the modifier .{modifier}")
    if count * BYTES[kind] > 16:
        raise Unsupported(f"{ins.opcode}: more than 16 bytes")
    return ("global" if space == "const" else space), count, kind


def address(w: Writer, operand: Address, space: str) -> str:
    """An address as an array of unsigned numbers."""
    kind = "u4" if space == "shared" and isinstance(operand.base, Register) and operand.base.type in ("b32", "u32", "s32") else "u8"
    base = w.use(operand.base, kind)
    return w.variable(f"{base} + {w.constant(operand.offset, kind)}") if operand.offset else base


@instruction("ld", "ldu")
def _ld(w: Writer, ins: Instruction) -> None:
    space, count, kind = _memory(ins)
    target, source = ins.operands
    items = target.items if isinstance(target, Vector) else (target,)
    size = BYTES[kind]
    if space == "param":
        if not isinstance(source.base, Symbol):
            raise Unsupported("a parameter at a computed address")
        for i, item in enumerate(items):
            dtype = token(kind)
            at = w.program.kernel.parameters[source.base.name] + source.offset + i * size
            w.define(item, dtype, f"m.parameter({at}, {dtype})")
        return
    olds = [w.old(item, f"u{size}") for item in items]
    where = address(w, source, space)
    words = w.variable(f"m.load(g, {space!r}, {where}, {size}, {count}, {w.guard}, ({', '.join(map(str, olds))},), {w.site})")
    for i, item in enumerate(items):
        dtype = token(kind)
        w.define(item, dtype, f"{words}[{i}].view({dtype})", masked=True)


@instruction("st")
def _st(w: Writer, ins: Instruction) -> None:
    space, _, kind = _memory(ins)
    target, source = ins.operands
    items = source.items if isinstance(source, Vector) else (source,)
    values = [w.use(item, f"u{BYTES[kind]}") for item in items]
    where = address(w, target, space)
    w.emit(f"m.store(g, {space!r}, {where}, ({', '.join(values)},), {w.guard}, {w.site})")


@instruction("atom", "red")
def _atom(w: Writer, ins: Instruction) -> None:
    *mods, kind = ins.modifiers
    operation = next((m for m in mods if m in ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")), None)
    known(tuple(m for m in mods if m != operation), *_SPACES, *_CACHE, "noftz", "acq_rel")
    if operation in (None, "inc", "dec") or kind in _NARROW and operation != "add":
        raise Unsupported(ins.opcode)
    space = next((m for m in mods if m in _SPACES), "generic")
    target, place, *values = ins.operands if ins.name == "atom" else (Sink(), *ins.operands)
    dtype = token(kind)
    used = ", ".join(w.use(value, dtype) for value in values)
    narrow = _NARROW.get(kind, "")
    ordered = "acquire" in mods or "acq_rel" in mods
    old = w.old(target, dtype)
    where = address(w, place, space.split("::")[0])
    call = f"m.atomic(g, {space.split('::')[0]!r}, {where}, {operation!r}, ({used},), {narrow!r}, {ordered}, {w.guard}, {old}, {w.site})"
    if isinstance(target, Sink):
        w.emit(call)
    else:
        w.define(target, dtype, call, masked=True)


@instruction("fence", "membar")
def _fence(w: Writer, ins: Instruction) -> None:
    if ins.modifiers[0] == "proxy":
        if ins.modifiers[1] != "async":
            raise Unsupported(ins.opcode)
        w.emit("m.fence_proxy(g)")
    elif not set(ins.modifiers) & {"cta"}:
        w.emit("m.fence_device()")


@instruction("prefetch", "prefetchu", "nanosleep", "pragma", "setmaxnreg", "griddepcontrol", "discard", "applypriority")
def _nothing(w: Writer, ins: Instruction) -> None:
    """What changes time alone."""


@instruction("trap", "brkpt")
def _trap(w: Writer, ins: Instruction) -> None:
    w.emit(f"m.trap(g, {w.guard}, {w.site})")


@instruction("bar", "barrier")
def _barrier(w: Writer, ins: Instruction) -> None:
    if ins.name == "bar" and ins.modifiers[0] == "warp":
        known(ins.modifiers, "warp", "sync")
        w.emit(f"m.warps.barrier(g, {w.use(ins.operands[0], 'u4')}, {w.guard}, {w.site})")
        return
    raise Unsupported(f"the emulator does not know {ins.opcode}")  # bar.sync is a block of its own


# Instructions of whole warps and of tensor cores enter themselves.
from s2vfast.kernels.emulator import tensor_cores, warps  # noqa: E402, F401

assert set(APPROXIMATE) <= set(TABLE)
