"""Where a step's time goes, by kind of work: from PyTorch's profiler, in steps that are not timed.

An event of the profiler belongs to the first kind one of whose patterns is its name or the name of an event around it.
On a CPU it counts with its own time, without its children's. On a GPU its kernels count; they are launched one by one
for this, because a replayed graph does not tell which operation a kernel belongs to.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks._train_step import MASKS, UPDATE, Advance
from s2vfast.reference import skeleton2vec as published

OTHER = "other"
KINDS = {
    "masks": rf"{MASKS}|s2vfast::(tube|token)_mask\w*",
    "optimizer": UPDATE,
    # PyTorch's own kernels, and eager attention: its products are the only ones with a batch of matrices.
    "attention": r"aten::_?(scaled_dot_product|flash|efficient|cudnn)_?\w*|aten::(badd)?bmm|BmmBackward0"
    r"|aten::_?(log_)?softmax\w*|aten::logsumexp|\w*(Softmax|Logsumexp|ScaledDotProduct\w*)Backward0"
    r"|s2vfast::attention\w*|.*(flash_|fmha|sdpa).*",
    # With what is done in the same kernel: bias, GELU, and in ours the norms.
    "linear maps": r"aten::(mm|addmm|linear|_addmm_activation)|mkldnn::_linear_pointwise|_Linear(Backward)?"
    r"|(Mm|Addmm)Backward0|s2vfast::(norm_linear|mlp|add_norm)\w*|.*(gemm|nvjet|cutlass).*",
    "gather, scatter, copies": r"aten::(copy_|cat|gather|scatter|scatter_add_?|index|index_select|index_put_?|_foreach_"
    r"copy_|clone|contiguous|constant_pad_nd|pad|_to_copy|repeat|fill_|zero_|zeros)|s2vfast::(embed_gather|mask_fill)"
    r"\w*|Mem(cpy|set).*",
    "norms and elementwise": r"aten::(native_layer_norm\w*|gelu\w*|erf|exp_?|log_?|add_?|sub_?|mul_?|div_?|addcmul_?"
    r"|neg|pow|sqrt|rsqrt|square|sum|mean|amax|abs|eq|where|masked_fill_?|var_mean|mse_loss\w*|lerp_?)"
    r"|s2vfast::(masked_mse|teacher_target)\w*|triton_.*|.*(elementwise|reduce|layer_norm).*",
}
"""Patterns by kind, of whole names: events are autograd's (…Backward0) and operators', kernels' on a GPU."""
_KINDS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}


def breakdown(advance: Advance, p50: float, cuda: bool) -> tuple[dict[str, float], int | None]:
    """Where the time of a step goes, which takes p50 ms and on a GPU was not captured.

    Returns:
        Ms of a step by kind, which add up to p50: ``other`` is what no kind has (on a GPU also when no kernel ran), and
        all is scaled where the profiled step took longer. And the kernels of a step, None on a CPU.
    """
    steps = 3 if cuda else 1
    for _ in range(2 if cuda else 0):
        advance()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    # The published step makes its masks inside; so they get the name that ours have.
    named = record_function(MASKS)(published.tube_mask)
    with mock.patch.object(published, "tube_mask", named), profile(activities=activities) as profiler:
        start = time.perf_counter()
        for _ in range(steps):
            advance()
        wall = 1000 * (time.perf_counter() - start) / steps
    times, launches = sums(profiler.events(), steps, cuda)
    # The profiler slows the host, and no kernel.
    return scaled(times, p50 if cuda else wall, p50), round(launches) if cuda else None


def sums(events: Iterable[Any], steps: int, cuda: bool) -> tuple[dict[str, float], float]:
    """Ms a step by kind, and kernels a step, of the profiler's events."""
    times, launches = dict.fromkeys((*KINDS, OTHER), 0.0), 0.0
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue
        names = list(_names(event))
        if not cuda:
            times[kind_of(names)] += event.self_cpu_time_total / 1000 / steps
            continue
        for kernel in event.kernels:
            if kernel.name == event.name:
                continue  # a range's own shadow on the device
            times[kind_of([*names, kernel.name])] += kernel.duration / 1000 / steps
            launches += 0.0 if kernel.name.startswith(("Memcpy", "Memset")) else 1 / steps
    return times, launches


def _names(event: Any) -> Iterator[str]:
    while event is not None:
        yield event.name.rpartition("evaluate_function: ")[2]
        event = event.cpu_parent


def kind_of(names: list[str]) -> str:
    """The kind of an event by its name and the names of those around it."""
    matches = (kind for kind, pattern in _KINDS.items() if any(pattern.fullmatch(name) for name in names))
    return next(matches, OTHER)


def scaled(times: dict[str, float], total: float, p50: float) -> dict[str, float]:
    """Times that add up to p50: ``other`` gets what is missing of the total; kinds without time are left out."""
    total = max(total, sum(times.values()))
    full = {**times, OTHER: times[OTHER] + total - sum(times.values())}
    return {kind: round(ms * p50 / total, 4) for kind, ms in full.items() if ms > 0}
