"""How long a call takes, by the package's own timer, `s2vfast.calibrate.timer`.

It is read from its file: a worker imports another version of s2vfast, and every version is timed in the same way.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_FILE = Path(__file__).parents[1] / "s2vfast/calibrate/timer.py"
_SPEC = importlib.util.spec_from_file_location("benchmarks._package_timer", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
_PACKAGE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_PACKAGE)

Timer = _PACKAGE.Timer
Call = Callable[[], Any]


def timed(call: Call, device: torch.device) -> float:
    """Milliseconds of a call by the clock, on a GPU until all is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()

    def whole() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return _PACKAGE.by_the_clock(whole)


def median_seconds(call: Call, device: torch.device, calls: int = 1, repeat: int = 7) -> float:
    """Median seconds of a call, so many of which are timed at once; on a GPU between events."""

    def many() -> None:
        for _ in range(calls):
            call()

    time_once = _PACKAGE.between_events if device.type == "cuda" else _PACKAGE.by_the_clock
    many()  # it warms up
    return statistics.median(time_once(many) for _ in range(repeat)) / calls / 1000
