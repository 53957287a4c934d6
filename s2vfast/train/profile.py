"""Where a step's time goes: a trace for chrome://tracing or Perfetto, a table, and the bare step to compare with.

A profile is taken before the run's steps and leaves nothing behind in them: weights, moments and the place in the data
are put back as they were.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

STAGES = ("data", "forward", "backward", "update")
WARM = 4  # steps before anything is measured: kernels are compiled, graphs captured, caches filled
ROUNDS = 5  # in which the measured steps are done
TOP = 12  # rows of the table of operations


def run_profile(trainer: Any, folder: Path, steps: int, writes: bool) -> dict[str, Any]:
    """Profile a trainer and put it back as it was.

    Args:
        trainer: a `s2vfast.train.trainer.Trainer`.
        folder: gets ``trace.json``, ``table.txt`` and ``summary.json``.
        steps: steps that are traced, and at least so many that each measurement takes.
        writes: whether this process writes; all ranks must take part.

    Returns:
        What ``summary.json`` holds, times in milliseconds a step.
    """
    first = trainer.step
    with trainer.restoring():
        trainer.total_steps = max(trainer.total_steps, first + WARM + 3 * steps + 2 * ROUNDS)
        for _ in range(WARM):
            trainer.run_step()
        list(trainer.drain())
        batch = trainer.feed.batch(first)
        each = -(-steps // ROUNDS)
        full, bare = [], []
        for _ in range(ROUNDS):  # interleaved: what else the machine does slows both
            full.append(
                _timed(lambda: [*(trainer.run_step() for _ in range(each)), *trainer.drain()], trainer.device) / each
            )
            bare.append(_timed(lambda: [trainer.step_without_data(batch) for _ in range(each)], trainer.device) / each)
        summary = {"loop_step_ms": _median(full), "bare_step_ms": _median(bare)}
        summary["clips_per_second_bare"] = round(trainer.config.train.batch / summary["bare_step_ms"] * 1000, 1)
        activities = [ProfilerActivity.CPU]
        if trainer.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as profiler:
            begun = time.perf_counter()
            for _ in range(steps):
                trainer.run_step()
            list(trainer.drain())
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            traced = 1000 * (time.perf_counter() - begun) / steps
        summary |= _stages(profiler, steps, traced, trainer.device.type == "cuda")
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(folder / "trace.json"))
            (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
            key = "self_device_time_total" if trainer.device.type == "cuda" else "self_cpu_time_total"
            table = profiler.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=60)
            (folder / "table.txt").write_text(f"{text(summary)}\n\n{table}\n", "utf-8")
        return summary


def text(summary: dict[str, Any]) -> str:
    """A summary in words and numbers."""
    lines = [
        f"a step takes {summary['loop_step_ms']:.2f} ms, and {summary['bare_step_ms']:.2f} ms without data and reading "
        f"({summary['bare_step_ms'] / summary['loop_step_ms']:.0%} of the bare step's throughput)"
    ]
    lines += [f"  {name:10}{ms:10.3f} ms on the host" for name, ms in summary["host_ms"].items()]
    if "kernels_ms" in summary:
        lines.append(f"  {'kernels':10}{summary['kernels_ms']:10.3f} ms, {summary['launches']:.0f} of them")
        lines.append(f"  {'gaps':10}{summary['gaps_ms']:10.3f} ms without a kernel")
    lines += [f"    {row['ms']:10.3f} ms  {row['calls']:6.1f} calls  {row['name'][:70]}" for row in summary["top"]]
    return "\n".join(lines)


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begun)


def _median(times: list[float]) -> float:
    return round(statistics.median(times), 3)


def _stages(profiler: Any, steps: int, wall: float, cuda: bool) -> dict[str, Any]:
    """Milliseconds a step of the host's stages, of kernels and the gaps between them, and of the largest operations."""
    host, kernels = dict.fromkeys(STAGES, 0.0), []
    work: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in profiler.events():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        name = event.name.removeprefix("s2vfast: ")
        if name in host and event.name != name:
            if not on_device:
                host[name] += event.time_range.elapsed_us() / 1000 / steps
        elif on_device:
            kernels.append((event.time_range.start, event.time_range.end))
            _add(work[event.name], event.time_range.elapsed_us(), steps)
        elif not cuda:
            _add(work[event.name], event.self_cpu_time_total, steps)
    host["other"] = max(wall - sum(host.values()), 0.0)
    stages: dict[str, Any] = {"host_ms": {name: round(ms, 3) for name, ms in host.items()}}
    if cuda:
        busy = _union(kernels) / 1000 / steps
        stages |= {"kernels_ms": round(busy, 3), "gaps_ms": round(max(wall - busy, 0.0), 3)}
        stages["launches"] = len(kernels) / steps
    top = sorted(work.items(), key=lambda item: -item[1][0])[:TOP]
    stages["top"] = [{"name": name, "ms": round(ms, 3), "calls": round(calls, 2)} for name, (ms, calls) in top]
    return stages


def _add(row: list[float], us: float, steps: int) -> None:
    row[0] += us / 1000 / steps
    row[1] += 1 / steps


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """The length of what the spans cover together."""
    covered, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        covered += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return covered
