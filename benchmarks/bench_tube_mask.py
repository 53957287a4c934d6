"""tube_mask: native against torch (a stable argsort), interleaved in one process.

    python -m benchmarks.bench_tube_mask [--repeat 50] [--json] [--out benchmarks/results]

An implementation whose result is not bit-equal to the reference is not timed. The written file is what
`PREFERENCE` in s2vfast/ops/_dispatch.py stands on.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import s2vfast
from s2vfast import ops
from s2vfast.doctor import facts
from s2vfast.reference.tube_mask import tube_mask as reference

SHAPES = {
    "ntu60, 128 tracks": {"tracks": 128, "frames": 90, "joints": 25, "segment_frames": 3, "tube_len": 5, "keep": 2},
    "ntu60, 4 tracks": {"tracks": 4, "frames": 90, "joints": 25, "segment_frames": 3, "tube_len": 5, "keep": 2},
    "nwucla, 128 tracks": {"tracks": 128, "frames": 32, "joints": 20, "segment_frames": 8, "tube_len": 2, "keep": 4},
}
IMPLS = ("native", "torch")


def measure(shape: dict[str, int], repeat: int) -> dict[str, object]:
    """Median milliseconds of each implementation, and the median over pairs of torch / native."""
    options = {name: shape[name] for name in ("segment_frames", "tube_len", "keep")} | {"motion_weight": 0.1}
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(shape["tracks"], shape["frames"], shape["joints"], 3, generator=generator).cumsum(1) * 0.01
    ids = torch.arange(shape["tracks"])
    expected = reference(clips, **options, seed=1, epoch=1, ids=ids)
    for impl in IMPLS:
        found = ops.tube_mask(clips, **options, seed=1, epoch=1, ids=ids, impl=impl)
        if not all(torch.equal(f, e) for f, e in zip(found, expected, strict=True)):
            raise SystemExit(f"tube_mask: {impl} differs from the reference; nothing is reported")
    times: dict[str, list[float]] = {impl: [] for impl in IMPLS}
    for epoch in range(repeat):
        for impl in IMPLS:
            begun = time.perf_counter()
            ops.tube_mask(clips, **options, seed=1, epoch=epoch, ids=ids, impl=impl)
            times[impl].append((time.perf_counter() - begun) * 1000)
    ratios = [t / n for n, t in zip(times["native"], times["torch"], strict=True)]
    return {impl: round(statistics.median(times[impl]), 4) for impl in IMPLS} | {
        "ratio": round(statistics.median(ratios), 1)
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=50, help="interleaved pairs")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    parser.add_argument("--out", type=Path, help="folder to write DEVICE/tube_mask.json to")
    given = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = facts()["machine"]
    result = {
        "stem": "tube_mask",
        "command": "python -m benchmarks.bench_tube_mask",
        "commit": commit or "unknown",
        "versions": {"s2vfast": s2vfast.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": f"cpu: {machine['cpu']}, {torch.get_num_threads()} threads",
        "unit": "ms, median",
        "results": {name: measure(shape, given.repeat) for name, shape in SHAPES.items()},
    }
    if given.out:
        folder = given.out / "cpu"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tube_mask.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    if given.json:
        print(json.dumps(result))
        return
    for name, row in result["results"].items():
        print(f"{name:20}  native {row['native']:8.3f} ms   torch {row['torch']:8.3f} ms   {row['ratio']:.0f}x")


if __name__ == "__main__":
    sys.exit(main())
