"""This working tree against another revision, operation by operation: what `python -m benchmarks.run --compare` does.

    python -m benchmarks.run [STEM ...] --compare HEAD~1 [--fail-if-slower 5%] [--shape ...] [--impl ...] [--seconds 1]

Each version has a process of its own (`benchmarks._versions`, `benchmarks._worker`), and both get the same inputs, made
by this tree's harness. The two take turns of a few calls, A B B A A B …, so that what else the machine does slows both.
What disagrees with the reference of its own version is not timed.

Where numbers and code come to lie in memory, and threads on cores, makes some per cent, for as long as a process lives.
So inputs are moved before each turn, and all is done in `ROUNDS` rounds, each with new processes.

Statistics: a call of one version and the one at the same place in the other's neighbouring turn make a pair; two
neighbouring turns make a block. The estimate is the median over all pairs of log(new / old). Its interval, 95 %, comes
from the medians of `RESAMPLES` resamples: rounds are drawn with replacement, and of each so many of its blocks, whole,
as what disturbs one pair often disturbs its neighbours. Percentiles of so few rounds lie too close together: the level
is widened by Student's t at n - 1 degrees of freedom and by sqrt(n / (n - 1)) for n rounds (Hesterberg, "What teachers
should know about the bootstrap", 2015: the expanded percentile interval). The generator is seeded: the same samples
give the same table.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks._ops import CHECKED_TRACKS, PASSES, load
from benchmarks._program import dtype_of, progress
from benchmarks._versions import NotCompared, Version, install, snapshot, unpack
from benchmarks._worker import LONG_MS
from s2vfast import errors
from s2vfast.inputs import OPS
from s2vfast.ops import IMPLEMENTATIONS

ROUNDS = 6
RESAMPLES = 1000
LEVEL = 0.95
_LEAST_BLOCKS = 2  # of a round: A B, B A
_MOST_CALLS = 8  # in a turn: they share their luck, so that more of them say little more
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
    def word(self) -> str:
        """What can be said: the same, where the interval contains 1."""
        return "slower" if self.low > 1 else "faster" if self.high < 1 else "same"

    def __str__(self) -> str:
        return f"{self.estimate:6.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(rounds: list[list[Block]]) -> Ratio:
    """new / old of the blocks of each round, all of as many calls; see the module's text."""
    times = np.array([block for blocks in rounds for block in blocks])  # [blocks, 2, calls]
    logs = np.log(times[:, 1] / times[:, 0])
    # How often each block is in each resample: a round that is drawn m times gives m times as many blocks as it has.
    generator, count = np.random.default_rng(0), len(rounds)
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)  # [resamples, rounds]
    sizes = [len(blocks) for blocks in rounds]
    often = [generator.multinomial(m * n, np.full(n, 1 / n)) for m, n in zip(drawn.T, sizes, strict=True)]
    order = logs.argsort(axis=None)
    block = order // logs.shape[1]
    medians = _medians(logs.flatten()[order], np.concatenate(often, axis=1)[:, block])
    tail = _tail(count)
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Ratio(*(float(np.exp(value)) for value in (np.median(logs), low, high)))


def _medians(values: np.ndarray, often: np.ndarray) -> np.ndarray:
    """Medians of ascending values [n], each of which is there so many times [resamples, n]."""
    sums = 2 * often.cumsum(axis=1)
    half = sums[:, -1:] // 2
    return (values[(sums >= half).argmax(axis=1)] + values[(sums > half).argmax(axis=1)]) / 2


def _tail(rounds: int) -> float:
    """The share of resamples that is left out at either end."""
    normal, free = statistics.NormalDist(), rounds - 1
    z = normal.inv_cdf(0.5 + LEVEL / 2)
    # Student's t by its expansion in 1 / free, which is good to 1 % at five degrees of freedom.
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return 1 - normal.cdf(t * math.sqrt(rounds / free))


@dataclass(frozen=True)
class Case:
    """What is timed in both versions."""

    stem: str
    impl: str
    shape: str
    one: str  # of `PASSES`
    threads: int  # 0 on a GPU

    def __str__(self) -> str:
        return f"{self.stem:<15}{self.impl:<11}{self.shape:<15}{self.one:<17}{self.threads or '':>2}"


