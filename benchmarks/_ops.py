"""What is measured of an operation, and how: every implementation and baseline, interleaved, once they are right.

`benchmarks/bench_<stem>.py` says what an operation costs and what else it is compared with; `benchmarks.run` measures.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import _ceilings
from benchmarks._calls import autocast, call_of, differs, leaves_of, tensors_of
from benchmarks._program import said
from benchmarks._results import percentiles
from benchmarks._timer import Timer
from s2vfast import errors, ops
from s2vfast.inputs import SHAPES, WITHOUT_GRADIENT, Shape, inputs
from s2vfast.verify import verify_call

STANDARD = ("ntu", "ntu_student", "nwucla", "long", "wide")
CPU_TRACKS = {"ntu": 4, "ntu_student": 32, "nwucla": 32, "nwucla_student": 32, "long": 1, "wide": 1}
"""Tracks on a CPU, where a GPU takes `SHAPES`' own: what takes about a tenth of a second."""
LIGHT_TRACKS = 32
LEAST_ROUNDS = 7
CHECKED_TRACKS = 2  # of a shape, in the comparison with the reference, which is slow
PASSES = ("forward", "forward+backward")
COMPILED = "torch:compile"


@dataclass(frozen=True)
class Cost:
    """What has to be done, however it is done."""

    flop: float = 0.0  # of matrix products
    exps: float = 0.0
    bytes: float | None = None  # None: every input read and every output written once, see `_traffic`
    operands: float = 0.0  # numbers of the dtype of matrix operands that cross memory beside these bytes


@dataclass(frozen=True)
class Baseline:
    """Another way to do what an operation does.

    Args:
        prepare: gets the arguments and returns what is called with them and returns what the operation returns; or
            the reason, a text, why it cannot be done here.
        devices: where there is such a way.
        first: only at the first shape, as it takes long to prepare.
    """

    prepare: Callable[[dict[str, Any]], Callable[..., Any] | str]
    devices: tuple[str, ...] = ("cpu", "cuda")
    first: bool = False


@dataclass(frozen=True)
class Benchmark:
    """An operation to be measured.

    Args:
        stem: its name.
        cost: of (shape, whether backward too): what it has to do.
        shapes: names of `SHAPES` at which it is measured.
        baselines: what it is compared with, beside its own implementations.
        make: makes arguments in place of `s2vfast.inputs`; what they give is compared with the reference too.
        checked: arguments that are others in the comparison with the reference.
        light: it takes little time, so that a CPU does more tracks.
        plain: whether the reference, run eagerly, and torch.compile of the ``torch`` implementation are measured too:
            not so where the reference is written for one sample at a time, or works in place.
    """

    stem: str
    cost: Callable[[Shape, bool], Cost]
    shapes: tuple[str, ...] = STANDARD
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    make: Callable[..., dict[str, Any]] | None = None
    checked: Mapping[str, Any] = field(default_factory=dict)
    light: bool = False
    plain: bool = True

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """Arguments at a shape."""
        make = self.make or functools.partial(inputs, self.stem)
        return make(shape, dtype=dtype, device=device)

    def shape(self, name: str, device: torch.device) -> Shape:
        """A shape by name, with as many tracks as this device does quickly."""
        shape = SHAPES[name]
        if device.type == "cuda" or name not in CPU_TRACKS:
            return shape
        return dataclasses.replace(shape, N=min(shape.N, LIGHT_TRACKS) if self.light else CPU_TRACKS[name])

    def passes(self) -> tuple[str, ...]:
        """Forward, and backward where there is one."""
        return PASSES[:1] if self.stem in WITHOUT_GRADIENT else PASSES

    def contenders(self, device: torch.device, given: dict[str, Any], first: bool) -> dict[str, Callable[..., Any]]:
        """What can run here, by name: implementations, then baselines."""
        public = getattr(ops, self.stem)
        found: dict[str, Callable[..., Any]] = {}
        for name, reasons in ops.availability(device.type)[self.stem].items():
            if name == "triton" and device.type == "cpu":
                continue  # Triton's interpreter is there for its numbers, not for its speed
            if not reasons and (self.plain or name != "reference"):
                call = functools.partial(public, impl=name)
                found[name] = autocast(call, given) if name == "reference" else call
        baselines = dict(self.baselines)
        if self.plain:
            baselines[COMPILED] = Baseline(lambda given: _compiled(functools.partial(public, impl="torch")), first=True)
        for name, baseline in baselines.items():
            if device.type in baseline.devices and (first or not baseline.first):
                try:
                    prepared = baseline.prepare(given)
                except Exception as error:  # another library's; it is then the one that fails when it is called
                    prepared = _failing(error)
                if not isinstance(prepared, str):
                    found[name] = prepared
        return found


def _failing(error: Exception) -> Callable[..., Any]:
    def call(**given: Any) -> Any:
        raise error

    return call


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch.compiler.reset()  # else what was compiled for other shapes counts against a limit
    return torch.compile(function, dynamic=False)


