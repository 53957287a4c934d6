"""Instructions that the lanes of a warp execute together: shuffles, votes, reductions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from s2vfast.kernels.emulator.arithmetic import u4
from s2vfast.kernels.emulator.faults import Fault, Site, Unsupported
from s2vfast.kernels.emulator.ptx import Immediate, Instruction, Pair
from s2vfast.kernels.emulator.table import instruction, known

if TYPE_CHECKING:
    from s2vfast.kernels.emulator.generate import Writer
    from s2vfast.kernels.emulator.machine import Group, Machine

_LANES = np.arange(32)


class Layout:
    """A group's threads as whole warps, [a, warps, 32]; lanes that do not execute are filled up.

    Args:
        group: who executes.
    """

    def __init__(self, group: Group) -> None:
        self.group, self.whole = group, group.whole
        if self.whole:
            return
        rows, tids = (np.broadcast_to(x, group.shape).reshape(-1) for x in (group.row, group.tid))
        warps, self.warp = np.unique(rows * 64 + (tids >> 5), return_inverse=True)
        self.lane = tids & 31
        self.active = np.zeros((1, len(warps), 32), bool)
        self.active[0, self.warp, self.lane] = True

    def lay(self, values: ndarray) -> ndarray:
        """[a, warps, 32] of a group's values; [a, 1, 1] where all lanes have the same."""
        if self.whole:
            return values[..., None] if values.shape[1] == 1 else values.reshape(values.shape[0], -1, 32)
        laid = np.zeros(self.active.shape, values.dtype)
        laid[0, self.warp, self.lane] = np.broadcast_to(values, self.group.shape).reshape(-1)
        return laid

    def back(self, laid: ndarray) -> ndarray:
        """A group's values."""
        if self.whole:
            if laid.shape[1] == 1 and laid.shape[2] == 1:
                return laid[..., 0]
            laid = np.broadcast_to(laid, (laid.shape[0], self.group.shape[1] // 32, 32))
            return laid.reshape(laid.shape[0], -1)
        laid = np.broadcast_to(laid, (1, self.active.shape[1], 32))
        return laid[0, self.warp, self.lane].reshape(self.group.shape)


class Warps:
    """What the warps of a launch do.

    Args:
        machine: the launch.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def layout(self, g: Group, mask: ndarray, guard: ndarray | None, site: Site) -> Layout:
        """The group as warps; complains about lanes that the mask names and that do not execute."""
        if guard is not None and not guard.all():
            self._divergent("an instruction for whole warps under a guard that holds for some lanes only", g, site)
        if g.laid is None:
            g.laid = Layout(g)
        layout = g.laid
        if layout.whole:
            if (mask != u4(0xFFFFFFFF)).any():
                self._divergent(f"the mask {int(mask.min()):#x} leaves out lanes that execute", g, site)
        else:
            bits = (layout.active.astype(u4) << _LANES.astype(u4)).sum(axis=2, dtype=u4)[..., None]
            wrong = layout.active & (layout.lay(np.broadcast_to(mask, g.shape)) != bits)
            if wrong.any():
                self._divergent("not the lanes that the mask names execute this", g, site)
        return layout

    def _divergent(self, detail: str, g: Group, site: Site) -> None:
        cta = int(np.ravel(g.cta)[0])
        raise Fault("divergent", detail, site, self.machine.cta_name(cta), int(np.ravel(g.tid)[0]))

    def shuffle(
        self, g: Group, mode: str, x: ndarray, b: ndarray, c: ndarray, mask: ndarray, guard: ndarray | None, site: Site
    ) -> tuple[ndarray, ndarray]:
        """shfl.sync: values of other lanes, and whether these were inside."""
        layout = self.layout(g, mask, guard, site)
        value, b, c = layout.lay(x), layout.lay(b).astype(np.int64), layout.lay(c).astype(np.int64)
        segment, clamp = (c >> 8) & 31, c & 31
        most = (_LANES & segment) | (clamp & ~segment)
        b = b & 31
        if mode == "up":
            source = _LANES - b
            inside = source >= most
        else:
            source = {"down": _LANES + b, "bfly": _LANES ^ b, "idx": (_LANES & segment) | (b & ~segment)}[mode]
            inside = source <= most
        source = np.where(inside, source, _LANES)
        if not layout.whole:
            wide = np.broadcast_to(source, layout.active.shape)
            if (layout.active & ~np.take_along_axis(layout.active, wide, axis=2)).any():
                self._divergent("a shuffle reads a lane that does not execute", g, site)
        if value.shape[2] == 1:
            moved = value
        elif source.size == 32:
            moved = value.take(source.reshape(32), axis=2)
        else:
            shape = np.broadcast_shapes(value.shape, source.shape)
            moved = np.take_along_axis(np.broadcast_to(value, shape), np.broadcast_to(source, shape), axis=2)
        return layout.back(moved), layout.back(inside)

    def vote(self, g: Group, mode: str, p: ndarray, mask: ndarray, guard: ndarray | None, site: Site) -> ndarray:
        """vote.sync."""
        layout = self.layout(g, mask, guard, site)
        laid = (
            np.broadcast_to(layout.lay(p), (p.shape[0] if layout.whole else 1, g.shape[1] // 32, 32))
            if (layout.whole)
            else layout.lay(p)
        )
        active = np.ones((1, 1, 32), bool) if layout.whole else layout.active
        if mode == "ballot":
            return layout.back(
                ((laid & active).astype(u4) << _LANES.astype(u4)).sum(axis=2, dtype=u4)[..., None] + u4(0)
            )
        everyone, someone = (laid | ~active).all(axis=2), (laid & active).any(axis=2)
        result = {"all": everyone, "any": someone, "uni": everyone | ~someone}[mode]
        return layout.back(np.broadcast_to(result[..., None], laid.shape))

    def reduce(self, g: Group, operation: str, x: ndarray, mask: ndarray, guard: ndarray | None, site: Site) -> ndarray:
        """redux.sync."""
        layout = self.layout(g, mask, guard, site)
        laid = layout.lay(x)
        function = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and}
        function |= {"or": np.bitwise_or, "xor": np.bitwise_xor}
        if layout.whole:
            full = np.broadcast_to(laid, (laid.shape[0], g.shape[1] // 32, 32))
            result = function[operation].reduce(full, axis=2, dtype=x.dtype)
        else:
            limits = np.iinfo(x.dtype)
            neutral = {"add": 0, "or": 0, "xor": 0, "min": limits.max, "max": limits.min, "and": -1}[operation]
            filled = np.where(layout.active, laid, np.array(neutral).astype(x.dtype))
            result = function[operation].reduce(filled, axis=2, dtype=x.dtype)
        return layout.back(np.broadcast_to(result[..., None], (*result.shape, 32)))

    def match(self, g: Group, x: ndarray, mask: ndarray, guard: ndarray | None, site: Site) -> ndarray:
        """match.any.sync: which lanes have the same value."""
        layout = self.layout(g, mask, guard, site)
        laid = layout.lay(x)
        if layout.whole:
            laid = np.broadcast_to(laid, (laid.shape[0], g.shape[1] // 32, 32))
        equal = laid[..., :, None] == laid[..., None, :]
        if not layout.whole:
            equal = equal & layout.active[..., None, :]
        return layout.back((equal.astype(u4) << _LANES.astype(u4)).sum(axis=-1, dtype=u4))

    def active(self, g: Group) -> ndarray:
        """activemask."""
        if g.whole:
            return np.full((1, 1), 0xFFFFFFFF, u4)
        layout = Layout(g)
        bits = (layout.active.astype(u4) << _LANES.astype(u4)).sum(axis=2, dtype=u4)
        return layout.back(np.broadcast_to(bits[..., None], layout.active.shape))

    def elect(self, g: Group, mask: ndarray, guard: ndarray | None, site: Site) -> tuple[ndarray, ndarray]:
        """elect.sync: the lowest lane."""
        layout = self.layout(g, mask, guard, site)
        active = np.ones((1, 1, 32), bool) if layout.whole else layout.active
        leader = active.argmax(axis=2)[..., None]
        is_leader = np.broadcast_to(leader == _LANES, active.shape)
        return layout.back(np.broadcast_to(leader, active.shape).astype(u4)), layout.back(is_leader)

    def barrier(self, g: Group, mask: ndarray, guard: ndarray | None, site: Site) -> None:
        """bar.warp.sync: what its lanes did before is ordered before what they do after."""
        self.layout(g, mask, guard, site)
        self.machine.order_warps(g)


@instruction("shfl")
def _shfl(w: Writer, ins: Instruction) -> None:
    known(ins.modifiers, "sync", "up", "down", "bfly", "idx", "b32")
    if ins.modifiers[0] != "sync":
        raise Unsupported(ins.opcode)
    target, a, b, c, mask = ins.operands
    arguments = ", ".join(w.use(operand, "u4") for operand in (a, b, c, mask))
    both = w.variable(f"m.warps.shuffle(g, {ins.modifiers[1]!r}, {arguments}, {w.guard}, {w.site})")
    if isinstance(target, Pair):
        w.define(target.first, "u4", f"{both}[0]")
        w.define(target.second, "b1", f"{both}[1]")
    else:
        w.define(target, "u4", f"{both}[0]")


@instruction("vote")
def _vote(w: Writer, ins: Instruction) -> None:
    known(ins.modifiers, "sync", "all", "any", "uni", "ballot", "pred", "b32")
    target, p, mask = ins.operands
    kind = "u4" if ins.modifiers[1] == "ballot" else "b1"
    call = f"m.warps.vote(g, {ins.modifiers[1]!r}, {w.condition(p)}, {w.use(mask, 'u4')}, {w.guard}, {w.site})"
    w.define(target, kind, call)


@instruction("redux")
def _redux(w: Writer, ins: Instruction) -> None:
    known(ins.modifiers, "sync", "add", "min", "max", "and", "or", "xor", "u32", "s32", "b32")
    target, source, mask = ins.operands
    kind = "i4" if ins.modifiers[-1] == "s32" else "u4"
    call = f"m.warps.reduce(g, {ins.modifiers[1]!r}, {w.use(source, kind)}, {w.use(mask, 'u4')}, {w.guard}, {w.site})"
    w.define(target, kind, call)


@instruction("match")
def _match(w: Writer, ins: Instruction) -> None:
    if ins.modifiers[0] != "any":
        raise Unsupported(ins.opcode)
    target, source, mask = ins.operands
    kind = f"u{ins.modifiers[-1][-2:] and int(ins.modifiers[-1][1:]) // 8}"
    call = f"m.warps.match(g, {w.use(source, kind)}, {w.use(mask, 'u4')}, {w.guard}, {w.site})"
    w.define(target, "u4", call)


@instruction("activemask")
def _activemask(w: Writer, ins: Instruction) -> None:
    w.define(ins.operands[0], "u4", "m.warps.active(g)")


@instruction("elect")
def _elect(w: Writer, ins: Instruction) -> None:
    target, mask = ins.operands
    if not isinstance(target, Pair) or not isinstance(mask, Immediate):
        raise Unsupported(ins.opcode)
    both = w.variable(f"m.warps.elect(g, {w.use(mask, 'u4')}, {w.guard}, {w.site})")
    w.define(target.first, "u4", f"{both}[0]")
    w.define(target.second, "b1", f"{both}[1]")
