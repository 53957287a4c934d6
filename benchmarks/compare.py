"""This working tree against another revision, operation by operation: what `python -m benchmarks.run --compare` does.

    python -m benchmarks.run [OP ...] --compare HEAD~1 [--fail-if-slower 5%] [--shape ...] [--impl ...] [--seconds 1]

Each version has a process of its own (`benchmarks._versions`, `benchmarks._worker`), and both get the same inputs. The
two take turns of a few calls, A B B A A B …, so that what else the machine does slows both. What disagrees with the
reference of its own version is not timed.

Where numbers and code lie in memory, and threads on cores, changes times by some per cent for as long as a process
lives. So inputs are moved before each turn, and all is done in `ROUNDS` rounds, each with new processes.

Statistics: a call of one version and the call at the same place in the other's neighbouring turn make a pair. Pairs of
one round depend on each other, rounds do not. So a round counts with the median over its pairs of log(new / old); the
estimate is the mean over rounds, and its interval, 95 %, Student's.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks._program import dtype_of, progress
from benchmarks._versions import NotCompared, Version, install, snapshot, unpack
from benchmarks._worker import LONG_MS
from benchmarks.cases import CASES, PASSES, gate_shape
from s2vfast import errors
from s2vfast.ops import IMPLEMENTATIONS

ROUNDS = 6
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}
"""Quantile 0.975 of Student's t by degrees of freedom: rounds less one."""
_LEAST_BLOCKS = 2  # of a round: A B, B A
_MOST_CALLS = 8  # in a turn: they depend on each other, so that more of them add little
_WARM_MS = 1.0  # a turn starts with so many ms that are not counted, unless a call takes very long

Block = tuple[list[float], list[float]]  # ms of the calls of a turn: old, new