def _copy(value: Any) -> Any:
    """The same numbers at other places in memory."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copy(item) for name, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _traffic(given: dict[str, Any], function: Callable[..., Any], backward: bool) -> float:
    """Bytes that must cross memory: inputs and outputs; backward inputs again, gradients of outputs and of leaves."""

    def size(tensors: Iterator[Tensor]) -> int:
        return sum(tensor.nbytes for tensor in tensors)

    with torch.no_grad():
        outputs = size(tensors_of(function(**given)))
    read = size(tensors_of(given))
    if not backward:
        return read + outputs
    gradients = size(tensor for tensor in tensors_of(leaves_of(given)) if tensor.requires_grad)
    return 2 * read + 2 * outputs + gradients


def check(bench: Benchmark, names: list[str], dtype: torch.dtype, device: torch.device) -> dict[str, str]:
    """Why an implementation or baseline is not to be reported, by name: at which shape it is wrong, and in what.

    At every shape, for `CHECKED_TRACKS` tracks; and, where a benchmark makes arguments of its own, for these. What is
    timed with more tracks is compared with ``torch`` too, see `_Case`.
    """
    wrong: dict[str, str] = {}
    for number, name in enumerate(names):
        whole = bench.shape(name, device)
        few = dataclasses.replace(whole, N=min(whole.N, CHECKED_TRACKS))
        sets = [inputs(bench.stem, few, dtype=dtype, device=device)]
        if bench.make is not None:
            sets.append(bench.inputs(whole, dtype, device) | dict(bench.checked))
        asked = [(given, bench.contenders(device, given, first=number == 0)) for given in sets]
        for given, impl, function in ((given, *item) for given, found in asked for item in found.items()):
            if impl in wrong:
                continue
            # Not the reference under autocast, which it is not written for.
            own = functools.partial(getattr(ops, bench.stem), impl=impl) if impl in ops.IMPLEMENTATIONS else None
            try:
                rows = verify_call(bench.stem, own or function, given, dtype=dtype, device=device)
            except errors.ImplementationError:
                continue  # it does not take this shape
            except Exception as error:  # whatever a baseline of another library raises is a reason not to report it
                wrong[impl] = f"{name}: {said(error)}"
                continue
            if bad := [row for row in rows if not row.good]:
                worst = max(bad, key=lambda row: row.error / max(row.allowed, 1e-30))
                wrong[impl] = (
                    f"does not agree with the reference at {name}: {worst.name} is off by {worst.error:.2g} where "
                    f"{worst.allowed:.2g} is allowed"
                )
    return wrong


def measure(
    bench: Benchmark,
    names: list[str],
    dtype: torch.dtype,
    device: torch.device,
    seconds: float,
    ceilings: Mapping[str, float],
    only: list[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Rows of one operation, see `benchmarks._results.FIELDS`.

    Args:
        bench: the operation.
        names: shapes, by name.
        dtype: of matrix operands.
        device: where.
        seconds: how long a shape and pass may take, all contenders together.
        ceilings: see `benchmarks._ceilings`.
        only: names of contenders; None: all.
        say: gets a line for whatever is begun.
    """
    begun = time.perf_counter()
    wrong = check(bench, names, dtype, device)
    say(f"{bench.stem}: compared with the reference in {time.perf_counter() - begun:.1f} s")
    rows: list[dict[str, Any]] = [{"stem": bench.stem, "impl": impl, "refused": why} for impl, why in wrong.items()]
    most = torch.get_num_threads()
    native = not ops.operation(bench.stem).why_not("native", device.type)
    threads = [0] if device.type == "cuda" else sorted({1, most} if native else {most})
    for number, name in enumerate(names):
        shape = bench.shape(name, device)
        given = bench.inputs(shape, dtype, device)
        for backward, count in itertools.product(bench.passes(), threads):
            torch.set_num_threads(count or most)
            try:
                made = _Case(bench, shape, given, device, backward == PASSES[1], number == 0, {*wrong}, only)
                say(f"{bench.stem}, {name}, {backward}: {', '.join(made.functions) or 'nothing that can be timed'}")
                common = {"stem": bench.stem, "shape": name, "sizes": dataclasses.asdict(shape), "pass": backward}
                common |= {"dtype": str(dtype).removeprefix("torch."), "threads": count}
                rows += [common | row for row in made.rows(seconds, ceilings, dtype, say)]
                rows += [
                    {"stem": bench.stem, "impl": impl, "refused": f"{name}, {backward}: {why}"}
                    for impl, why in made.failed.items()
                ]
            finally:
                torch.set_num_threads(most)
    return rows


