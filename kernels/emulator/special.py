"""Registers of the machine: which thread, which block, how many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from s2vfast.kernels.emulator.faults import Unsupported

if TYPE_CHECKING:
    from s2vfast.kernels.emulator.groups import Group
    from s2vfast.kernels.emulator.machine import Machine


def value(machine: Machine, g: Group, name: str) -> ndarray:
    """What a register such as %tid.x holds for the threads of a group."""
    stem, _, axis = name[1:].partition(".")
    i = "xyz".find(axis) if axis else 0
    if stem == "tid":
        divisor = (1, machine.block[0], machine.block[0] * machine.block[1])[i]
        return g.tid // divisor % machine.block[i]
    if stem == "ctaid":
        divisor = (1, machine.grid[0], machine.grid[0] * machine.grid[1])[i]
        return g.cta // divisor % machine.grid[i] if machine.grid[i] > 1 else np.zeros((1, 1), np.int64)
    lane = g.tid & 31
    masks = {"eq": 1 << lane, "lt": (1 << lane) - 1, "le": (2 << lane) - 1}
    masks |= {"gt": 0xFFFFFFFF ^ masks["le"], "ge": 0xFFFFFFFF ^ masks["lt"]}
    if stem.startswith("lanemask_"):
        return masks[stem[-2:]]
    one = {"ntid": machine.block[i], "nctaid": machine.grid[i], "WARP_SZ": 32, "nwarpid": -(-machine.threads // 32)}
    one |= {"dynamic_smem_size": machine.dynamic_shared, "total_smem_size": machine.shared_bytes, "gridid": 0}
    one |= {"cluster_ctarank": 0, "cluster_nctarank": 1, "cluster_ctaid": 0, "cluster_nctaid": 1}
    if stem == "laneid":
        return lane
    if stem == "warpid":
        return g.tid >> 5
    if stem in one:
        return np.array([[one[stem]]], np.int64)
    raise Unsupported(f"the emulator does not know the register {name}")
