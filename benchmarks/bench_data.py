"""What a step is fed with: clips and masks of the native implementation, against the usual ways, on one core.

    python -m benchmarks.bench_data [--repeat 7] [--json] [--out benchmarks/results]

clip_sample against the NumPy pipeline that skeleton loaders have (benchmarks/_numpy_pipeline.py), by the clip.
tube_mask, for 128 tracks of NTU, against torch.argsort: track by track, as a loader does it, and all tracks at once.
Nothing is timed before the results have been found equal: masks to the bit, clips to rounding. Interleaved; clips on
one thread, masks on one and on all.
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

import numpy as np
import torch

import s2vfast
from benchmarks import _numpy_pipeline as usual
from benchmarks.bench_clip_sample import recordings
from s2vfast import ops
from s2vfast.doctor import facts
from s2vfast.reference import philox
from s2vfast.reference.tube_mask import tube_mask as at_once

SPEC = ops.ClipSpec(90, rotate=(0.3, 0.3, 0.3))
CLIPS, TRACKS = 64, 128
MASK = {"segment_frames": 3, "tube_len": 5, "keep": 2, "motion_weight": 0.1}
NUMPY_CLIPS = 8  # of the 64: it takes long enough


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def interleaved(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeat: int, times: int
) -> tuple[float, float, float]:
    """Median seconds of both, ours of ``times`` calls a round, and the median ratio of a round."""
    found = [(statistics.median(timed(ours) for _ in range(times)), timed(theirs)) for _ in range(repeat)]
    ratios = [b / a for a, b in found]
    mine, other = (statistics.median(column) for column in zip(*found, strict=True))
    return mine, other, statistics.median(ratios)


def clip_sampling(repeat: int) -> dict[str, float]:
    """Clips a second of both, a core."""
    generator = torch.Generator().manual_seed(0)
    given = recordings(generator, torch.float32)
    ids = torch.randint(len(given["row"]), (CLIPS,), generator=generator)
    stored = [usual.padded(given, int(i)) for i in ids]
    draws = [usual.draws(int(given["count"][i, 0]), int(i), SPEC, 1, 1) for i in ids]
    ours = ops.clip_sample(**given, ids=ids, spec=SPEC, seed=1, epoch=1, impl="native")
    theirs = np.concatenate([usual.clip(s, SPEC, d) for s, d in zip(stored, draws, strict=True)])
    if not np.allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-5):
        raise SystemExit("clip_sample: native differs from the NumPy pipeline; nothing is reported")
    mine, other, _ = interleaved(
        lambda: ops.clip_sample(**given, ids=ids, spec=SPEC, seed=1, epoch=1, impl="native"),
        lambda: [usual.clip(s, SPEC, d) for s, d in zip(stored[:NUMPY_CLIPS], draws, strict=False)],
        repeat,
        times=20,
    )
    rates = {"native": CLIPS / mine, "numpy": NUMPY_CLIPS / other}
    return {f"{name} clips/s a core": round(rate, 1) for name, rate in rates.items()} | {
        "ratio": round(rates["native"] / rates["numpy"], 1)
    }


def tube_masking(repeat: int) -> dict[str, float]:
    """Milliseconds for 128 tracks."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(TRACKS, 90, 25, 3, generator=generator).cumsum(1) * 0.01
    ids = philox.track_ids(torch.arange(TRACKS // 2), 2)
    ours = ops.tube_mask(clips, **MASK, seed=1, epoch=1, ids=ids, impl="native")
    for theirs in (at_once(clips, **MASK, seed=1, epoch=1, ids=ids), _stacked(usual.masks(clips, ids, MASK, 1, 1))):
        if not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)):
            raise SystemExit("tube_mask: native differs from torch.argsort; nothing is reported")
    found = {}
    for name, call in (
        ("track by track", lambda: usual.masks(clips, ids, MASK, 1, 1)),
        ("all at once", lambda: at_once(clips, **MASK, seed=1, epoch=1, ids=ids)),
    ):
        mine, other, ratio = interleaved(
            lambda: ops.tube_mask(clips, **MASK, seed=1, epoch=1, ids=ids, impl="native"), call, repeat, times=20
        )
        found |= {"native ms": round(mine * 1000, 4), f"torch ms, {name}": round(other * 1000, 3)}
        found[f"ratio, {name}"] = round(ratio, 1)
    return found


def _stacked(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.cat(column) for column in zip(*rows, strict=True)]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=7, help="interleaved rounds")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of lines")
    parser.add_argument("--out", type=Path, help="folder to write cpu/data.json to")
    given = parser.parse_args()
    most, results = torch.get_num_threads(), {}
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        if threads == 1:
            results["clip_sample, 1 thread"] = clip_sampling(given.repeat)
        results[f"tube_mask, {threads} thread{'s' * (threads > 1)}"] = tube_masking(given.repeat)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "command": "python -m benchmarks.bench_data",
        "commit": commit or "unknown",
        "versions": {"s2vfast": s2vfast.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": f"cpu: {facts()['machine']['cpu']}",
        "results": results,
    }
    if given.out:
        folder = given.out / "cpu"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    if given.json:
        print(json.dumps(result))
        return
    for stem, row in result["results"].items():
        print(stem, *(f"\n  {name:32}{value:12.3f}" for name, value in row.items()))


if __name__ == "__main__":
    main()
