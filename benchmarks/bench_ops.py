"""Every operation: each implementation that can run, against `torch`, interleaved in one process.

    python -m benchmarks.bench_ops [STEM ...] [--device cuda] [--shape ntu] [--dtype bfloat16] [--repeat 30] [--json]
                                   [--out benchmarks/results]

On a GPU, times are between CUDA events after the second-level cache has been flushed. An implementation that does not
agree with the reference, at that shape with two tracks, is not timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import s2vfast
from s2vfast import errors, ops
from s2vfast.doctor import facts
from s2vfast.inputs import SHAPES, STEMS, WITHOUT_GRADIENT, Shape, inputs
from s2vfast.verify import verify

_FLUSH_BYTES = 256 * 2**20  # more than any second-level cache


class Timer:
    """Milliseconds of a call, on the device's own clock where it has one."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device) if self.cuda else None

    def __call__(self, call: Callable[[], Any]) -> float:
        if self.flush is None:
            begun = time.perf_counter()
            call()
            return (time.perf_counter() - begun) * 1000
        self.flush.zero_()
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        call()
        ended.record()
        ended.synchronize()
        return begun.elapsed_time(ended)


def calls(stem: str, impl: str, given: dict[str, Any], backward: bool) -> Callable[[], Any]:
    """What is timed: the operation, with ``backward`` also the gradients of its floating inputs."""
    public = getattr(ops, stem)
    if not backward:

        def forward() -> Any:
            with torch.no_grad():
                return public(**given, impl=impl)

        return forward
    leaves = {
        name: value.detach().clone().requires_grad_()
        for name, value in given.items()
        if isinstance(value, Tensor) and value.is_floating_point() and name != "clips"  # clips need no gradient
    }
    with torch.no_grad():
        outputs = public(**given, impl="torch")
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [torch.randn_like(out) for out in outputs if out is not None]

    def both() -> Any:
        found = public(**{**given, **leaves}, impl=impl)
        found = [out for out in (found if isinstance(found, tuple) else (found,)) if out is not None]
        return torch.autograd.grad(found, list(leaves.values()), upstream, allow_unused=True)

    return both


def measure(stem: str, shape: Shape, dtype: torch.dtype, device: torch.device, repeat: int) -> list[dict[str, Any]]:
    """Rows of one operation: median milliseconds by implementation, and the median of the pairs' ratio to torch."""
    kind, timer, rows = device.type, Timer(device), []
    candidates = [name for name, why in ops.availability(kind)[stem].items() if not why and name != "reference"]
    small = dataclasses.replace(shape, N=2)
    refused, impls = {}, []
    for impl in candidates:
        try:
            wrong = [row.name for row in verify(stem, impl, small, dtype=dtype, device=device) if not row.good]
        except errors.ImplementationError as error:
            wrong = [str(error)]
        if wrong:
            refused[impl] = wrong
        else:
            impls.append(impl)
    for impl, wrong in refused.items():
        rows.append({"stem": stem, "impl": impl, "refused": f"does not agree with the reference: {', '.join(wrong)}"})
    given = inputs(stem, shape, dtype=dtype, device=device)
    for backward in (False, True) if stem not in WITHOUT_GRADIENT else (False,):
        functions = {impl: calls(stem, impl, given, backward) for impl in impls}
        for function in functions.values():
            for _ in range(2):
                function()
        times: dict[str, list[float]] = {impl: [] for impl in impls}
        for _ in range(repeat):
            for impl, function in functions.items():
                times[impl].append(timer(function))
        for impl in impls:
            ratios = [t / own for own, t in zip(times[impl], times.get("torch", times[impl]), strict=True)]
            row = {"stem": stem, "impl": impl, "pass": "forward+backward" if backward else "forward"}
            row |= {"ms": round(statistics.median(times[impl]), 4), "times torch": round(statistics.median(ratios), 2)}
            rows.append(row)
    return rows


def main() -> int:
    """Measure, print, write; 1 if an implementation was refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stems", nargs="*", metavar="STEM", help=f"operations (default: all): {', '.join(STEMS)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", default="ntu", choices=SHAPES)
    parser.add_argument("--sizes", default="", metavar="NAME=NUMBER,…", help="sizes that replace some of the shape's")
    parser.add_argument("--dtype", default="", choices=("", "float32", "bfloat16"), help="default: bfloat16 on a GPU")
    parser.add_argument("--repeat", type=int, default=30, help="interleaved rounds")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    parser.add_argument("--out", type=Path, help="folder to write DEVICE/ops_SHAPE.json to")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    dtype = getattr(torch, asked.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    shape = SHAPES[asked.shape].with_sizes(asked.sizes)
    rows = []
    for stem in asked.stems or STEMS:
        found = measure(stem, shape, dtype, device, asked.repeat)
        rows += found
        if not asked.json:
            for row in found:
                tail = row.get("refused") or f"{row['pass']:<17} {row['ms']:9.3f} ms {row['times torch']:7.2f}x torch"
                print(f"{stem:<15} {row['impl']:<9} {tail}", flush=True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else facts()["machine"]["cpu"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "command": f"python -m benchmarks.bench_ops {' '.join(sys.argv[1:])}".strip(),
        "commit": commit or "unknown",
        "versions": {"s2vfast": s2vfast.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": name if device.type == "cuda" else f"cpu: {name}, {torch.get_num_threads()} threads",
        "shape": dataclasses.asdict(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "rows": rows,
    }
    if asked.out:
        folder = asked.out / (name.replace(" ", "-").lower() if device.type == "cuda" else "cpu")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"ops_{asked.shape}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if asked.json:
        print(json.dumps(result))
    return int(any("refused" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
