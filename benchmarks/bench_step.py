"""A whole training step: s2vfast's against others, same start, interleaved in one process.

    python -m benchmarks.bench_step --config ntu60 --batch 2 --impl torch --vs reference [--empty-bodies compute share]
                                    [--sweep batch tokens] [--memory] [--repeat 8] [--device cuda]
                                    [--json] [--out benchmarks/results]
    python -m benchmarks.bench_step --config ntu60 --batch 2 --impl auto --compare HEAD~1 [--repeat 8] [--json]

A contestant is ``reference`` (the published step, eager; on a GPU under autocast to bfloat16, as published), or an
implementation of s2vfast's engine: ``torch``, ``triton``, ``auto``, and with ``:eager``, ``:graph`` or ``:compile`` its
train.mode. A step is masks, forward, backward, clipping, AdamW and EMA on clips that exist already. Before anything is
timed, the first losses must agree with the last contestant's: to 1e-5 in float32, to 1e-2 where operands are bfloat16.
A contestant whose losses differ is not timed, its row has the reason, and the exit code is 1. With --json the output
has, besides the result, ``ratio``: the last contestant's time over the first one's. The published step has one mask a
clip; where a config has more, all contestants get one, and the config's name in the rows says so.

``floor`` is the same for all contestants: the least time of the step with all exact savings, by the cost model and what
the device reaches in this run (`benchmarks._ceilings`), over p50. ``gflop`` is what a contestant computes.

A sweep varies clips or frames (as ``tokens``, L), of the first contestant and, where a step is no larger than the main
one or on a GPU, the last one; the point that is the main row is that row again. ``breakdown`` is taken in steps that
are not timed. ``--compare`` sets the step of this tree against that of a revision (`benchmarks._step_versions`).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks import _ceilings, _results, _step_profile, _step_versions, _train_step
from benchmarks._calls import one_line
from benchmarks._program import add_matmul_precision, add_output, begin, finish, positive, progress
from benchmarks._results import Row, digits
from benchmarks._timer import timed
from benchmarks._train_step import Advance, Setting, label
from s2vfast import errors

CHECKED = 3  # steps whose losses are compared: the third is, on a GPU, the first that is replayed
NO_MEMORY = "it does not fit into the device's memory"
SWEEPS = ("batch", "tokens")
CLIPS = {"cpu": (1, 2, 4, 8), "cuda": (8, 16, 32, 64, 128)}
FRAMES = (1 / 3, 2 / 3, 1, 2)  # times the config's
_PRODUCTS = {"highest": "", "high": ", products high"}  # what a row says of --matmul-precision
T = TypeVar("T")


@dataclass
class Contestant:
    """A step at a setting, with its losses and times."""

    setting: Setting
    name: str
    advance: Advance | None = None
    losses: list[float] = field(default_factory=list)  # of the first steps
    difference: float | None = None  # of these from the last contestant's, relative
    times: list[float] = field(default_factory=list)  # ms
    refused: str = ""

    def begin(self, checked: int) -> None:
        """Build it and do its first steps."""
        try:
            self.advance = _train_step.contestant(self.setting, self.name)
            self.losses = [self.advance() for _ in range(checked)]
        except Exception as error:
            self.refuse(error)

    def refuse(self, error: Exception | str) -> None:
        """Leave it out: one that fails, for whatever reason, keeps no other from being measured."""
        self.advance = None  # its memory is for the others
        if isinstance(error, torch.OutOfMemoryError):
            self.refused = NO_MEMORY
        elif isinstance(error, (str, errors.S2vfastError)):
            self.refused = " ".join(str(error).split())[:300]
        else:
            self.refused = one_line(error)

    def compare(self, base: Contestant) -> None:
        """Compare the first losses with another one's; what differs is refused."""
        pairs = list(zip(self.losses, base.losses, strict=False))
        self.difference = max(abs(a / b - 1) for a, b in pairs)
        low = "bfloat16" in (self.setting.precision(self.name), base.setting.precision(base.name))
        allowed = 1e-2 if low else 1e-5
        if not self.difference <= allowed:
            own, base_losses = ([round(values[n], 6) for values in pairs] for n in (0, 1))
            self.refuse(f"its losses {own} differ from {base.name}'s {base_losses} by more than {allowed:g}")


def begin_all(
    setting: Setting, names: Sequence[str], versus: str, checked: int, alone: bool = False
) -> list[Contestant]:
    """Build contestants, do ``checked`` steps, and refuse those whose losses are not those of ``versus``.

    Where ``versus`` is none of them, losses are not compared; ``alone``: nor where it does not fit into the memory.
    """
    contestants = [Contestant(setting, name) for name in names]
    for one in contestants:
        one.begin(checked)
    base = next((one for one in contestants if one.name == versus), None)
    for one in contestants:
        if base is None or one.refused:
            continue
        if not base.refused:
            one.compare(base)
        elif not (alone and base.refused == NO_MEMORY):
            one.refuse(f"{base.name}, which its losses were to be compared with, could not run: {base.refused}")
    return contestants


