"""A whole training step: s2vfast's against others, same start, interleaved in one process.

    python -m benchmarks.bench_step --config ntu60 --batch 2 --impl torch --vs reference [--empty-bodies compute share]
                                    [--sweep batch tokens ranks] [--memory] [--growth 8] [--repeat 8] [--device cuda]
                                    [--json] [--out benchmarks/results]

A contestant is ``reference`` (the published step, eager; on a GPU under autocast to bfloat16, as published), or an
implementation of s2vfast's engine: ``torch``, ``triton``, ``auto``, and with ``:eager``, ``:graph`` or ``:compile`` its
train.mode. A step is masks, forward, backward, clipping, AdamW and EMA on clips that are there already. Before
anything is timed, the first losses must agree with the last contestant's: to 1e-5 in float32, to 1e-2 where operands
are bfloat16; a contestant whose losses differ is not timed, its row says why, and the exit code is 1.

``floor`` is the same for all contestants: the least time of the step with all exact savings, by
s2vfast.train.cost_model and what the device reaches in this run (`benchmarks._ceilings`), over p50. ``gflop`` is what a
contestant computes: the published step makes no saving. The rate of operations is also set against a large matrix
product's, interleaved.

A sweep varies clips, frames (as ``tokens``, L) or processes, of the first contestant and, where a step is no larger
than the main one or on a GPU, the last one; the point that is the main row is that row again. Ranks share one global
batch under torchrun, the CPU's threads too; their times are taken inside them. ``breakdown`` is taken in steps that
are not timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks import _ceilings, _results, _step, _step_processes
from benchmarks._program import begin, progress, said, written
from benchmarks._step import CHECKED, NO_ROOM, Run, Setting, label
from benchmarks._step_profile import look
from benchmarks._timer import timed
from s2vfast import errors

SWEEPS = ("batch", "tokens", "ranks")
CLIPS = {"cpu": (1, 2, 4, 8), "cuda": (8, 16, 32, 64, 128)}
FRAMES = (1 / 3, 2 / 3, 1, 2)  # times the config's
RANKS = (1, 2)  # on a CPU; on GPUs powers of two
Row = dict[str, Any]
T = TypeVar("T")


def product(device: torch.device) -> tuple[Callable[[], Any], float]:
    """A large matrix product and its operations: float32 on a CPU, bfloat16 on a GPU."""
    n, dtype = _ceilings.SIDE[device.type], _ceilings.DTYPES[device.type][-1]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b, 2.0 * n**3


@dataclass(frozen=True)
class Bench:
    """What is measured, and against what."""

    main: Setting
    called: str  # the config
    names: list[str]  # contestants; ratios are to the last
    repeat: int  # rounds
    ceilings: dict[str, float]

    @property
    def device(self) -> torch.device:
        """Where."""
        return self.main.device

    def row(self, run: Run, base: Run | None, sweep: str = "main", ranks: int = 1) -> Row:
        """A contestant's row; ``base``: the last contestant, where it was timed in turns with this one."""
        setting, last = run.setting, self.names[-1]
        row = {
            "impl": run.name,
            "config": self.called,
            "sweep": sweep,
            "clips": setting.clips,
            "tokens": setting.tokens,
            "ranks": ranks,
            "empty_bodies": setting.config.objective.empty_bodies,
            "precision": setting.precision(run.name),
        }
        if run.refused:
            progress(f"  {run.name}: not timed: {run.refused}")
            return row | {"refused": run.refused}
        times = _results.percentiles(run.times)
        costs = setting.costs(savings=run.name != "reference")["sum"]
        least = setting.floor(self.ceilings) if ranks == 1 else None
        ratio = base and statistics.median(b / a for a, b in zip(run.times, base.times, strict=True))
        return row | {
            **times,
            "clips_per_second": float(f"{1000 * setting.clips / times['p50']:.4g}"),
            "ratio": ratio and round(ratio, 3),
            "versus": last,
            "difference": None if run.difference is None else float(f"{run.difference:.2g}"),
            "gflop": round((costs["gemm"] + costs["attention"]) / 1e9, 3),
            "floor": least and float(f"{least / times['p50']:.4g}"),
            "peak_mib": None,
            "launches": None,
            "breakdown": {},
        }


def rows_of(bench: Bench, runs: Sequence[Run], sweep: str = "main") -> list[Row]:
    """Rows of runs at one setting that were timed in turns."""
    base = next((run for run in runs if run.name == bench.names[-1] and not run.refused), None)
    return [bench.row(run, base, sweep) for run in runs]