class Comparison:
    """Two versions, and what has been found about them.

    Args:
        old: the other revision.
        new: this tree.
        asked: see `benchmarks.run`.
        folder: for files that come and go.
    """

    def __init__(self, old: Version, new: Version, asked: argparse.Namespace, folder: Path) -> None:
        self.old, self.new, self.asked = old, new, asked
        self.inputs = folder / "inputs.pt"
        self.has: dict[str, dict[str, dict[str, list[str]]]] = {}
        self.rounds: dict[Case, list[list[Block]]] = {}
        self.calls: dict[Case, int] = {}  # in a turn
        self.faults = 0

    def restart(self) -> None:
        """New processes."""
        for version in (self.old, self.new):
            version.close()
        for version in (self.old, self.new):
            version.start()

    def meet(self) -> None:
        """Ask both what they have; raises `ConfigError` where there is no s2vfast to be asked."""
        for version in (self.old, self.new):
            found = version.ask(do="hello")
            if "has" not in found:
                raise errors.ConfigError(f"--compare: {version.name}: {next(iter(found.values()))}")
            self.has[version.name] = found["has"]

    def skip(self, head: str, why: NotCompared) -> None:
        """Say what is not compared, and why."""
        self.faults += why.fault
        print(f"{head}{'NOT TIMED' if why.fault else 'cannot be compared'}: {why}", flush=True)

    def lacking(self, stem: str, impl: str) -> list[str]:
        """Why there is nothing to compare, by version."""
        found = []
        for version in (self.old, self.new):
            there = self.has[version.name]
            if stem not in there:
                found.append(f"{version.name} has no operation {stem}")
            elif why := there[stem].get(impl, [f"it has no {impl}"]):
                found.append(f"{version.name}: {'; '.join(why)}")
            elif impl == "triton" and version.device.type == "cpu":
                found.append("Triton's interpreter is there for its numbers, not for its speed")
        return found

    def plan(self, stem: str) -> None:
        """Find an operation's cases: what both versions have, and what is right in both."""
        bench, device, can = load(stem), self.new.device, []
        for impl in self.asked.impl or [impl for impl in IMPLEMENTATIONS if impl != "reference"]:
            lacking = self.lacking(stem, impl)
            if not lacking:
                can.append(impl)
            elif len(lacking) < 2 or self.asked.impl:  # what neither version has is no news
                self.skip(f"{stem:<15}{impl:<11}", NotCompared("; ".join(dict.fromkeys(lacking))))
        most = torch.get_num_threads()
        threads = [0] if device.type == "cuda" else sorted({1, most} if "native" in can else {most})
        named = self.asked.shape
        for name in [name for name in bench.shapes if not named or name in named] or named:
            whole = bench.shape(name, device)
            sizes = dataclasses.asdict(dataclasses.replace(whole, N=min(whole.N, CHECKED_TRACKS)))
            good = []
            for impl in can:
                progress(f"{stem}, {name}, {impl}: compared with the reference")
                try:
                    for version in (self.old, self.new):
                        version.need(do="verify", stem=stem, impl=impl, sizes=sizes)
                    good.append(impl)
                except NotCompared as why:
                    self.skip(f"{stem:<15}{impl:<11}{name:<15}", why)
            cases = itertools.product(bench.passes(), threads, good)
            self.rounds |= {Case(stem, impl, name, one, count): [] for one, count, impl in cases}

    def measure(self) -> None:
        """One round of all cases."""
        # A shape's cases stand together, and share their inputs.
        for (stem, name), cases in itertools.groupby(list(self.rounds), lambda case: (case.stem, case.shape)):
            bench, dtype = load(stem), getattr(torch, self.new.dtype)
            # Made on the CPU: a GPU's memory is the processes' that measure.
            given = bench.inputs(bench.shape(name, self.new.device), dtype, torch.device("cpu"))
            torch.save(given, self.inputs)
            for case in cases:
                self.one(case)

    def one(self, case: Case) -> None:
        """One round of a case; it is given up where that fails."""
        try:
            self.rounds[case].append(self.blocks(case))
        except NotCompared as why:
            self.skip(str(case), why)
            del self.rounds[case]

    def blocks(self, case: Case) -> list[Block]:
        """A case in one round: for its share of the time, `_LEAST_BLOCKS` at least."""
        request = {"stem": case.stem, "impl": case.impl, "inputs": str(self.inputs), "threads": case.threads}
        request["backward"] = case.one == PASSES[1]
        ms = [version.need(do="prepare", **request)["ms"] for version in (self.old, self.new)]
        longest, seconds = max(*ms, 1e-4), self.asked.seconds / ROUNDS
        # So many that there is time for twice as many blocks as there must be; in the first round, for all rounds.
        share = int(1000 * seconds / (4 * _LEAST_BLOCKS) / longest)
        calls = self.calls.setdefault(case, max(1, min(_MOST_CALLS, share)))
        warm = 0 if longest > LONG_MS else math.ceil(_WARM_MS / longest)
        blocks: list[Block] = []
        end = time.perf_counter() + seconds
        while len(blocks) < _LEAST_BLOCKS or len(blocks) % 2 or time.perf_counter() < end:
            turns = (self.old, self.new) if len(blocks) % 2 == 0 else (self.new, self.old)
            found = {turn.ours: turn.need(do="sample", count=calls, warm=warm)["ms"] for turn in turns}
            blocks.append((found[False], found[True]))
        return blocks

    def report(self) -> int:
        """Print the table, means, and what is too slow; the exit code."""
        limit = self.asked.fail_if_slower
        ratios = {case: ratio(rounds) for case, rounds in self.rounds.items()}
        if ratios:
            print(f"{'':60}{'old ms':>9} {'new ms':>9}   new/old [{LEVEL:.0%}]")
        for case, found in ratios.items():
            blocks = itertools.chain.from_iterable(self.rounds[case])
            old, new = (statistics.median(itertools.chain.from_iterable(ms)) for ms in zip(*blocks, strict=True))
            print(f"{case}{old:9.3f} {new:9.3f}  {found}  {found.word}")
        for impl in IMPLEMENTATIONS:
            if logs := [math.log(found.estimate) for case, found in ratios.items() if case.impl == impl]:
                mean = math.exp(statistics.mean(logs))
                print(f"{impl}: new/old {mean:.3f}, geometric mean of {len(logs)} case{'s' * (len(logs) > 1)}")
        slow = {} if limit is None else {case: found for case, found in ratios.items() if found.low > 1 + limit}
        for case, found in slow.items():
            print(" ".join(f"slower by more than {100 * limit:g} %: {case} {found}".split()))
        return int(bool(slow or self.faults))


