"""How long a call takes: on a GPU between events around a replayed graph, else by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

_FLUSH_BYTES = 256 * 2**20  # more than any second-level cache
_WARM = 3  # calls before anything is timed or captured: kernels are compiled, workspaces allocated
_LEAST_MS = 0.3  # of a replay: launching a graph takes some microseconds, which no call should bear alone
_MOST_CALLS = 64

Call = Callable[[], Any]


class Timer:
    """Milliseconds of calls on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self._flush: torch.Tensor | None = None

    def __call__(self, call: Call) -> float:
        """Milliseconds of one call as it is, its launches included; on a GPU out of a flushed second-level cache."""
        if not self.cuda:
            return _by_the_clock(call)
        if self._flush is None:
            self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=self.device)
        self._flush.zero_()
        return _between_events(call)

    def sampler(self, calls: Sequence[Call]) -> tuple[Callable[[], float], bool]:
        """A function that measures once: milliseconds a call, the calls taking turns; and whether a graph is replayed.

        Args:
            calls: the same work on inputs of their own each. Where these are more than the caches hold, every call
                finds its inputs in none.
        """
        for _ in range(_WARM):
            for call in calls:
                call()
        if not self.cuda:
            return _Turns(calls), False
        torch.cuda.synchronize()
        single = _between_events(calls[0])
        rounds = max(1, min(_MOST_CALLS, round(_LEAST_MS / max(single, 1e-3))) // len(calls))
        count = rounds * len(calls)

        def everything() -> None:
            for _ in range(rounds):
                for call in calls:
                    call()

        graph = _captured(everything)
        replay = graph.replay if graph else everything
        return lambda: _between_events(replay) / count, graph is not None

    def copies(self, size: int) -> int:
        """How many inputs of so many bytes are more than the second-level cache holds three times over; 2 at least.

        No more than a quarter of the memory that is free.
        """
        if not self.cuda:
            return 1
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        free, _ = torch.cuda.mem_get_info(self.device)
        return max(min(-(-3 * cache // max(size, 1)), free // 4 // max(size, 1), _MOST_CALLS), 2)


class _Turns:
    """One of the calls at a time, timed by the clock."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls, self.turn = calls, 0

    def __call__(self) -> float:
        self.turn = (self.turn + 1) % len(self.calls)
        return _by_the_clock(self.calls[self.turn])


def _by_the_clock(call: Call) -> float:
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1000


def _between_events(call: Call) -> float:
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    call()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended)


def _captured(call: Call) -> torch.cuda.CUDAGraph | None:
    """The call as a graph; None where it asks the device for a number or synchronises, which cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph
