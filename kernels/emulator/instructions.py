"""PTX instructions as Python: arithmetic, comparisons, moves, conversions.

An instruction is a function of the writer and the instruction. What it does not know it refuses by `Unsupported`.
"""

from __future__ import annotations

from s2vfast.kernels.emulator.arithmetic import DIVISION
from s2vfast.kernels.emulator.faults import Unsupported
from s2vfast.kernels.emulator.generate import FLOATS, NARROW, Writer, token
from s2vfast.kernels.emulator.ptx import Immediate, Instruction, Pair
from s2vfast.kernels.emulator.table import TABLE, Write, instruction, known


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
    if kind in NARROW:
        name = NARROW[kind]
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
        if ins.modifiers[-1] in FLOATS:
            _float(w, ins, form)
        else:
            _integer(w, ins, form)

    return write


TABLE["add"], TABLE["sub"] = _sum("+"), _sum("-")


@instruction("mul", "mad", "fma")
def _product(w: Writer, ins: Instruction) -> None:
    *mods, kind = ins.modifiers
    third = ins.name != "mul"
    if kind in FLOATS:
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
    if kind not in FLOATS:
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
    if kind in NARROW or ("approx" in mods and kind == "f32"):
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
    if kind in NARROW or kind in ("f32", "f64"):
        dtype = token(kind)
        bits = f"u{dtype[1]}"
        sign = {"u2": 0x8000, "u4": 0x80008000 if kind.endswith("x2") else 1 << 31, "u8": 1 << 63}[bits]
        x = w.use(ins.operands[1], dtype if kind == "f32" else bits)
        known(tuple(mods), "ftz")
        if kind == "f32":
            x = f"flush({x})" if "ftz" in mods else x
            w.define(ins.operands[0], "f4", f"np.abs({x})" if ins.name == "abs" else f"-{x}")
            return
        value = (
            f"{x} & {bits}({sign ^ ((1 << 8 * int(bits[1])) - 1)})" if ins.name == "abs" else f"{x} ^ {bits}({sign})"
        )
        w.define(ins.operands[0], bits, value)
        return
    _integer(w, ins, "np.abs({0})" if ins.name == "abs" else "-{0}")


@instruction("min", "max")
def _extreme(w: Writer, ins: Instruction) -> None:
    *mods, kind = ins.modifiers
    full = "minimum" if ins.name == "min" else "maximum"
    if kind not in FLOATS:
        form = f"np.{full}({{0}}, {{1}})"
        if mods == ["relu"] and kind[0] == "s":
            form, mods = f"np.maximum({form}, 0)", []
        _integer(w, Instruction(ins.name, (*mods, kind), ins.operands, ins.guard, ins.site), form)
        return
    nan, cross = "NaN" in mods, "xorsign" in mods
    mods = [mod for mod in mods if mod not in (("NaN", "xorsign", "abs") if cross else ("NaN",))]
    plain = Instruction(ins.name, (*mods, kind), ins.operands, ins.guard, ins.site)
    form = f"{full}({{0}}, {{1}}, {nan})"
    if cross:
        form = f"cross_sign({full}(np.abs({{0}}), np.abs({{1}}), {nan}), {{0}}, {{1}})"
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
        if bits > 0 and at + bits <= width:
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


def _comparison(compare: str, x: str, y: str, kind: str) -> str:
    """What is true where ``x`` and ``y``, of that kind, compare so."""
    if compare in ("num", "nan"):
        test = f"np.isnan({x}) | np.isnan({y})"
        return f"~({test})" if compare == "num" else test
    if compare[:-1] in _COMPARE and compare.endswith("u") and kind in FLOATS:
        opposite = {"eq": "!=", "ne": "==", "lt": ">=", "le": ">", "gt": "<=", "ge": "<"}[compare[:-1]]
        if compare == "neu":
            return f"{x} != {y}"
        return f"({x} == {y}) | np.isnan({x}) | np.isnan({y})" if compare == "equ" else f"~({x} {opposite} {y})"
    if compare == "ne" and kind in FLOATS:
        return f"({x} < {y}) | ({x} > {y})"
    if compare in _COMPARE:
        return f"{x} {_COMPARE[compare]} {y}"
    raise Unsupported(f"the comparison .{compare}")


@instruction("setp", "set")
def _setp(w: Writer, ins: Instruction) -> None:
    compare, *mods, kind = ins.modifiers
    combine = next((mod for mod in mods if mod in ("and", "or", "xor")), None)
    result = "pred" if ins.name == "setp" else mods.pop()
    known(tuple(mods), "and", "or", "xor", "ftz")
    target, a, b, *c = ins.operands
    dtype = token(kind)
    x, y = w.use(a, dtype), w.use(b, dtype)
    if kind.endswith("x2"):
        if ins.name == "set" or combine or c or not isinstance(target, Pair):
            raise Unsupported("a comparison of pairs but for two predicates")
        for predicate, shift in ((target.first, 0), (target.second, 16)):
            halves = (w.variable(f"widen_{NARROW[kind]}(({value} >> {shift} & 0xFFFF).astype(u2))") for value in (x, y))
            w.define(predicate, "b1", _comparison(compare, *halves, kind))
        return
    if kind in NARROW:
        x, y = (w.variable(f"widen_{NARROW[kind]}({value})") for value in (x, y))
    if "ftz" in mods:
        x, y = (w.variable(f"flush({value})") for value in (x, y))
    test = _comparison(compare, x, y, kind)
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
