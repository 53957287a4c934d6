"""Measure, and refuse what is wrong: operations, steps, data, cold start, and what was compiled ahead of time.

    python -m benchmarks.run [WHAT ...] [--out benchmarks/results] [--report]
    python -m benchmarks.run [STEM ...] --compare HEAD~1 [--fail-if-slower 5%]

WHAT is an operation, or ops (all of them), step, data, cold_start, static; everything where it is left out. An
implementation or baseline that does not agree with the reference, in this run, at every shape that is measured, is not
timed: its row says why, and the exit code is 1. Implementations take turns, so that what else the machine does slows
all of them; a ratio is the median over these turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import _ceilings, _results, compare
from benchmarks._ops import load, measure, roofline
from benchmarks._program import begin, dtype_of, progress
from s2vfast import errors
from s2vfast.inputs import OPS, SHAPES

# What has a program of its own, and what that is given on a CPU and on a GPU.
PROGRAMS: dict[str, dict[str, list[str]]] = {
    "step": {
        "cpu": "--config ntu60 --batch 2 --impl torch --vs reference --empty-bodies compute share "
        "--sweep batch tokens ranks --memory --repeat 6".split(),
        "cuda": "--device cuda --config ntu60 --batch 64 --impl triton --vs torch torch:compile reference "
        "--empty-bodies compute share --sweep batch ranks --repeat 12".split(),  # within the minutes of `make gpu`
    },
    "data": {"cpu": [], "cuda": ["--device", "cuda"]},
    "cold_start": {"cpu": [], "cuda": ["--device", "cuda"]},
}
KINDS = ("ops", *PROGRAMS, "static")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 where something was refused, 2 where it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join((*KINDS, *OPS))} (default: everything)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, help="default: those an operation names")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU")
    parser.add_argument("--impl", nargs="+", help="implementations and baselines (default: all)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for a shape and pass; with --compare, of each case")
    parser.add_argument("--out", type=Path, help="folder to write DEVICE/KIND.json to")
    parser.add_argument("--report", action="store_true", help="write docs/performance.md from what is in --out")
    parser.add_argument("--compare", metavar="REV", help="measure against another revision, interleaved")
    parser.add_argument("--fail-if-slower", type=compare.per_cent, metavar="5%", help="with --compare: exit code 1")
    asked = parser.parse_args(arguments)
    what = asked.what or list(KINDS)
    if unknown := [name for name in what if name not in (*KINDS, *OPS)]:
        parser.error(f"nothing is called {unknown[0]!r}; there are {', '.join((*KINDS, *OPS))}")
    if asked.fail_if_slower is not None and not asked.compare:
        parser.error("--fail-if-slower needs --compare REV")
    if asked.report and not asked.out:
        parser.error("--report needs --out")
    try:
        device = begin(asked.device)
        stems = [stem for stem in OPS if stem in what or "ops" in what]
        if asked.compare:
            return compare.main(asked.compare, stems or list(OPS), asked, device)
        code = 0
        if stems:
            code = max(code, operations(stems, device, asked))
        for name in PROGRAMS:
            if name in what:
                code = max(code, program(name, device, asked.out))
        if "static" in what:
            code = max(code, static(asked.out))
        if asked.report:
            code = max(code, _call([sys.executable, "-m", "benchmarks.report", "--results", str(asked.out)]))
        return code
    except errors.S2vfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def operations(stems: list[str], device: torch.device, asked: argparse.Namespace) -> int:
    """Measure operations, print their rows, write ops.json; 1 if something was refused."""
    dtype, facts = dtype_of(asked.dtype, device), _results.device_facts(device)
    if asked.out:
        _keep(asked.out / facts["slug"] / "ops.json", stems, asked)
    ceilings = _ceilings.ceilings(device)
    rows: list[dict[str, Any]] = []

    def write(whole: bool) -> None:
        if asked.out:
            _results.write(_results.result("ops", rows, facts, ceilings), asked.out, whole=whole)

    for stem in stems:
        bench = load(stem)
        names = [name for name in bench.shapes if not asked.shape or name in asked.shape] or asked.shape
        found = measure(bench, names, dtype, device, asked.seconds, ceilings, asked.impl, progress)
        for row in found:
            print(line(row), flush=True)
        rows += found
        write(whole=False)  # after each, so that what is stopped has lost nothing
    # A machine that others use reaches more at times: the most it did, before or after, is what rows are held to.
    again = _ceilings.ceilings(device)
    ceilings = {name: max(value, again[name]) for name, value in ceilings.items()}
    print("  ".join(f"{name} {value:.4g}" for name, value in ceilings.items()), flush=True)
    rows = [row if "refused" in row else row | roofline(row, row["p50"], ceilings) for row in rows]
    write(whole=True)
    return int(any("refused" in row for row in rows))


def _keep(path: Path, stems: list[str], asked: argparse.Namespace) -> None:
    """Raise where rows that are there would be lost: those of other operations, or of what is not measured now."""
    if not path.exists():
        return
    others = {row["stem"] for row in _results.read(path)["rows"]} - set(stems)
    narrowed = [f"--{name}" for name in ("shape", "dtype", "impl") if getattr(asked, name)]
    if others or narrowed:
        lost = f"rows of {', '.join(sorted(others))}" if others else f"what {' and '.join(narrowed)} leaves out"
        raise errors.ConfigError(
            f"{path}: holds whole results, which would lose {lost}; give another --out, or measure all operations"
        )


def line(row: dict[str, Any]) -> str:
    """A row of an operation as a line."""
    head = f"{row['stem']:<15}{row['impl']:<20}"
    if "refused" in row:
        return f"{head}NOT TIMED: {row['refused']}"
    times = f"{row['p50']:9.3f} ms ({row['p20']:.3f} to {row['p80']:.3f})"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:7.2f}x torch"
    where = f"{row['shape']:<15}{row['pass']:<17}{row['state']:<6}{row['threads'] or '':>2}"
    return f"{head}{where}{times}{ratio}  {row['roofline']:.0%} of {row['bound']}"


def program(name: str, device: torch.device, out: Path | None) -> int:
    """Run a benchmark that has a program of its own; its exit code."""
    command = [sys.executable, "-m", f"benchmarks.bench_{name}", *PROGRAMS[name][device.type]]
    progress(" ".join(["python", *command[1:]]))
    return _call([*command, *(["--out", str(out)] if out else [])])


def _call(command: list[str]) -> int:
    """A command's exit code; 128 and more where a signal ended it, as a shell has it."""
    code = subprocess.call(command, cwd=_results.ROOT)
    return code if code >= 0 else 128 - code


