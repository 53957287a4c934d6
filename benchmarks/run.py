"""Measure, and refuse what is wrong: operations, steps, data, cold start, and what was compiled ahead of time.

    python -m benchmarks.run [WHAT ...] [--out benchmarks/results] [--report]
    python -m benchmarks.run attention --shape ntu [--gate full] [--plugin FILE.py]
    python -m benchmarks.run [OP ...] --compare HEAD~1 [--fail-if-slower 5%]

WHAT is an operation, or ops (all of them), step, data, cold_start, static; the default is everything. What does not
agree with the reference in this run is not timed: its row has the reason, and the exit code is 1. The comparison is at
short sequences of the widths that are measured (with ``--gate full`` at the measured shapes, which takes minutes); what
is timed is compared with ``torch`` at its full size. Implementations take turns, so that what else the machine does
slows all of them; a ratio is the median over these turns. ``FILE.py`` is run before: what it gives to
`s2vfast.ops.register_impl` is compared and measured like the package's own.
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
from benchmarks._harness import measure, roofline
from benchmarks._program import begin, dtype_of, progress
from benchmarks.cases import CASES
from s2vfast import errors
from s2vfast.config.registry import load_plugin
from s2vfast.inputs import SHAPES

# What has a program of its own, and its options on a CPU and on a GPU.
PROGRAMS: dict[str, dict[str, list[str]]] = {
    "step": {
        "cpu": "--config ntu60 --batch 2 --impl torch --vs reference --empty-bodies compute share "
        "--sweep batch tokens --memory --repeat 6".split(),
        "cuda": "--device cuda --config ntu60 --batch 64 --impl triton --vs torch torch:compile reference "
        "--empty-bodies compute share --sweep batch --repeat 12".split(),  # within the minutes of `make gpu`
    },
    "data": {"cpu": [], "cuda": ["--device", "cuda"]},
    "cold_start": {"cpu": [], "cuda": ["--device", "cuda"]},
}
KINDS = ("ops", *PROGRAMS, "static")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 where something was refused, 2 where it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join((*KINDS, *CASES))} (default: everything)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, help="default: those of the operation's case")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU")
    parser.add_argument("--impl", nargs="+", help="implementations and rivals (default: all)")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE.py", help="registers implementations")
    parser.add_argument("--gate", choices=("small", "full"), default="small", help="shapes compared with the reference")
    parser.add_argument("--seconds", type=float, default=1.0, help="for a shape and pass; with --compare, of each case")
    parser.add_argument("--out", type=Path, help="folder to write DEVICE/KIND.json to")
    parser.add_argument("--report", action="store_true", help="write docs/performance.md from the results in --out")
    parser.add_argument("--compare", metavar="REV", help="measure against another revision, interleaved")
    parser.add_argument("--fail-if-slower", type=compare.per_cent, metavar="5%", help="with --compare: exit code 1")
    options = parser.parse_args(arguments)
    what = options.what or list(KINDS)
    if unknown := [name for name in what if name not in (*KINDS, *CASES)]:
        parser.error(f"nothing is called {unknown[0]!r}; there are {', '.join((*KINDS, *CASES))}")
    if options.fail_if_slower is not None and not options.compare:
        parser.error("--fail-if-slower needs --compare REV")
    if options.report and not options.out:
        parser.error("--report needs --out")
    if options.plugin and options.compare:
        parser.error("--plugin: --compare measures what both revisions have")
    try:
        for file in options.plugin:
            load_plugin(file)
        device = begin(options.device)
        op_names = [op for op in CASES if op in what or "ops" in what]
        if options.compare:
            return compare.main(options.compare, op_names or list(CASES), options, device)
        code = operations(op_names, device, options) if op_names else 0
        for name in PROGRAMS:
            if name in what:
                code = max(code, program(name, device, options.out))
        if "static" in what:
            code = max(code, static(options.out))
        if options.report:
            code = max(code, _call([sys.executable, "-m", "benchmarks.report", "--results", str(options.out)]))
        return code
    except errors.S2vfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def operations(op_names: list[str], device: torch.device, options: argparse.Namespace) -> int:
    """Measure operations, print their rows, write ops.json; 1 if something was refused."""
    dtype, facts = dtype_of(options.dtype, device), _results.device_facts(device)
    if options.out:
        _keep(options.out / facts["slug"] / "ops.json", op_names, options)
    ceilings = _ceilings.ceilings(device)
    rows: list[_results.Row] = []

    def write(complete: bool) -> None:
        if options.out:
            _results.write(_results.result("ops", rows, facts, ceilings), options.out, complete=complete)

    full = options.gate == "full"
    for op in op_names:
        case = CASES[op]
        names = [name for name in case.shapes if not options.shape or name in options.shape] or options.shape
        more = measure(case, names, dtype, device, options.seconds, ceilings, options.impl, full, progress)
        for row in more:
            print(line(row), flush=True)
        rows += more
        write(complete=False)  # after each: a run that is stopped loses nothing
    # A machine that others use reaches more at times: rows are held to the most it did, before or after.
    again = _ceilings.ceilings(device)
    ceilings = {name: max(value, again[name]) for name, value in ceilings.items()}
    print("  ".join(f"{name} {value:.4g}" for name, value in ceilings.items()), flush=True)
    rows = [row if "refused" in row else row | roofline(row, row["p50"], ceilings) for row in rows]
    write(complete=True)
    return int(any("refused" in row for row in rows))


def _keep(path: Path, op_names: list[str], options: argparse.Namespace) -> None:
    """Raise where older rows would be lost: those of other operations, or of what is not measured now."""
    if not path.exists():
        return
    lost_ops = {row["op"] for row in _results.read(path)["rows"]} & (set(CASES) - set(op_names))
    narrowed = [f"--{name}" for name in ("shape", "dtype", "impl") if getattr(options, name)]
    if lost_ops or narrowed:
        lost = f"rows of {', '.join(sorted(lost_ops))}" if lost_ops else f"what {' and '.join(narrowed)} leaves out"
        raise errors.ConfigError(
            f"{path}: holds whole results, which would lose {lost}; give another --out, or measure all operations"
        )


def line(row: _results.Row) -> str:
    """A row of an operation as a line."""
    head = f"{row['op']:<15}{row['impl']:<20}"
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
    """Compile all kernels for all architectures and keep the compiler's numbers; 1 if a gate fails."""
    from s2vfast.kernels import aot

    progress("compiling all kernels for all architectures")
    compiled = aot.compile_kernels(aot.with_kernels(), list(aot.ARCHES), list(aot.DTYPES), list(aot.MAIN_SHAPES))
    same = ("kernel", "arch", "dtype", "shapes", "registers", "shared", "instructions", "options", "wrong")
    rows: list[dict[str, Any]] = [
        {"op": kernel.op} | {name: getattr(kernel, name) for name in same} | {"spills": kernel.stack + kernel.local}
        for kernel in compiled
    ]
    bad = [row for row in rows if row["wrong"]]
    print(f"{len(rows)} kernels compiled, {len(bad)} fail a gate")
    for row in bad:
        print(f"  {row['op']} {row['kernel']} sm_{row['arch']} {row['dtype']}: {'; '.join(row['wrong'])}")
    if out:
        progress(f"written: {_results.write(_results.result('static', rows, _results.STATIC), out)}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
