"""How long a call takes: on a GPU between events around a replayed graph, else by the clock.

It needs nothing of s2vfast: `benchmarks` times old versions of the package by this file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

_FLUSH_BYTES = 256 * 2**20  # more than any second-level cache
_WARM = 3  # calls before anything is timed or captured: kernels are compiled, workspaces allocated
_LEAST_MS = 1.0  # of a replay: launching a graph takes some microseconds, which should be a per cent at most
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
            return by_the_clock(call)
        if self._flush is None:
            self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=self.device)
        self._flush.zero_()
        return between_events(call)

    def sampler(self, calls: Sequence[Call]) -> tuple[Callable[[], float], str]:
        """A function that measures once: milliseconds a call; and why no graph is replayed, empty where one is.

        On a GPU calls do the same work on inputs of their own each. Where these are more than the caches hold, every
        call has its inputs in none. A CPU takes one call, by the clock.
        """
        for _ in range(_WARM):
            for call in calls:
                call()
        if not self.cuda:
            (one,) = calls
            return lambda: by_the_clock(one), ""
        torch.cuda.synchronize()

        def all_calls(rounds: int) -> None:
            for _ in range(rounds):
                for call in calls:
                    call()

        if why := _synchronises(calls):
            return lambda: between_events(lambda: all_calls(1)) / len(calls), why
        # A replay tells how long the calls take; what the host needs to launch them one by one does not count.
        once, why = _captured(lambda: all_calls(1))
        if once is None:
            return lambda: between_events(lambda: all_calls(1)) / len(calls), why
        once.replay()
        single = min(between_events(once.replay) for _ in range(_WARM))
        rounds = min(math.ceil(_LEAST_MS / max(single, 1e-3)), max(_MOST_CALLS // len(calls), 1))
        graph = once if rounds == 1 else _captured(lambda: all_calls(rounds))[0]
        if graph is None:  # it takes as much memory again
            graph, rounds = once, 1
        return lambda: between_events(graph.replay) / (rounds * len(calls)), ""

    def copies(self, size: int) -> int:
        """How many inputs of so many bytes are more than the second-level cache holds three times over; 2 at least.

        No more than a quarter of the memory that is free.
        """
        if not self.cuda:
            return 1
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        free, _ = torch.cuda.mem_get_info(self.device)
        return max(min(-(-3 * cache // max(size, 1)), free // 4 // max(size, 1), _MOST_CALLS), 2)


def by_the_clock(call: Call) -> float:
    """Milliseconds of a call as the host sees it."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def between_events(call: Call) -> float:
    """Milliseconds of a call between two events of the current stream of a GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _synchronises(calls: Sequence[Call]) -> str:
    """Why calls cannot be captured, where they ask the device for something.

    A capture that fails may leave PyTorch's allocator in a state that costs whoever comes next.
    """
    torch.cuda.set_sync_debug_mode("error")
    try:
        for call in calls:
            call()
    except RuntimeError as error:
        return " ".join(str(error).split())[:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def _captured(call: Call) -> tuple[torch.cuda.CUDAGraph | None, str]:
    """The call as a graph; or None and why: it asks the device for a number, or synchronises."""
    stream, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(stream)
    with torch.cuda.stream(side):
        call()
    stream.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        torch.cuda.set_stream(stream)  # a capture that ends in an error leaves its own
        torch.cuda.synchronize()
        # The first error ends the capture, whose end is the second.
        return None, " ".join(str(error.__context__ or error).split())[:200]
    return graph, ""
