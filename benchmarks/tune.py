"""Find the fastest tile shapes, warps and stages of the Triton kernels on this GPU, and write them to kernels/tuned/.

    python -m benchmarks.tune [OP ...] [--shape ntu ntu_student] [--dtype bfloat16] [--repeat 20] [--write]

Coordinate descent from what the tables say now: one option at a time is halved, doubled or changed, and kept where the
operation, forward and backward, gets faster by more than the noise. The winner must agree with the reference. Entries
go before the others of their kernel and hold for this architecture, dtype, and sizes up to the same powers of two.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks._calls import timed_call
from benchmarks._timer import Timer
from benchmarks.cases import CASES
from s2vfast import ops
from s2vfast.inputs import SHAPES, WITHOUT_GRADIENT, Shape, inputs
from s2vfast.kernels import _launch
from s2vfast.verify import verify

MARGIN = 0.99  # a change that saves less than 1 % is noise
EXACT = ("arch", "dtype", "keep", "norm")
"""Facts that are no sizes."""


def neighbours(use: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Changes of one option: sizes of blocks and warps halved and doubled, stages one more and one less."""
    for name, value in use.items():
        if isinstance(value, int) and name == "num_stages":
            values, allowed = (value - 1, value + 1), range(1, 6)
        elif isinstance(value, int) and (name == "num_warps" or name.startswith("BLOCK")):
            values, allowed = (value // 2, value * 2), range(1, 17) if name == "num_warps" else range(16, 16385)
        else:
            continue
        yield from ({**use, name: changed} for changed in values if changed in allowed)


def tune_kernel(lookup: _launch.ConfigLookup, cost: Callable[[], float]) -> tuple[dict[str, Any], float, float]:
    """The best configuration found for one kernel, its cost, and the cost at the start.

    Args:
        lookup: what the table was asked, and its answer.
        cost: milliseconds of the operation as it is configured; infinite where it cannot run.
    """
    best, start = dict(lookup.use), cost()
    lowest, tried = start, [best]
    candidates = neighbours(best)
    while (candidate := next(candidates, None)) is not None:
        if candidate in tried:
            continue
        tried.append(candidate)
        with _launch.override(lookup.op, lookup.kernel, **candidate):
            milliseconds = cost()
        if milliseconds < lowest * MARGIN:
            best, lowest, candidates = candidate, milliseconds, neighbours(candidate)
    return best, lowest, start


def tune(op: str, shape: Shape, dtype: torch.dtype, device: torch.device, repeat: int) -> Iterator[dict[str, Any]]:
    """Tune every kernel that an operation uses at a shape, one after the other."""
    timer = Timer(device)
    function = functools.partial(getattr(ops, op), impl="triton")
    call = timed_call(function, inputs(op, shape, dtype=dtype, device=device), op not in WITHOUT_GRADIENT)

    def cost() -> float:
        try:
            call()
            return statistics.median(timer(call) for _ in range(repeat))
        except Exception as error:  # too much shared memory or too many registers: Triton has several kinds of error
            print(f"  cannot run: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            return float("inf")

    with _launch.record_lookups() as lookups:
        call()
    for lookup in {(q.kernel, str(q.facts)): q for q in lookups}.values():
        best, after, before = tune_kernel(lookup, cost)
        with _launch.override(op, lookup.kernel, **best):
            small = dataclasses.replace(shape, N=2)
            wrong = [row.name for row in verify(op, "triton", small, dtype=dtype, device=device) if not row.good]
        if wrong:
            print(f"  {op} {lookup.kernel}: {best} is wrong in {', '.join(wrong)}; left out", file=sys.stderr)
            continue
        yield {"kernel": lookup.kernel, "when": condition(lookup.facts), "use": best, "ms": [before, after]}


def condition(facts: dict[str, Any]) -> dict[str, Any]:
    """The shape class of some facts: sizes above half of the next power of two, up to that."""
    when = {}
    for name, value in facts.items():
        if name in EXACT or not isinstance(value, int) or isinstance(value, bool):
            when[name] = value
        else:
            top = 1 << max(value - 1, 0).bit_length()
            when[name] = [top // 2 + 1, top] if value > 1 else [0, 1]
    return when


def write(op: str, entry: dict[str, Any]) -> None:
    """Put an entry before the others of its kernel; one for the same class is replaced."""
    path = _launch.table_path(op)
    table = json.loads(path.read_text("utf-8"))
    other_entries = [other for other in table[entry["kernel"]] if other["when"] != entry["when"]]
    table[entry["kernel"]] = [{"when": entry["when"], "use": entry["use"]}, *other_entries]
    lines = []
    for kernel, entries in table.items():
        rows = ",\n".join(f"    {json.dumps(item)}" for item in entries)
        lines.append(f'  "{kernel}": [\n{rows}\n  ]')
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def main() -> int:
    """Tune, print, write where options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"operations (default: all): {', '.join(CASES)}")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["ntu", "ntu_student"])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="change kernels/tuned/")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: there is no GPU that PyTorch can use; the tables stay as they are", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    for op in options.ops or CASES:
        for name in options.shape:
            for entry in tune(op, SHAPES[name], getattr(torch, options.dtype), device, options.repeat):
                before, after = entry.pop("ms")
                print(f"{op} {name} {json.dumps(entry)}  {before:.4f} -> {after:.4f} ms", flush=True)
                if options.write:
                    write(op, entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
