"""What a step is fed with: clips and masks of our implementation, against the usual ways on a CPU.

    python -m benchmarks.bench_data [--device cuda] [--repeat 7] [--json] [--out benchmarks/results]

clip_sample against the NumPy pipeline that skeleton loaders have (benchmarks/_numpy_pipeline.py), 64 clips of NTU.
tube_mask, for 128 tracks of NTU, against torch.argsort: track by track, as a loader does it, and all tracks at once.
On a CPU ours is ``native``, clips on one thread, masks on one and on all; on a GPU it is ``triton``, and the usual ways
stay on the CPU, with all its threads. Nothing is timed before the results have been found equal: masks to the bit,
clips to rounding; what differs is not timed, its row says so, and the exit code is 1. Interleaved. Times are in ms for
all clips or tracks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import _numpy_pipeline as usual
from benchmarks import _results
from benchmarks._program import begin, progress, said, show, written
from benchmarks._timer import timed
from benchmarks.bench_clip_sample import store
from s2vfast import errors, ops
from s2vfast.reference import philox
from s2vfast.reference.tube_mask import tube_mask as at_once

SPEC = ops.ClipSpec(90, rotate=(0.3, 0.3, 0.3))
CLIPS, TRACKS, JOINTS = 64, 128, 25
MASK = {"segment_frames": 3, "tube_len": 5, "keep": 2, "motion_weight": 0.1}
CALLS = 20  # of ours in a round, which take little time
IMPLS = {"cpu": "native", "cuda": "triton"}


@dataclass(frozen=True)
class Case:
    """Ours and another way to the same."""

    what: str
    versus: str
    unit: str
    count: int  # of these, in a call
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    same: Callable[[Any, Any], bool]


def clip_sampling(device: torch.device, clips: int = CLIPS) -> Iterator[Case]:
    """Clips out of a store."""
    given = store(JOINTS)
    ids = torch.randint(len(given["row"]), (clips,), generator=torch.Generator().manual_seed(1))
    stored = [usual.padded(given, int(i)) for i in ids]
    draws = [usual.draws(int(given["count"][i, 0]), int(i), SPEC, 1, 1) for i in ids]
    there = {name: value.to(device) for name, value in (given | {"ids": ids}).items()}
    yield Case(
        "clip_sample",
        "NumPy loader",
        "clips",
        clips,
        lambda: ops.clip_sample(**there, spec=SPEC, seed=1, epoch=1, impl=IMPLS[device.type]),
        lambda: np.concatenate([usual.clip(s, SPEC, d) for s, d in zip(stored, draws, strict=True)]),
        lambda ours, theirs: np.allclose(ours.cpu().numpy(), theirs, rtol=1e-5, atol=1e-5),
    )


def tube_masking(device: torch.device, tracks: int = TRACKS) -> Iterator[Case]:
    """Masks of clips that are there."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(tracks, SPEC.frames, JOINTS, 3, generator=generator).cumsum(1) * 0.01
    ids = philox.track_ids(torch.arange(tracks // 2), 2)
    there, there_ids = clips.to(device), ids.to(device)
    for versus, theirs in (
        ("torch.argsort, track by track", lambda: usual.masks(clips, ids, MASK, 1, 1)),
        ("torch.argsort, all at once", lambda: [at_once(clips, **MASK, seed=1, epoch=1, ids=ids)]),
    ):
        yield Case(
            "tube_mask",
            versus,
            "tracks",
            tracks,
            lambda: ops.tube_mask(there, **MASK, seed=1, epoch=1, ids=there_ids, impl=IMPLS[device.type]),
            theirs,
            lambda ours, rows: all(
                torch.equal(mine.cpu(), torch.cat(column))
                for mine, column in zip(ours, zip(*rows, strict=True), strict=True)
            ),
        )


def measure(case: Case, device: torch.device, threads: int, repeat: int) -> dict[str, Any]:
    """A row, see `benchmarks._results.FIELDS`."""
    row = {"what": case.what, "threads": threads, "versus": case.versus}
    progress(f"{case.what}, {threads} threads, against {case.versus}")
    try:
        if not case.same(case.ours(), case.theirs()):
            return row | {"refused": f"{IMPLS[device.type]} differs from {case.versus}"}
    except Exception as error:  # one that fails keeps no other from being measured
        return row | {"refused": str(error) if isinstance(error, errors.S2vfastError) else said(error)}
    found = [([timed(case.ours, device) for _ in range(CALLS)], timed(case.theirs, device)) for _ in range(repeat)]
    times = _results.percentiles([ms for ours, _ in found for ms in ours])
    return row | {
        **times,
        "other_p50": float(f"{statistics.median(theirs for _, theirs in found):.4g}"),
        "ratio": float(f"{statistics.median(theirs / statistics.median(ours) for ours, theirs in found):.4g}"),
        "unit": case.unit,
        "per_second": float(f"{1000 * case.count / times['p50']:.4g}"),
    }


def rows(device: torch.device, repeat: int) -> Iterator[dict[str, Any]]:
    """All measurements."""
    most = torch.get_num_threads()
    try:
        for threads in sorted({1, most}) if device.type == "cpu" else (0,):
            torch.set_num_threads(threads or most)
            for cases in (clip_sampling, tube_masking) if threads < 2 else (tube_masking,):
                for case in cases(device):
                    yield measure(case, device, threads, repeat)
    finally:
        torch.set_num_threads(most)


def results(device: torch.device, repeat: int) -> Iterator[dict[str, Any]]:
    """The result, after each of its rows."""
    facts, found = _results.device_facts(device), []
    for row in rows(device, repeat):
        found.append(row)
        yield _results.result("data", found, facts)


def line(row: dict[str, Any]) -> str:
    """A row as a line."""
    head = f"{row['what']:<12}{row['threads']:>2} threads  "
    if "refused" in row:
        return f"{head}NOT TIMED: {row['refused']}"
    return (
        f"{head}{row['p50']:9.4f} ms ({row['p20']:g} to {row['p80']:g}), {row['per_second']:g} {row['unit']}/s; "
        f"{row['versus']} takes {row['ratio']:g}x"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if something differs, 2 if it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_data", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=tuple(IMPLS))
    parser.add_argument("--repeat", type=int, default=7, help="interleaved rounds")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of lines")
    parser.add_argument("--out", type=Path, help="folder to write DEVICE/data.json to")
    given = parser.parse_args(arguments)
    if given.repeat < 1:
        parser.error(f"--repeat: {given.repeat}; 1 or more is expected")
    try:
        device = begin(given.device)
    except errors.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return show(written(results(device, given.repeat), given.out), line, given.json)


if __name__ == "__main__":
    sys.exit(main())