class _Case:
    """One operation at one shape, one pass."""

    def __init__(
        self,
        bench: Benchmark,
        shape: Shape,
        given: dict[str, Any],
        device: torch.device,
        backward: bool,
        first: bool,
        wrong: set[str],
        only: list[str] | None,
    ) -> None:
        self.given, self.backward, self.timer = given, backward, Timer(device)
        self.failed: dict[str, str] = {}  # what went wrong, by contender
        dtype = next((t.dtype for t in tensors_of(given) if t.dtype == torch.bfloat16), torch.float32)
        size = sum(tensor.nbytes for tensor in tensors_of(given))
        self.sets = [given, *(_copy(given) for _ in range(self.timer.copies(size) - 1))]
        there = bench.contenders(device, given, first)
        # Arguments of a benchmark's own have been compared with the reference, and may be changed by a call.
        expected = None
        if bench.make is None and "torch" in there and "torch" not in wrong:
            expected = self._results(there["torch"])
        self.functions = {
            name: function
            for name, function in there.items()
            if name not in wrong and (only is None or name in only) and self._takes(name, function, expected, dtype)
        }
        self.cost = bench.cost(shape, backward)

    def _results(self, function: Callable[..., Any]) -> list[Tensor | None]:
        """What a contender computes of what is timed: its outputs, or gradients for the same upstream ones."""
        torch.manual_seed(0)
        found = call_of(function, self.given, self.backward)()
        return list(found) if isinstance(found, tuple) else [found]

    def _takes(
        self, name: str, function: Callable[..., Any], expected: list[Tensor | None] | None, dtype: torch.dtype
    ) -> bool:
        try:
            found = self._results(function)
        except errors.ImplementationError:
            return False
        except Exception as error:  # one that fails keeps no other from being timed
            self.failed[name] = said(error)
            return False
        if expected is not None and (far := differs(found, expected, dtype)):
            self.failed[name] = f"does not agree with torch on what is timed: {far}"
        return name not in self.failed

    def _samplers(self, sets: list[dict[str, Any]]) -> dict[str, tuple[Callable[[], float], str]]:
        """`Timer.sampler` of every contender that does not fail."""
        found = {}
        for name, function in self.functions.items():
            if name not in self.failed:
                try:
                    found[name] = self.timer.sampler([call_of(function, given, self.backward) for given in sets])
                except Exception as error:
                    self.failed[name] = said(error)
        return found

    def rows(
        self, seconds: float, ceilings: Mapping[str, float], dtype: torch.dtype, say: Callable[[str], None]
    ) -> Iterator[dict[str, Any]]:
        """Measure, warm and, on a GPU, cold; `failed` then says what could not be."""
        if not self.functions:
            return
        moved = self.cost.bytes
        if moved is None:
            moved = _traffic(self.given, next(iter(self.functions.values())), self.backward)
        moved += self.cost.operands * dtype.itemsize
        needs = {"gflop": self.cost.flop / 1e9, "gexp": self.cost.exps / 1e9, "gb": moved / 1e9}
        needs = {what: float(f"{value:.5g}") for what, value in needs.items()}
        for state, sets in (("warm", self.sets[:1]), ("cold", self.sets)):
            if state == "cold" and len(sets) == 1:
                continue
            samplers = self._samplers(sets)
            times = interleaved({name: sample for name, (sample, _) in samplers.items()}, seconds, self.failed)
            for name, found in times.items():
                torch_s, eager = times.get("torch"), samplers[name][1]
                # Where one was replayed and the other launched call by call, their times are not of the same.
                same = "torch" in samplers and bool(samplers["torch"][1]) == bool(eager)
                pairs = zip(found, torch_s, strict=True) if torch_s and same else None
                ratio = pairs and round(statistics.median(t / o for o, t in pairs), 3)
                if eager:
                    say(f"  {name}: no graph, so that its launches count: {eager}")
                yield {
                    "impl": name,
                    "state": f"{state}, not captured" if eager else state,
                    **(middle := percentiles(found)),
                    **needs,
                    **roofline(needs | {"dtype": dtype}, middle["p50"], ceilings),
                    "ratio": ratio,
                }


def roofline(row: Mapping[str, Any], p50: float, ceilings: Mapping[str, float]) -> dict[str, Any]:
    """``bound`` and ``roofline`` of a row's needs and dtype: what takes longest at the ceilings, and that over p50."""
    needs = {name: row[name] for name in ("gflop", "gexp", "gb")}
    bound, least = _ceilings.bound(**needs, ceilings=ceilings, dtype=row["dtype"])
    return {"bound": bound, "roofline": round(1000 * least / p50, 4)}


def interleaved(
    samplers: Mapping[str, Callable[[], float]], seconds: float, failed: dict[str, str]
) -> dict[str, list[float]]:
    """Times of all, one after the other, round after round, for so long; `LEAST_ROUNDS` at least.

    One that fails is left out, and ``failed`` told why.
    """
    times: dict[str, list[float]] = {name: [] for name in samplers}
    end = time.perf_counter() + seconds
    for count in itertools.count(1):
        for name in [name for name in samplers if name not in failed]:
            times[name].append(_sampled(name, samplers[name], failed))
        if count >= LEAST_ROUNDS and time.perf_counter() > end:
            return {name: found for name, found in times.items() if name not in failed}
    raise AssertionError  # the loop above does not end otherwise


def _sampled(name: str, sample: Callable[[], float], failed: dict[str, str]) -> float:
    try:
        return sample()
    except Exception as error:
        failed[name] = said(error)
        return math.nan


def load(stem: str) -> Benchmark:
    """The benchmark of an operation."""
    return importlib.import_module(f"benchmarks.bench_{stem}").BENCHMARK
