"""PTX instructions as Python: loads, stores, atomic operations, fences, and what changes time alone."""

from __future__ import annotations

from dataclasses import replace

from s2vfast.kernels.emulator.faults import Unsupported
from s2vfast.kernels.emulator.generate import NARROW, Writer, address, token
from s2vfast.kernels.emulator.ptx import BYTES, Instruction, Sink, Symbol, Vector
from s2vfast.kernels.emulator.table import instruction, known

_CACHE = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "volatile", "relaxed", "acquire", "release", "weak", "gpu")
_CACHE += (
    "cta",
    "sys",
    "L1::no_allocate",
    "L1::evict_last",
    "L1::evict_first",
    "L1::evict_normal",
    "L1::evict_unchanged",
)
_CACHE += ("L2::64B", "L2::128B", "L2::256B", "L2::cache_hint", "L2::evict_first", "L2::evict_last", "unified")
STRONG = {"volatile", "relaxed", "acquire", "release"}
"""Modifiers of accesses that are made for other threads to see."""
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


@instruction("ld", "ldu")
def _ld(w: Writer, ins: Instruction) -> None:
    space, count, kind = _memory(ins)
    target, source = ins.operands
    items = target.items if isinstance(target, Vector) else (target,)
    size = BYTES[kind]
    if space == "param":
        for i, item in enumerate(items):
            dtype = token(kind)
            if not isinstance(source.base, Symbol):
                where = address(w, replace(source, offset=source.offset + i * size), space)
                w.define(item, dtype, f"m.parameter_at({where}, {dtype}, {w.site})")
                continue
            at = w.program.kernel.parameters[source.base.name] + source.offset + i * size
            w.define(item, dtype, f"m.parameter({at}, {dtype})")
        return
    _strong(w, ins, space)
    olds = [w.old(item, f"u{size}") for item in items]
    where = address(w, source, space)
    words = w.variable(
        f"m.load(g, {space!r}, {where}, {size}, {count}, {w.guard}, ({', '.join(map(str, olds))},), {w.site})"
    )
    for i, item in enumerate(items):
        dtype = token(kind)
        w.define(item, dtype, f"{words}[{i}].view({dtype})", masked=True)


@instruction("st")
def _st(w: Writer, ins: Instruction) -> None:
    space, _, kind = _memory(ins)
    target, source = ins.operands
    items = source.items if isinstance(source, Vector) else (source,)
    _strong(w, ins, space)
    values = [w.use(item, f"u{BYTES[kind]}") for item in items]
    where = address(w, target, space)
    w.emit(f"m.store(g, {space!r}, {where}, ({', '.join(values)},), {w.guard}, {w.site})")


def _strong(w: Writer, ins: Instruction, space: str) -> None:
    """What is read or written for other blocks to see orders blocks in ways that the emulator does not follow."""
    if space in ("global", "generic") and STRONG & set(ins.modifiers):
        w.emit("m.fence_device()")


@instruction("atom", "red")
def _atom(w: Writer, ins: Instruction) -> None:
    *mods, kind = ins.modifiers
    operation = next(
        (m for m in mods if m in ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")), None
    )
    known(tuple(m for m in mods if m != operation), *_SPACES, *_CACHE, "noftz", "acq_rel")
    if operation in (None, "inc", "dec") or (kind in NARROW and operation != "add"):
        raise Unsupported(ins.opcode)
    space = next((m for m in mods if m in _SPACES), "generic")
    target, address_operand, *values = ins.operands if ins.name == "atom" else (Sink(), *ins.operands)
    dtype = token(kind)
    used = ", ".join(w.use(value, dtype) for value in values)
    narrow = NARROW.get(kind, "")
    ordered = "acquire" in mods or "acq_rel" in mods
    old = w.old(target, dtype)
    where = address(w, address_operand, space.split("::")[0])
    arguments = f"{operation!r}, ({used},), {narrow!r}, {ordered}, {w.guard}, {old}, {w.site}"
    call = f"m.atomic(g, {space.split('::')[0]!r}, {where}, {arguments})"
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
