"""What a step is fed with: clips and masks of our implementation, against the usual ways on a CPU.

    python -m benchmarks.bench_data [--device cuda] [--repeat 7] [--json] [--out benchmarks/results]

clip_sample against the NumPy pipeline that skeleton loaders have, 64 clips of NTU. tube_mask, for 128 tracks of NTU,
against torch.argsort: track by track, as a loader does it, and all tracks at once. On a CPU ours is ``native``, clips
on one thread, masks on one and on all; on a GPU it is ``triton``, and the usual ways stay on the CPU, with all its
threads. Nothing is timed before the results are equal: masks to the bit, clips to rounding. What differs has a row with
the reason, and the exit code is 1. Times are interleaved, in ms for all clips or tracks.

The usual pipeline computes what s2vfast.reference does, from the same draws (whose cost is not counted), in the manner
of the loaders that published code comes with: a sequence is an array of 300 padded frames, frames without a body are
sought one by one with np.isclose, frames are chosen in a Python loop.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import _results
from benchmarks._calls import one_line
from benchmarks._program import add_output, begin, finish, positive, progress
from benchmarks._results import Row, digits
from benchmarks._timer import timed
from benchmarks.cases import store
from s2vfast import errors, ops
from s2vfast.reference import clip_sample as reference
from s2vfast.reference import philox
from s2vfast.reference.tube_mask import tube_mask

SPEC = ops.ClipSpec(90, rotate=(0.3, 0.3, 0.3))
CLIPS, TRACKS, JOINTS = 64, 128, 25
PADDED = 300  # frames of a stored sequence
MASK = {"segment_frames": 3, "tube_len": 5, "keep": 2, "motion_weight": 0.1}
CALLS = 20  # of ours in a round, which take little time
IMPLS = {"cpu": "native", "cuda": "triton"}


def padded(tables: dict[str, Tensor], sample: int) -> np.ndarray:
    """A sequence as the loaders read it: float32 [300, M, V, 3], the first frame first, zeros behind the last."""
    frames, row, count = tables["frames"], tables["row"][sample].tolist(), tables["count"][sample].tolist()
    out = np.zeros((PADDED, len(row), *frames.shape[1:]), np.float32)
    for body, (first, length) in enumerate(zip(row, count, strict=True)):
        numbers = tables["frame_index"][first : first + length].long().numpy()
        out[numbers, body] = frames[first : first + length].float().numpy()
    return out


def draws(count: int, sample: int) -> tuple[np.ndarray, np.ndarray]:
    """A clip's draws by the counter-based generator: frames int64 [T], of those with a body, and angles float32 [3]."""
    picks, _ = reference.picks(count, sample, SPEC, 1, 1, True)
    bits = philox.random_bits(1, 1, torch.tensor([sample]), philox.CLIP, reference.CLIP_DRAWS)[0]
    u = philox.uniform(bits)[reference.ANGLE : reference.ANGLE + 3]
    return picks.numpy(), ((2.0 * u - 1.0) * torch.tensor(SPEC.rotate)).numpy()


def usual_clip(sequence: np.ndarray, picks: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """float32 [M, T, V, 3] of a padded sequence."""
    present = [frame for frame in range(len(sequence)) if not np.isclose(sequence[frame, 0], 0).all()]
    sequence = sequence[present]
    root = sequence[0, 0, SPEC.root].copy()
    x = np.stack([sequence[pick] for pick in picks])  # [T, M, V, 3]
    nonzero = (x != 0).any(axis=-1, keepdims=True)
    x = x - root
    cx, cy, cz = np.cos(angles)
    sx, sy, sz = np.sin(angles)
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]], np.float32)
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]], np.float32)
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]], np.float32)
    x = np.matmul(x, (rz @ ry @ rx).T)
    return np.where(nonzero, x, 0).transpose(1, 0, 2, 3).astype(np.float32)