def static(out: Path | None) -> int:
    """Compile all kernels for all architectures and keep what the compiler says; 1 if a gate fails."""
    from s2vfast.kernels import aot

    progress("compiling all kernels for all architectures")
    found = aot.compile_kernels(list(OPS), list(aot.ARCHES), list(aot.DTYPES), list(aot.MAIN_SHAPES))
    rows = [
        {
            "stem": kernel.stem,
            "kernel": kernel.kernel,
            "arch": kernel.arch,
            "dtype": kernel.dtype,
            "shapes": list(kernel.shapes),
            "registers": kernel.registers,
            "spills": kernel.stack + kernel.local,
            "shared": kernel.shared,
            "instructions": kernel.instructions,
            "options": kernel.options,
            "wrong": list(kernel.wrong),
        }
        for kernel in found
    ]
    bad = [row for row in rows if row["wrong"]]
    print(f"{len(rows)} kernels compiled, {len(bad)} fail a gate")
    for row in bad:
        print(f"  {row['stem']} {row['kernel']} sm_{row['arch']} {row['dtype']}: {'; '.join(row['wrong'])}")
    if out:
        nowhere = {"name": "none: compiled ahead of time", "slug": _results.STATIC, "type": "static", "threads": 0}
        progress(f"written: {_results.write(_results.result('static', rows, nowhere), out)}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