def per_cent(text: str) -> float:
    """``5%`` or ``5`` as 0.05, for argparse."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a percentage that is not negative, such as 5%, got {text!r}")
    return number / 100


@dataclass(frozen=True)
class Ratio:
    """new / old, and the ends of its interval."""

    estimate: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """The same where the interval contains 1."""
        return "slower" if self.low > 1 else "faster" if self.high < 1 else "same"

    def __str__(self) -> str:
        return f"{self.estimate:6.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(rounds: Sequence[Sequence[Block]]) -> Ratio:
    """new / old of the blocks of two to six rounds; see the module's text."""
    logs = [
        statistics.median(math.log(b / a) for old, new in blocks for a, b in zip(old, new, strict=True))
        for blocks in rounds
    ]
    mean = statistics.mean(logs)
    half = STUDENT[len(logs) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


@dataclass(frozen=True)
class Cell:
    """What is timed in both versions: a line of the table."""

    op: str
    impl: str
    shape: str
    one_pass: str  # of `PASSES`
    threads: int  # 0 on a GPU

    def __str__(self) -> str:
        return f"{self.op:<15}{self.impl:<11}{self.shape:<15}{self.one_pass:<17}{self.threads or '':>2}"


class Comparison:
    """Two versions (the other revision and this tree) and the times of both; ``folder`` is for temporary files."""

    def __init__(self, old: Version, new: Version, options: argparse.Namespace, folder: Path) -> None:
        self.old, self.new, self.options = old, new, options
        self.inputs = folder / "inputs.pt"
        self.availability: dict[str, dict[str, dict[str, list[str]]]] = {}
        self.rounds: dict[Cell, list[list[Block]]] = {}
        self.calls: dict[Cell, int] = {}  # in a turn
        self.faults = 0

    def restart(self) -> None:
        """Start new processes."""
        for version in (self.old, self.new):
            version.close()
            version.start()

    def ask_availability(self) -> None:
        """Ask both for their implementations; raises `ConfigError` where there is no s2vfast to ask."""
        for version in (self.old, self.new):
            answer = version.ask(do="hello")
            if "has" not in answer:
                raise errors.ConfigError(f"--compare: {version.name}: {next(iter(answer.values()))}")
            self.availability[version.name] = answer["has"]

    def skip(self, head: str, why: NotCompared) -> None:
        """Print what is not compared, and why."""
        self.faults += why.fault
        print(f"{head}{'NOT TIMED' if why.fault else 'cannot be compared'}: {why}", flush=True)

    def obstacles(self, op: str, impl: str) -> list[str]:
        """Why there is nothing to compare, by version."""
        reasons = []
        for version in (self.old, self.new):
            available = self.availability[version.name]
            if op not in available:
                reasons.append(f"{version.name} has no operation {op}")
            elif why := available[op].get(impl, [f"it has no {impl}"]):
                reasons.append(f"{version.name}: {'; '.join(why)}")
            elif impl == "triton" and version.device.type == "cpu":
                reasons.append("Triton's interpreter is there for its numbers, not for its speed")
        return reasons

    def plan(self, op: str) -> None:
        """List an operation's cells: what both versions have, and what is right in both."""
        case, device, impls = CASES[op], self.new.device, []
        for impl in self.options.impl or [impl for impl in IMPLEMENTATIONS if impl != "reference"]:
            reasons = self.obstacles(op, impl)
            if not reasons:
                impls.append(impl)
            elif len(reasons) < 2 or self.options.impl:  # what neither version has is no news
                self.skip(f"{op:<15}{impl:<11}", NotCompared("; ".join(dict.fromkeys(reasons))))
        most = torch.get_num_threads()
        threads = [0] if device.type == "cuda" else sorted({1, most} if "native" in impls else {most})
        shapes = self.options.shape
        for name in [name for name in case.shapes if not shapes or name in shapes] or shapes:
            sizes = dataclasses.asdict(gate_shape(case.shape(name, device), self.options.gate == "full"))
            agreeing = []
            for impl in impls:
                progress(f"{op}, {name}, {impl}: compared with the reference")
                try:
                    for version in (self.old, self.new):
                        version.need(do="verify", op=op, impl=impl, sizes=sizes)
                    agreeing.append(impl)
                except NotCompared as why:
                    self.skip(f"{op:<15}{impl:<11}{name:<15}", why)
            cells = itertools.product(case.passes, threads, agreeing)
            self.rounds |= {Cell(op, impl, name, one_pass, count): [] for one_pass, count, impl in cells}

    def measure(self) -> None:
        """One round of all cells."""
        # A shape's cells stand together and have the same inputs.
        for (op, name), cells in itertools.groupby(list(self.rounds), lambda cell: (cell.op, cell.shape)):
            case, dtype = CASES[op], getattr(torch, self.new.dtype)
            # Made on the CPU: a GPU's memory is for the processes that measure.
            torch.save(case.inputs(case.shape(name, self.new.device), dtype, torch.device("cpu")), self.inputs)
            for cell in cells:
                self.measure_cell(cell)

    def measure_cell(self, cell: Cell) -> None:
        """One round of a cell, which is given up where that fails."""
        try:
            self.rounds[cell].append(self.blocks(cell))
        except NotCompared as why:
            self.skip(str(cell), why)
            del self.rounds[cell]

    def blocks(self, cell: Cell) -> list[Block]:
        """A cell in one round: for its part of the time, `_LEAST_BLOCKS` at least."""
        request = {"op": cell.op, "impl": cell.impl, "inputs": str(self.inputs), "threads": cell.threads}
        request["backward"] = cell.one_pass == PASSES[1]
        ms = [version.need(do="prepare", **request)["ms"] for version in (self.old, self.new)]
        longest, seconds = max(*ms, 1e-4), self.options.seconds / ROUNDS
        # So many that the time suffices for twice as many blocks as there must be; from the first round on the same.
        fitting = int(1000 * seconds / (4 * _LEAST_BLOCKS) / longest)
        calls = self.calls.setdefault(cell, max(1, min(_MOST_CALLS, fitting)))
        warm = 0 if longest > LONG_MS else math.ceil(_WARM_MS / longest)
        blocks: list[Block] = []
        end = time.perf_counter() + seconds
        while len(blocks) < _LEAST_BLOCKS or len(blocks) % 2 or time.perf_counter() < end:
            turns = (self.old, self.new) if len(blocks) % 2 == 0 else (self.new, self.old)
            times = {turn.is_this_tree: turn.need(do="sample", count=calls, warm=warm)["ms"] for turn in turns}
            blocks.append((times[False], times[True]))
        return blocks

    def report(self) -> int:
        """Print the table, means, and what is too slow; the exit code."""
        limit = self.options.fail_if_slower
        ratios = {cell: ratio(rounds) for cell, rounds in self.rounds.items()}
        if ratios:
            print(f"{'':60}{'old ms':>9} {'new ms':>9}   new/old [95%]")
        for cell, result in ratios.items():
            blocks = itertools.chain.from_iterable(self.rounds[cell])
            old, new = (statistics.median(itertools.chain.from_iterable(ms)) for ms in zip(*blocks, strict=True))
            print(f"{cell}{old:9.3f} {new:9.3f}  {result}  {result.verdict}")
        for impl in IMPLEMENTATIONS:
            if logs := [math.log(result.estimate) for cell, result in ratios.items() if cell.impl == impl]:
                mean = math.exp(statistics.mean(logs))
                print(f"{impl}: new/old {mean:.3f}, geometric mean of {len(logs)} case{'s' * (len(logs) > 1)}")
        slow = {} if limit is None else {cell: result for cell, result in ratios.items() if result.low > 1 + limit}
        for cell, result in slow.items():
            print(" ".join(f"slower by more than {100 * limit:g} %: {cell} {result}".split()))
        return int(bool(slow or self.faults))


def main(rev: str, op_names: list[str], options: argparse.Namespace, device: torch.device) -> int:
    """Compare chosen operations, print; 1 where something is wrong, or slower than --fail-if-slower allows.

    Raises:
        ConfigError: there is no such revision, or nothing to compare.
    """
    if refused := [name for name in options.what if name not in (*CASES, "ops")]:
        if len(refused) == len(options.what):
            raise errors.ConfigError(f"--compare {rev}: compares operations alone, not {', '.join(refused)}; name some")
        progress(f"not compared: {', '.join(refused)}: --compare compares operations alone")
    if unknown := [name for name in options.impl or [] if name not in IMPLEMENTATIONS]:
        names = ", ".join(IMPLEMENTATIONS)
        raise errors.ConfigError(f"--compare {rev}: --impl {unknown[0]}: only implementations are compared: {names}")
    dtype = str(dtype_of(options.dtype, device)).removeprefix("torch.")
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s2vfast-compare-")))
        commit = unpack(rev, home / "old")
        snapshot(home / "new")
        install(home / "old", home / "new", device.type == "cuda")
        old = Version(f"{rev} ({commit})", home / "old", device, dtype, is_this_tree=False)
        new = Version("this tree", home / "new", device, dtype, is_this_tree=True)
        for version in (old, new):
            stack.callback(version.close)
        print(f"old: {old.name}; new: {new.name}; {device}, {dtype}", flush=True)
        comparison = Comparison(old, new, options, home)
        for number in range(ROUNDS):
            comparison.restart()
            if number == 0:
                comparison.ask_availability()
                for op in op_names:
                    comparison.plan(op)
            if not comparison.rounds:
                break
            progress(f"round {number + 1} of {ROUNDS}: {len(comparison.rounds)} cases")
            comparison.measure()
        code = comparison.report()
    if not code and not comparison.rounds:
        raise errors.ConfigError(f"--compare {rev}: nothing could be compared, see above")
    return code