def main(rev: str, stems: list[str], asked: argparse.Namespace, device: torch.device) -> int:
    """Compare, print; 1 where something is wrong, or slower than --fail-if-slower allows.

    Args:
        rev: the other revision.
        stems: operations.
        asked: see `benchmarks.run`.
        device: where.

    Raises:
        ConfigError: there is no such revision, or nothing to compare.
    """
    if others := [name for name in asked.what if name not in (*OPS, "ops")]:
        if len(others) == len(asked.what):
            raise errors.ConfigError(f"--compare {rev}: compares operations alone, not {', '.join(others)}; name some")
        progress(f"not compared: {', '.join(others)}: --compare compares operations alone")
    if unknown := [name for name in asked.impl or [] if name not in IMPLEMENTATIONS]:
        known = ", ".join(IMPLEMENTATIONS)
        raise errors.ConfigError(f"--compare {rev}: --impl {unknown[0]}: only implementations are compared: {known}")
    dtype = str(dtype_of(asked.dtype, device)).removeprefix("torch.")
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s2vfast-compare-")))
        commit = unpack(rev, home / "old")
        snapshot(home / "new")
        install(home / "old", home / "new", device.type == "cuda")
        old = Version(f"{rev} ({commit})", home / "old", device, dtype, ours=False)
        new = Version("this tree", home / "new", device, dtype, ours=True)
        for version in (old, new):
            stack.callback(version.close)
        print(f"old: {old.name}; new: {new.name}; {device}, {dtype}", flush=True)
        comparison = Comparison(old, new, asked, home)
        for number in range(ROUNDS):
            comparison.restart()
            if number == 0:
                comparison.meet()
                for stem in stems:
                    comparison.plan(stem)
            if not comparison.rounds:
                break
            progress(f"round {number + 1} of {ROUNDS}: {len(comparison.rounds)} cases")
            comparison.measure()
        code = comparison.report()
    if not code and not comparison.rounds:
        raise errors.ConfigError(f"--compare {rev}: nothing could be compared, see above")
    return code