def main_rows(bench: Bench, memory: bool) -> tuple[list[Run], list[Row]]:
    """All contestants at the main setting."""
    how = bench.main.config.objective.empty_bodies
    progress(f"{bench.main.clips} clips of {bench.called}, empty bodies: {how}: do {', '.join(bench.names)} agree?")
    runs = _step.begin(bench.main, bench.names, bench.names[-1], CHECKED)
    multiply, operations = product(bench.device)
    large: list[float] = []
    progress(f"  {bench.repeat} rounds of {', '.join(run.name for run in runs if not run.refused) or 'none of them'}")
    _step.take_turns(runs, bench.repeat, lambda: large.append(min(timed(multiply, bench.device) for _ in range(3))))
    rows = rows_of(bench, runs)
    measured = [(run, row) for run, row in zip(runs, rows, strict=True) if not run.refused]
    for run, row in measured:
        rates = [row["gflop"] * 1e9 / ms * p / operations for ms, p in zip(run.times, large, strict=True)]
        progress(
            f"  {run.name}: {row['gflop']:.1f} GFLOP a step, at {statistics.median(rates):.0%} of the product's rate"
        )
    if bench.device.type == "cuda":
        release(runs)  # what is looked at is built anew there
    for run, row in measured:
        found = attempt(f"where {run.name}'s time goes", lambda run=run, row=row: look(run, row["p50"]))
        row["breakdown"], row["launches"] = found or ({}, None)
    release(runs)
    for run, row in measured if memory else ():
        name = run.name
        row["peak_mib"] = attempt(f"what memory {name} takes", lambda name=name: _step_processes.peak(bench.main, name))
    return runs, rows


def attempt(what: str, find: Callable[[], T]) -> T | None:
    """What is found beside the times; None where that fails, which costs no more than itself."""
    progress(f"  {what}")
    try:
        return find()
    except Exception as error:
        progress(f"  {what}: not found: {said(error)}")
        return None


def release(runs: Sequence[Run]) -> None:
    """Let go of what contestants hold: it is for those that come."""
    for run in runs:
        run.advance = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def points(main: Setting, sweep: str, clips: Iterable[int]) -> list[Setting]:
    """Where a sweep over batch (so many clips) or tokens measures."""
    if sweep == "batch":
        return [replace(main, clips=count) for count in sorted(clips)]
    unit = main.config.model.segment_frames * main.config.mask.tube_len
    frames = {max(round(main.config.data.frames * share / unit), 1) * unit for share in FRAMES}
    return [main.changed("data", frames=count) for count in sorted(frames)]