def usual_masks(clips: Tensor, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The masks of one track after the other, each by torch.argsort, as a loader's worker makes them."""
    return [tube_mask(clips[n : n + 1], **MASK, seed=1, epoch=1, ids=ids[n : n + 1]) for n in range(len(clips))]


@dataclass(frozen=True)
class Pair:
    """A call of s2vfast and the usual way to the same result."""

    what: str
    versus: str
    unit: str
    count: int  # of these, in a call
    call: Callable[[], Any]
    usual: Callable[[], Any]
    equal: Callable[[Any, Any], bool]


def clip_sampling(device: torch.device) -> Iterator[Pair]:
    """Clips out of a store."""
    tables = store(JOINTS)
    ids = torch.randint(len(tables["row"]), (CLIPS,), generator=torch.Generator().manual_seed(1))
    sequences = [(padded(tables, int(i)), *draws(int(tables["count"][i, 0]), int(i))) for i in ids]
    on_device = {name: value.to(device) for name, value in (tables | {"ids": ids}).items()}
    yield Pair(
        "clip_sample",
        "NumPy loader",
        "clips",
        CLIPS,
        lambda: ops.clip_sample(**on_device, spec=SPEC, seed=1, epoch=1, impl=IMPLS[device.type]),
        lambda: np.concatenate([usual_clip(*sequence) for sequence in sequences]),
        lambda result, expected: np.allclose(result.cpu().numpy(), expected, rtol=1e-5, atol=1e-5),
    )


def tube_masking(device: torch.device) -> Iterator[Pair]:
    """Masks of clips that exist."""
    clips = torch.randn(TRACKS, SPEC.frames, JOINTS, 3, generator=torch.Generator().manual_seed(0)).cumsum(1) * 0.01
    ids = philox.track_ids(torch.arange(TRACKS // 2), 2)
    device_clips, device_ids = clips.to(device), ids.to(device)
    for versus, usual in (
        ("torch.argsort, track by track", lambda: usual_masks(clips, ids)),
        ("torch.argsort, all at once", lambda: [tube_mask(clips, **MASK, seed=1, epoch=1, ids=ids)]),
    ):
        yield Pair(
            "tube_mask",
            versus,
            "tracks",
            TRACKS,
            lambda: ops.tube_mask(device_clips, **MASK, seed=1, epoch=1, ids=device_ids, impl=IMPLS[device.type]),
            usual,
            lambda result, expected: all(
                torch.equal(own.cpu(), torch.cat(column))
                for own, column in zip(result, zip(*expected, strict=True), strict=True)
            ),
        )


def measure(pair: Pair, device: torch.device, threads: int, repeat: int) -> Row:
    """A row, see `benchmarks._results.FIELDS`."""
    row = {"what": pair.what, "threads": threads, "versus": pair.versus}
    progress(f"{pair.what}, {threads} threads, against {pair.versus}")
    try:
        if not pair.equal(pair.call(), pair.usual()):
            return row | {"refused": f"{IMPLS[device.type]} differs from {pair.versus}"}
    except Exception as error:  # one that fails keeps no other from being measured
        return row | {"refused": str(error) if isinstance(error, errors.S2vfastError) else one_line(error)}
    rounds = [([timed(pair.call, device) for _ in range(CALLS)], timed(pair.usual, device)) for _ in range(repeat)]
    times = _results.percentiles([ms for our_times, _ in rounds for ms in our_times])
    return row | {
        **times,
        "other_p50": digits(statistics.median(usual for _, usual in rounds)),
        "ratio": digits(statistics.median(usual / statistics.median(our_times) for our_times, usual in rounds)),
        "unit": pair.unit,
        "per_second": digits(1000 * pair.count / times["p50"]),
    }


def measure_all(device: torch.device, repeat: int) -> Iterator[Row]:
    """All rows."""
    most = torch.get_num_threads()
    try:
        for threads in sorted({1, most}) if device.type == "cpu" else (0,):
            torch.set_num_threads(threads or most)
            for pairs in (clip_sampling, tube_masking) if threads < 2 else (tube_masking,):
                for pair in pairs(device):
                    yield measure(pair, device, threads, repeat)
    finally:
        torch.set_num_threads(most)


def results(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The result, after each of its rows."""
    device = begin(options.device)
    facts, rows = _results.device_facts(device), []
    for row in measure_all(device, options.repeat):
        rows.append(row)
        yield _results.result("data", rows, facts)


def line(row: Row) -> str:
    """A row as a line."""
    head = f"{row['what']:<12}{row['threads']:>2} threads  "
    if "refused" in row:
        return f"{head}NOT TIMED: {row['refused']}"
    times = f"{row['p50']:9.4f} ms ({row['p20']:g} to {row['p80']:g}), {row['per_second']:g} {row['unit']}/s"
    return f"{head}{times}; {row['versus']} takes {row['ratio']:g}x"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if something differs, 2 if it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_data", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=tuple(IMPLS))
    parser.add_argument("--repeat", type=positive, default=7, help="interleaved rounds")
    add_output(parser, "data")
    options = parser.parse_args(arguments)
    return finish(results(options), options, line)


if __name__ == "__main__":
    sys.exit(main())
