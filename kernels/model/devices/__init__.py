"""Devices as data: h200.json, h100.json, a100.json; every number with its source."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

NAMES = ("h200", "h100", "a100")


@dataclass(frozen=True)
class Device:
    """Rates of a device. A cycle is one of its clock; *a cycle* is of one multiprocessor."""

    name: str
    arch: int
    multiprocessors: int
    clock: float  # Hz
    flop_a_cycle: float  # bfloat16 products with float32 sums
    mma_sync: float  # share of that rate that mma.sync reaches
    fma_a_cycle: float  # float32, threads
    integer_a_cycle: float
    special_a_cycle: float  # exponentials, reciprocals, roots
    shared_bytes_a_cycle: float
    registers: int
    shared: int  # bytes of a multiprocessor
    warps: int
    blocks: int
    hbm: float  # bytes a second, measured by a copy where the source says so
    l2: float  # bytes a second, of the device
    launch_gap: float  # seconds between kernels of a graph
    latency: dict[str, float]  # cycles
    sources: dict[str, str]

    @property
    def l2_bytes_a_cycle(self) -> float:
        """Of one multiprocessor, where all read."""
        return self.l2 / self.clock / self.multiprocessors


@functools.cache
def device(name: str) -> Device:
    """A device by name, one of `NAMES`."""
    return Device(**json.loads((Path(__file__).parent / f"{name}.json").read_text("utf-8")))