def series(bench: Bench, sweep: str, settings: list[Setting], done: Sequence[Run], main: Sequence[Row]) -> list[Row]:
    """Rows of a sweep over batch or tokens.

    Args:
        bench: what is measured.
        sweep: its name.
        settings: its points.
        done: runs at the main setting.
        main: their rows.
    """
    on_gpu = bench.device.type == "cuda"
    fit = [run.name for run in done if not run.refused]
    few = [name for name in dict.fromkeys((bench.names[0], bench.names[-1])) if name in fit]

    def begin(setting: Setting) -> list[Run]:
        small = setting.clips * setting.tokens <= bench.main.clips * bench.main.tokens
        names = few if on_gpu or small else [name for name in few if name == bench.names[0]]
        progress(f"{sweep}: {setting.clips} clips of {setting.tokens} tokens a track: {', '.join(names)}")
        # On a GPU the first steps are also those that capture.
        return _step.begin(setting, names, bench.names[-1], CHECKED if on_gpu else 1, alone=True)

    rows: list[Row] = []
    # All points take turns, where there is room for all of them.
    for group in [[setting] for setting in settings] if on_gpu else [settings]:
        runs = {number: begin(setting) for number, setting in enumerate(group) if setting != bench.main}
        every = list(itertools.chain(*runs.values()))
        _step.take_turns(every, max(bench.repeat // 2, 2))
        for number in range(len(group)):
            again = [{**row, "sweep": sweep} for row in main if row["impl"] in few]
            rows += rows_of(bench, runs[number], sweep) if number in runs else again
        release(every)
    return rows


def ranks_rows(bench: Bench, done: Sequence[Run]) -> list[Row]:
    """Rows of the sweep over ranks: the first contestant's, if it runs; ``done`` are the runs at the main setting."""
    ours, base = done[0], done[-1]
    on_gpu, devices = bench.device.type == "cuda", torch.cuda.device_count()
    if ours.refused or ours.name == "reference" or (on_gpu and devices < 2):
        why = "this machine has one GPU" if on_gpu and devices < 2 else f"{ours.name} does not run on several"
        progress(f"ranks: skipped: {why}")
        return []
    rows = []
    for world in [2**n for n in range(devices.bit_length())] if on_gpu else RANKS:
        if bench.main.clips % world:
            progress(f"ranks: {world} skipped: {bench.main.clips} clips cannot be shared evenly")
            continue
        progress(f"ranks: {world} of {ours.name}")
        run = Run(bench.main, ours.name)
        try:
            run.losses, run.times = _step_processes.ranks(
                bench.main, ours.name, world, CHECKED, max(bench.repeat // 2, 2)
            )
            run.agree(base)
        except errors.TrainingError as error:
            run.refused = str(error)
        rows.append(bench.row(run, None, "ranks", world))
    return rows


def grown(bench: Bench, rows: Sequence[Row], most: int) -> None:
    """Say what a step of ``most`` clips takes of time, against one clip, and of memory."""
    found = {row["clips"]: row for row in rows if row["impl"] == bench.names[0] and "refused" not in row}
    if not {1, most} <= set(found):
        return
    largest = replace(bench.main, clips=most)
    peaks = {
        name: attempt(f"what memory {name} takes", lambda name=name: _step_processes.peak(largest, name))
        for name in bench.names[:: len(bench.names) - 1]
    }
    found[most]["peak_mib"] = peaks[bench.names[0]]
    memory = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in peaks.items() if mib is not None)
    progress(f"{most} clips take {found[most]['p50'] / found[1]['p50']:.2f} times what one takes; memory: {memory}")


def line(row: Row) -> str:
    """A row as a line."""
    head = (
        f"{row['impl']:<16}{row['sweep']:<7}{row['clips']:>4} clips, {row['tokens']:>4} tokens, {row['ranks']} ranks, "
    )
    head += f"{row['empty_bodies']:<8}"
    if "refused" in row:
        return f"{head}NOT TIMED: {row['refused']}"
    times = f"{row['p50']:10.3f} ms ({row['p20']:.3f} to {row['p80']:.3f}), {row['clips_per_second']:g} clips/s"
    return head + times + ("" if row["ratio"] is None else f", {row['versus']} takes {row['ratio']:.2f}x")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_step", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ntu60", help="a preset or a YAML file")
    parser.add_argument("--batch", type=int, default=2, help="clips a step")
    parser.add_argument("--impl", default="torch", help="what is measured")
    parser.add_argument(
        "--vs", nargs="+", default=["reference"], help="what it is measured against; ratios are to the last"
    )
    parser.add_argument(
        "--empty-bodies",
        nargs="+",
        default=["compute"],
        choices=("compute", "share", "drop"),
        help="objective.empty_bodies, one after the other; sweeps are of the first",
    )
    parser.add_argument("--sweep", nargs="+", default=[], choices=SWEEPS, help="what else to vary")
    parser.add_argument("--memory", action="store_true", help="also each contestant's peak memory")
    parser.add_argument("--growth", type=int, help="also the time and peak memory of so many clips")
    parser.add_argument("--repeat", type=int, default=8, help="interleaved rounds; sweeps do half as many")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    parser.add_argument("--out", type=Path, help="folder to write DEVICE/step.json to")
    given = parser.parse_args(arguments)
    for name in ("batch", "repeat", "growth"):
        if (value := getattr(given, name)) is not None and value < 1:
            parser.error(f"--{name}: {value}; 1 or more is expected")
    return given


def measure(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The result of a command line, after each of its parts: what is stopped has lost nothing."""
    device = begin(given.device)
    names = [label(name, device) for name in (given.impl, *given.vs)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise errors.ConfigError(f"--vs: {twice[0]} is there twice")
    setting = Setting(_step.load(given.config), given.batch, device)
    progress("what the device reaches")
    ceilings = _ceilings.ceilings(device)
    progress("  " + "  ".join(f"{name} {value:g}" for name, value in ceilings.items()))
    rows: list[Row] = []

    def so_far() -> dict[str, Any]:
        return _results.result("step", rows, _results.device_facts(device), ceilings)

    for number, how in enumerate(dict.fromkeys(given.empty_bodies)):
        main = setting.changed("objective", empty_bodies=how)
        bench = Bench(main, Path(given.config).stem, names, given.repeat, ceilings)
        done, found = main_rows(bench, given.memory)
        rows += found
        yield so_far()
        if number:
            continue
        clips = {*(CLIPS[device.type] if "batch" in given.sweep else ()), *((1, given.growth) if given.growth else ())}
        if clips:
            more = series(bench, "batch", points(main, "batch", clips), done, found)
            rows += more
            if given.growth:
                grown(bench, more, given.growth)
        if "tokens" in given.sweep:
            rows += series(bench, "tokens", points(main, "tokens", ()), done, found)
        if "ranks" in given.sweep:
            rows += ranks_rows(bench, done)
        yield so_far()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if a contestant was wrong, 2 if it cannot be done."""
    given = parsed(arguments)
    try:
        made = written(measure(given), given.out)
    except errors.S2vfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(made) if given.json else "\n".join(map(line, made["rows"])))
    # What has no room is no mistake.
    return int(any(row.get("refused", NO_ROOM) != NO_ROOM for row in made["rows"]))


if __name__ == "__main__":
    sys.exit(main())
