"""What the benchmarks of single operations share: native against torch, interleaved in one process, 1 thread and all.

The written file, benchmarks/results/cpu/STEM.json, is what `PREFERENCE` in s2vfast/ops/_dispatch.py stands on.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import s2vfast
from s2vfast.doctor import facts

IMPLS = ("native", "torch")

# case(impl) is what is timed, after prepare() has been called.
Case = tuple[Callable[[], Any], Callable[[str], Any]]


def nothing() -> None:
    """For cases that need no preparation."""


def measure(case: Case, repeat: int) -> dict[str, float]:
    """Median milliseconds of each implementation, and the median over pairs of torch / native."""
    prepare, run = case
    times: dict[str, list[float]] = {impl: [] for impl in IMPLS}
    for count in range(repeat + 2):
        for impl in IMPLS:
            prepare()
            begun = time.perf_counter()
            run(impl)
            if count >= 2:
                times[impl].append((time.perf_counter() - begun) * 1000)
    ratios = [t / n for n, t in zip(times["native"], times["torch"], strict=True)]
    medians = {impl: round(statistics.median(times[impl]), 4) for impl in IMPLS}
    return medians | {"ratio": round(statistics.median(ratios), 2)}


def main(stem: str, cases: Callable[[], dict[str, Case]], text: str) -> None:
    """Measure, print, write.

    Args:
        stem: name of the operation.
        cases: makes what is timed, by name; raises SystemExit where an implementation is wrong.
        text: the benchmark's own description.
    """
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=40, help="interleaved pairs")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    parser.add_argument("--out", type=Path, help=f"folder to write cpu/{stem}.json to")
    given = parser.parse_args()
    results = {}
    most = torch.get_num_threads()
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        for name, case in cases().items():
            results[f"{name}, {threads} thread{'s' * (threads > 1)}"] = measure(case, given.repeat)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "stem": stem,
        "command": f"python -m benchmarks.bench_{stem}",
        "commit": commit or "unknown",
        "versions": {"s2vfast": s2vfast.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": f"cpu: {facts()['machine']['cpu']}",
        "unit": "ms, median",
        "results": results,
    }
    if given.out:
        folder = given.out / "cpu"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    if given.json:
        print(json.dumps(result))
        return
    for name, row in results.items():
        print(f"{name:50}  native {row['native']:8.3f} ms   torch {row['torch']:8.3f} ms   {row['ratio']:.2f}x")
