"""atom and red: threads one after the other, in the order of blocks and threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from s2vfast.kernels.emulator import arithmetic
from s2vfast.kernels.emulator.faults import Site

if TYPE_CHECKING:
    from s2vfast.kernels.emulator.groups import Group
    from s2vfast.kernels.emulator.machine import Machine
    from s2vfast.kernels.emulator.memory import Space

_OPERATIONS = {
    "add": lambda old, x: old + x,
    "min": lambda old, x: min(old, x),
    "max": lambda old, x: max(old, x),
    "and": lambda old, x: old & x,
    "or": lambda old, x: old | x,
    "xor": lambda old, x: old ^ x,
    "exch": lambda old, x: x,
    "cas": lambda old, compare, x: x if old == compare else old,
}


def atomic(
    machine: Machine,
    g: Group,
    memory: Space,
    where: ndarray,
    operation: str,
    values: tuple,
    narrow: str,
    ordered: bool,
    guard: ndarray | None,
    old: ndarray | None,
    site: Site,
) -> ndarray | None:
    """What memory held before, for each thread.

    Args:
        machine: the launch.
        g: who executes.
        memory: of which space.
        where: addresses.
        operation: a name among those above.
        values: operands.
        narrow: f16 or bf16 where the values are bits of these, else empty.
        ordered: whether it orders what other blocks have done.
        guard: which threads take part.
        old: what the others keep.
        site: the instruction.
    """
    if ordered:
        machine.fence_device()
    width = values[0].dtype.itemsize
    lanes = memory.select(g, where, width, guard, site)
    if lanes is None:
        return old
    memory.check_atomic(lanes, width, site)
    shape = np.broadcast_shapes(lanes.offset.shape, np.shape(lanes.row), lanes.tid.shape, np.shape(lanes.cta))
    index = np.broadcast_to(lanes.offset // width, shape)
    if memory.kind != "global":
        index = index + lanes.row * (memory.size // width)
    words = memory.words[width].reshape(-1).view(values[0].dtype)
    operands = [np.broadcast_to(lanes.narrow(value), shape).reshape(-1) for value in values]
    before = np.empty(index.size, words.dtype)
    step = _OPERATIONS[operation]
    for i, at in enumerate(index.reshape(-1)):
        before[i] = words[at]
        if narrow:
            wide = getattr(arithmetic, f"widen_{narrow}")(np.array([before[i], operands[0][i]]))
            words[at] = getattr(arithmetic, f"narrow_{narrow}")(wide[:1] + wide[1:])[0]
        else:
            words[at] = step(before[i], *(operand[i] for operand in operands))
    return lanes.spread(before.reshape(shape), old)
