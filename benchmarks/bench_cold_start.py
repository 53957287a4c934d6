"""From the start of a process to the end of its first training step, in seconds.

    python -m benchmarks.bench_cold_start [--device cuda] [--config ntu60 --batch 2] [--impl torch] [--repeat 5]
                                          [--json] [--out benchmarks/results]

Every measurement is a process of its own, which begins where this one has started it: the interpreter counts. Clips are
made up, no store is opened, and the files that are imported have been read once before. Phases, medians: ``imports``;
``build``, which is clips, model and optimizer, on a GPU also its context; ``first step``. ``second step``, to compare
with, is no part of the whole; on a GPU it is the one that is captured. Where Triton's kernels or torch.compile take
part, a process with a cache that is ``empty`` comes first, and those after it have the same cache, now ``filled``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import _results
from benchmarks._program import begin, progress, show, written
from benchmarks._step import Setting, contestant, label, load
from benchmarks._step_processes import last_line
from s2vfast import errors
from s2vfast.config import Config

PHASES = ("imports", "build", "first step")
MORE = "second step"
# Configs and clips a step.
DEFAULTS = {"cpu": (("nwucla", 32), ("ntu60", 2)), "cuda": (("ntu60", 64),)}
IMPLS = {"cpu": "torch", "cuda": "triton"}
REPEAT = {"cpu": 5, "cuda": 2}
EMPTY = 1  # processes that begin with an empty cache, which takes long to fill
BEGUN = "S2VFAST_BENCHMARK_BEGUN"  # the environment's: when the process was started, in seconds of time.time()


def caches(impl: str, device: torch.device) -> tuple[str, ...]:
    """The states of the compilers' caches that are measured, in this order."""
    compiles = impl.endswith(":compile") or (device.type == "cuda" and "triton" in impl)
    return ("empty", "filled") if compiles else ("none",)


def start(setting: Setting, impl: str, cache: str | None = None) -> dict[str, float]:
    """Seconds by phase of a new process.

    Args:
        setting: of the step.
        impl: a contestant of `benchmarks._step`.
        cache: the folder of the compilers' caches; None: where they are.

    Raises:
        TrainingError: the process failed.
    """
    asked = {"config": setting.config.to_dict(), "clips": setting.clips, "device": str(setting.device), "impl": impl}
    env = dict(os.environ)
    if cache is not None:
        env |= {"TRITON_CACHE_DIR": f"{cache}/triton", "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
    command = [sys.executable, "-m", "benchmarks.bench_cold_start", "--child", json.dumps(asked)]
    env[BEGUN] = repr(time.time())
    done = subprocess.run(command, cwd=_results.ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise errors.TrainingError(last_line(done.stderr))
    return json.loads(done.stdout.strip().splitlines()[-1])


def child(asked: dict[str, Any]) -> dict[str, float]:
    """What a process measures of itself."""
    times = [float(os.environ[BEGUN]), time.time()]
    setting = Setting(Config.from_dict(asked["config"]), asked["clips"], torch.device(asked["device"]))
    advance = contestant(setting, asked["impl"])
    if setting.device.type == "cuda":
        torch.cuda.synchronize()
    times.append(time.time())
    for _ in range(2):
        advance()
        times.append(time.time())
    return {
        name: after - before for name, (before, after) in zip((*PHASES, MORE), itertools.pairwise(times), strict=True)
    }


def measure(settings: dict[str, Setting], impl: str, repeat: int) -> Iterator[list[dict[str, Any]]]:
    """Rows of an implementation, for settings by name, as far as they are known: after each round, in which all take
    turns."""
    device = next(iter(settings.values())).device
    states = caches(impl, device)
    found: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in itertools.product(settings, states)}
    refused: dict[str, str] = {}
    subprocess.run([sys.executable, "-c", "import benchmarks.bench_cold_start"], cwd=_results.ROOT, check=True)
    with tempfile.TemporaryDirectory() as home:
        for number in range(repeat):
            for name, setting in settings.items():
                if name in refused:
                    continue
                progress(f"{impl}, {name}: {number + 1} of {repeat}")
                try:
                    for state in states:
                        if state != "empty" or number < EMPTY:
                            cache = None if state == "none" else f"{home}/{name}"
                            found[name, state].append(start(setting, impl, cache))
                except errors.TrainingError as error:
                    refused[name] = str(error)
                    progress(f"{impl}, {name}: {error}")
            yield [
                row_of({"impl": impl, "config": name, "clips": settings[name].clips, "cache": state}, phases, refused)
                for (name, state), phases in found.items()
            ]


def row_of(row: dict[str, Any], phases: list[dict[str, float]], refused: dict[str, str]) -> dict[str, Any]:
    """A row of seconds by phase of several processes, see `benchmarks._results.FIELDS`."""
    if row["config"] in refused and not phases:  # what others of its kind took is known
        return row | {"refused": refused[row["config"]]}
    totals = [sum(times[phase] for phase in PHASES) for times in phases]
    middle = {phase: statistics.median(times[phase] for times in phases) for phase in (*PHASES, MORE)}
    return row | _results.percentiles(totals) | {"phases": {phase: round(s, 4) for phase, s in middle.items()}}


def line(row: dict[str, Any]) -> str:
    """A row as a line."""
    head = f"{row['impl']:<16}{row['config']}, {row['clips']} clips, cache {row['cache']:<8}"
    if "refused" in row:
        return f"{head}NOT MEASURED: {row['refused']}"
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["phases"].items())
    return f"{head}{row['p50']:8.2f} s ({row['p20']:g} to {row['p80']:g}): {phases}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if a process failed, 2 if it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_cold_start", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--config", help="a preset or a YAML file (default: nwucla and ntu60, on a GPU ntu60)")
    parser.add_argument("--batch", type=int, help="clips a step, with --config (default: 2)")
    parser.add_argument("--impl", help="what is measured (default: torch, on a GPU triton)")
    parser.add_argument("--repeat", type=int, help="processes, beside one with an empty cache (default: 5, on a GPU 2)")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of lines")
    parser.add_argument("--out", type=Path, help="folder to write DEVICE/cold_start.json to")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        print(json.dumps(child(json.loads(given.child))), flush=True)
        return 0
    if given.batch is not None and not given.config:
        parser.error("--batch: needs --config, whose clips they are")
    for name in ("batch", "repeat"):
        if (value := getattr(given, name)) is not None and value < 1:
            parser.error(f"--{name}: {value}; 1 or more is expected")
    try:
        made = written(results(given), given.out)
    except errors.S2vfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return show(made, line, given.json)


def results(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The result of a command line, after each round."""
    device = begin(given.device)
    impl = given.impl or IMPLS[device.type]
    label(impl, device)
    configs = ((given.config, given.batch or 2),) if given.config else DEFAULTS[device.type]
    settings = {Path(name).stem: Setting(load(name), clips, device) for name, clips in configs}
    for rows in measure(settings, impl, given.repeat or REPEAT[device.type]):
        yield _results.result("cold_start", rows, _results.device_facts(device))


if __name__ == "__main__":
    sys.exit(main())