def take_turns(contestants: Sequence[Contestant], repeat: int) -> Iterator[None]:
    """Time contestants that were not refused, one after the other, round after round."""
    for _ in range(repeat):
        for one in contestants:
            if not one.refused:
                try:
                    one.times.append(timed(one.advance, one.setting.device))
                except Exception as error:
                    one.refuse(error)
        yield


def release(contestants: Sequence[Contestant]) -> None:
    """Free their memory for those that follow."""
    for one in contestants:
        one.advance = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def attempt(what: str, function: Callable[[], T]) -> T | None:
    """A number that accompanies the times; None where it cannot be had, which costs no other."""
    progress(f"  {what}")
    try:
        return function()
    except Exception as error:
        progress(f"  {what}: not measured: {one_line(error)}")
        return None


@dataclass
class Bench:
    """What is measured, and against what."""

    main: Setting
    config: str  # its name
    names: list[str]  # contestants; ratios are to the last
    repeat: int  # rounds
    ceilings: dict[str, float]
    contestants: list[Contestant] = field(default_factory=list)  # at the main setting, once they were timed

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.main.device.type == "cuda"

    def row(self, one: Contestant, base: Contestant | None, sweep: str = "main") -> Row:
        """A contestant's row; ``base``: the last contestant, where it was timed in turns with this one."""
        setting = one.setting
        row = {
            "impl": one.name,
            "config": self.config,
            "sweep": sweep,
            "clips": setting.clips,
            "tokens": setting.tokens,
            "ranks": 1,
            "empty_bodies": setting.empty_bodies,
            "precision": setting.precision(one.name) + _PRODUCTS[torch.get_float32_matmul_precision()],
        }
        if one.refused:
            return row | {"refused": one.refused}
        times = _results.percentiles(one.times)
        least = setting.floor(self.ceilings)
        ratio = base and statistics.median(b / a for a, b in zip(one.times, base.times, strict=True))
        return row | {
            **times,
            "clips_per_second": digits(1000 * setting.clips / times["p50"]),
            "ratio": ratio and round(ratio, 3),
            "versus": self.names[-1],
            "difference": None if one.difference is None else digits(one.difference, 2),
            "gflop": round(setting.gflop(one.name), 3),
            "floor": least and digits(least / times["p50"]),
            "peak_mib": None,
            "launches": None,
            "breakdown": {},
        }

    def rows(self, contestants: Sequence[Contestant], sweep: str = "main") -> list[Row]:
        """Rows of contestants that were timed in turns at one setting."""
        base = next((one for one in contestants if one.name == self.names[-1] and not one.refused), None)
        return [self.row(one, base, sweep) for one in contestants]

    def main_rows(self, memory: bool) -> Iterator[list[Row]]:
        """Rows of all contestants at the main setting: after each round, and after each that accompanies them."""
        setting = self.main
        head = f"{setting.clips} clips of {self.config}, empty bodies: {setting.empty_bodies}"
        progress(f"{head}: do {', '.join(self.names)} agree?")
        self.contestants = begin_all(setting, self.names, self.names[-1], CHECKED)
        for one in self.contestants:
            progress(f"  {one.name}: {f'not timed: {one.refused}' if one.refused else f'losses {one.losses}'}")
        rows: list[Row] = []
        for _ in take_turns(self.contestants, self.repeat):
            rows = self.rows(self.contestants)
            yield rows
        measured = [pair for pair in zip(self.contestants, rows, strict=True) if not pair[0].refused]
        if self.on_gpu:
            release(self.contestants)  # they are built anew
        for one, row in measured:
            profile = functools.partial(self.profile, one, row["p50"])
            row["breakdown"], row["launches"] = attempt(f"where {one.name}'s time goes", profile) or ({}, None)
            yield rows
        release(self.contestants)
        for one, row in measured if memory else ():
            row["peak_mib"] = attempt(f"the memory of {one.name}", lambda one=one: _train_step.peak(setting, one.name))
            yield rows

    def profile(self, one: Contestant, p50: float) -> tuple[dict[str, float], int | None]:
        """`benchmarks._step_profile.breakdown` of a contestant; on a GPU built anew, without a graph."""
        advance = one.advance or _train_step.contestant(self.main, one.name, capture=False)
        return _step_profile.breakdown(advance, p50, self.on_gpu)

    def series(self, sweep: str, settings: list[Setting], main: Sequence[Row]) -> list[Row]:
        """Rows of a sweep over batch or tokens; ``main`` are the rows of the main setting."""
        timed_names = [one.name for one in self.contestants if not one.refused]
        few = [name for name in dict.fromkeys((self.names[0], self.names[-1])) if name in timed_names]

        def begin_at(setting: Setting) -> list[Contestant]:
            small = setting.clips * setting.tokens <= self.main.clips * self.main.tokens
            names = few if self.on_gpu or small else [name for name in few if name == self.names[0]]
            progress(f"{sweep}: {setting.clips} clips of {setting.tokens} tokens a track: {', '.join(names)}")
            # On a GPU the first steps are also those that capture.
            return begin_all(setting, names, self.names[-1], CHECKED if self.on_gpu else 1, alone=True)

        rows: list[Row] = []
        # All points take turns, where the memory is large enough for all of them.
        for group in [[setting] for setting in settings] if self.on_gpu else [settings]:
            points = {number: begin_at(setting) for number, setting in enumerate(group) if setting != self.main}
            every = list(itertools.chain(*points.values()))
            for _ in take_turns(every, max(self.repeat // 2, 2)):
                pass
            for number in range(len(group)):
                again = [{**row, "sweep": sweep} for row in main if row["impl"] in few]
                rows += self.rows(points[number], sweep) if number in points else again
            release(every)
        return rows

    def sweep(self, name: str, main: Sequence[Row]) -> list[Row]:
        """Rows of a sweep."""
        if name == "tokens":
            return self.series(name, self.main.with_frames(FRAMES), main)
        return self.series(name, [replace(self.main, clips=count) for count in CLIPS[self.main.device.type]], main)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The result of a command line, after each of its rounds and sweeps."""
    device = begin(options.device)
    names = [label(name, device) for name in (options.impl, *options.vs)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise errors.ConfigError(f"--vs: {twice[0]} is there twice")
    setting, config = Setting(_train_step.load(options.config), options.batch, device), Path(options.config).stem
    if "reference" in names and setting.with_one_mask() != setting:
        setting, config = setting.with_one_mask(), f"{config}, one mask a clip"
        progress(f"the published step has one mask a clip, and so have all here: {config}")
    progress("the rates that the device reaches")
    ceilings = _ceilings.ceilings(device)
    progress("  " + "  ".join(f"{name} {value:g}" for name, value in ceilings.items()))
    rows: list[Row] = []

    def record(more: Sequence[Row]) -> dict[str, Any]:
        return _results.result("step", [*rows, *more], _results.device_facts(device), ceilings)

    for number, how in enumerate(dict.fromkeys(options.empty_bodies)):
        main_setting = setting.changed("objective", empty_bodies=how)
        bench = Bench(main_setting, config, names, options.repeat, ceilings)
        main: list[Row] = []
        for main in bench.main_rows(options.memory):
            yield record(main)
        rows += main
        for name in options.sweep if number == 0 else ():
            rows += bench.sweep(name, main)
            yield record([])


def line(row: Row) -> str:
    """A row as a line."""
    head = f"{row['impl']:<16}{row['sweep']:<7}{row['clips']:>4} clips, {row['tokens']:>4} tokens, {row['ranks']} ranks"
    head = f"{head}, {row['empty_bodies']:<8}"
    if "refused" in row:
        return f"{head}NOT TIMED: {row['refused']}"
    times = f"{row['p50']:10.3f} ms ({row['p20']:.3f} to {row['p80']:.3f}), {row['clips_per_second']:g} clips/s"
    return head + times + ("" if row["ratio"] is None else f", {row['versus']} takes {row['ratio']:.2f}x")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if a contestant was wrong, 2 if it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_step", description=__doc__.splitlines()[0])
    add_matmul_precision(parser)
    parser.add_argument("--config", default="ntu60", help="a preset or a YAML file")
    parser.add_argument("--batch", type=positive, default=2, help="clips a step")
    parser.add_argument("--impl", default="torch", help="the first contestant")
    parser.add_argument("--vs", nargs="+", default=["reference"], help="the others; ratios are to the last")
    parser.add_argument(
        "--empty-bodies",
        nargs="+",
        default=["compute"],
        choices=("compute", "share", "drop"),
        help="values of objective.empty_bodies, one after the other; sweeps are of the first",
    )
    parser.add_argument("--sweep", nargs="+", default=[], choices=SWEEPS, help="what else to vary")
    parser.add_argument("--memory", action="store_true", help="also each contestant's peak memory")
    parser.add_argument("--repeat", type=positive, default=8, help="interleaved rounds; sweeps do half as many")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compare", metavar="REV", help="this tree's --impl against that of a commit, branch or tag")
    add_output(parser, "step")
    options = parser.parse_args(arguments)
    torch.set_float32_matmul_precision(options.matmul_precision)
    if options.compare:
        if options.sweep or options.memory or options.out or options.vs != ["reference"]:
            parser.error(
                "--compare: both versions' --impl is measured, and no more: leave out --vs, --sweep, --memory, --out"
            )
        try:
            compared = _step_versions.compare(options.compare, options)
        except errors.S2vfastError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(json.dumps(compared) if options.json else _step_versions.text(compared))
        return 0
    return finish(
        measure(options), options, line, ignore=NO_MEMORY, summary=lambda r: {"ratio": r["rows"][0].get("ratio")}
    )


if __name__ == "__main__":
    sys.exit(main())
