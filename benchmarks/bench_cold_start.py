"""From the start of a process to the end of its first training step, in seconds.

    python -m benchmarks.bench_cold_start [--device cuda] [--config ntu60 --batch 2] [--impl torch] [--repeat 5]
                                          [--json] [--out benchmarks/results]

Every measurement is a process of its own, timed from its start: the interpreter counts. Clips are made up, no store is
opened, and the files that are imported have been read and compiled to bytecode before. Phases, medians: ``imports``;
``build``, which is clips, model and optimizer, on a GPU also its context; ``first step``. ``second step`` is no part of
the whole; on a GPU it is the one that is captured. Where Triton's kernels or torch.compile take part, a process with a
cache that is ``empty`` comes first, and those after it have the same cache, now ``filled``.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import _results, _train_step
from benchmarks._program import add_output, begin, finish, positive, progress
from benchmarks._results import Row
from benchmarks._train_step import PHASES, Setting, label
from s2vfast import errors

# Configs and clips a step.
DEFAULTS = {"cpu": (("nwucla", 32), ("ntu60", 2)), "cuda": (("ntu60", 64),)}
IMPLS = {"cpu": "torch", "cuda": "triton"}
REPEAT = {"cpu": 5, "cuda": 2}


def caches(impl: str, device: torch.device) -> tuple[str, ...]:
    """The states of the compilers' caches that are measured, in this order."""
    compiles = impl.endswith(":compile") or (device.type == "cuda" and "triton" in impl)
    return ("empty", "filled") if compiles else ("none",)


def measure(settings: dict[str, Setting], impl: str, repeat: int) -> Iterator[list[Row]]:
    """Rows of an implementation for settings by name, after each round, in which all take turns."""
    device = next(iter(settings.values())).device
    states = caches(impl, device)
    samples: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in itertools.product(settings, states)}
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as home:
        # An installed package has its bytecode; compiling ours takes half a second where Python may not keep it.
        bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{home}/bytecode"}
        command = [sys.executable, "-c", "import benchmarks._train_step"]
        subprocess.run(command, cwd=_results.ROOT, env={**os.environ, **bytecode}, check=True)
        for number, (name, setting) in itertools.product(range(repeat), settings.items()):
            progress(f"{impl}, {name}: {number + 1} of {repeat}")
            for state in states if name not in refused else ():
                if state == "empty" and number:
                    continue  # it takes long to fill
                folders = {
                    "TRITON_CACHE_DIR": f"{home}/{name}/triton",
                    "TORCHINDUCTOR_CACHE_DIR": f"{home}/{name}/inductor",
                }
                try:
                    answer = _train_step.ask(setting, impl, "phases", bytecode | ({} if state == "none" else folders))
                    samples[name, state].append(answer)
                except errors.TrainingError as error:
                    refused[name] = str(error)
                    progress(f"{impl}, {name}: {error}")
                    break
            yield [
                _row({"impl": impl, "config": name, "clips": settings[name].clips, "cache": state}, phases, refused)
                for (name, state), phases in samples.items()
                if phases or name in refused
            ]


def _row(row: Row, phases: list[dict[str, float]], refused: dict[str, str]) -> Row:
    """A row of seconds by phase of several processes, see `benchmarks._results.FIELDS`."""
    if not phases:
        return row | {"refused": refused[row["config"]]}
    totals = [sum(times[phase] for phase in PHASES[:3]) for times in phases]
    medians = {phase: round(statistics.median(times[phase] for times in phases), 4) for phase in PHASES}
    return row | _results.percentiles(totals) | {"phases": medians}


def line(row: Row) -> str:
    """A row as a line."""
    head = f"{row['impl']:<16}{row['config']}, {row['clips']} clips, cache {row['cache']:<8}"
    if "refused" in row:
        return f"{head}NOT MEASURED: {row['refused']}"
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["phases"].items())
    return f"{head}{row['p50']:8.2f} s ({row['p20']:g} to {row['p80']:g}): {phases}"


def results(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The result of a command line, after each process."""
    device = begin(options.device)
    impl = options.impl or IMPLS[device.type]
    label(impl, device)
    configs = ((options.config, options.batch or 2),) if options.config else DEFAULTS[device.type]
    settings = {Path(name).stem: Setting(_train_step.load(name), clips, device) for name, clips in configs}
    for rows in measure(settings, impl, options.repeat or REPEAT[device.type]):
        yield _results.result("cold_start", rows, _results.device_facts(device))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if a process failed, 2 if it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_cold_start", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--config", help="a preset or a YAML file (default: nwucla and ntu60, on a GPU ntu60)")
    parser.add_argument("--batch", type=positive, help="clips a step, with --config (default: 2)")
    parser.add_argument("--impl", help="what is measured (default: torch, on a GPU triton)")
    parser.add_argument("--repeat", type=positive, help="processes besides the one with an empty cache (default: 5, 2)")
    add_output(parser, "cold_start")
    options = parser.parse_args(arguments)
    if options.batch is not None and not options.config:
        parser.error("--batch: needs --config, whose clips they are")
    return finish(results(options), options, line)


if __name__ == "__main__":
    sys.exit(main())
