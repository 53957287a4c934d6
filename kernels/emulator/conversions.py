"""PTX instructions as Python: moves, addresses of spaces, conversions between types."""

from __future__ import annotations

from s2vfast.kernels.emulator.faults import Unsupported
from s2vfast.kernels.emulator.generate import FLOATS, NARROW, Writer, token
from s2vfast.kernels.emulator.ptx import BYTES, Instruction, Register, Sink, Vector
from s2vfast.kernels.emulator.table import instruction, known


@instruction("mov")
def _mov(w: Writer, ins: Instruction) -> None:
    target, source = ins.operands
    kind = ins.modifiers[-1]
    known(ins.modifiers[:-1])
    if isinstance(target, Vector):
        size = BYTES[kind] // len(target.items)
        source_value = w.use(source, f"u{BYTES[kind]}")
        for i, item in enumerate(target.items):
            if not isinstance(item, Sink):
                w.define(item, f"u{size}", f"({source_value} >> u{BYTES[kind]}({8 * size * i})).astype(u{size})")
    elif isinstance(source, Vector):
        total_size, size = BYTES[kind], BYTES[kind] // len(source.items)
        pieces = [w.use(item, f"u{size}") for item in source.items]
        shifted = [
            f"({piece}.astype(u{total_size}) << u{total_size}({8 * size * i}))" for i, piece in enumerate(pieces)
        ]
        w.define(target, f"u{total_size}", " | ".join(shifted))
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
    if "satfinite" in mods or (to in ("f16x2", "bf16x2") and len(sources) != 2):
        raise Unsupported(ins.opcode)
    if to == "tf32":
        w.define(target, "u4", f"narrow_tf32({w.use(sources[0], 'f4')}, {'rna' in mods})")
        return
    values = []
    for source in sources:
        value = w.use(source, token(of))
        if of in NARROW:
            value = w.variable(f"widen_{NARROW[of]}({value})")
        if "ftz" in mods and of == "f32":
            value = w.variable(f"flush({value})")
        values.append(value)
    if to in ("bf16x2", "f16x2"):
        high, low = (_to_narrow(to[:-2], mods, value) for value in values)
        w.define(target, "u4", f"({high}.astype(u4) << u4(16)) | {low}")
        return
    value = values[0]
    from_float, to_float = of in FLOATS, to in FLOATS
    rounding = next((mod for mod in mods if mod in _ROUNDINGS), None)
    dtype = token(to)
    if from_float and not to_float:
        if rounding is None:
            raise Unsupported(f"{ins.opcode}: no rounding")
        w.define(target, dtype, f"to_integer({value}, {dtype}, {rounding!r})")
    elif from_float:
        expression = f"to_integral({value}, {rounding!r})" if rounding else value
        if to in NARROW:
            if of in NARROW and of == to:
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
        if to in NARROW:
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
