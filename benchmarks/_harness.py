"""How an operation is measured: every implementation and rival, in turns, once they compute the right thing.

`benchmarks.cases` lists what is measured; `benchmarks.run` prints and writes the rows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import _ceilings
from benchmarks._calls import autocast, difference, leaves_of, map_tensors, one_line, tensors_of, timed_call
from benchmarks._results import Row, digits, percentiles
from benchmarks._timer import Timer
from benchmarks.cases import PASSES, Case, Rival, gate_shape
from s2vfast import errors, ops
from s2vfast.inputs import Shape, inputs
from s2vfast.verify import verify_call

LEAST_ROUNDS = 7
COMPILED = "torch:compile"
Function = Callable[..., Any]


def contenders(
    case: Case, device: torch.device, arguments: dict[str, Any], first: bool, only: Collection[str] | None = None
) -> dict[str, Function]:
    """What can run here, by name: implementations, then rivals; those of ``only`` where it is not None."""
    public = getattr(ops, case.op)
    functions: dict[str, Function] = {}
    for name, reasons in ops.availability(device.type)[case.op].items():
        if name == "triton" and device.type == "cpu":
            continue  # Triton's interpreter is there for its numbers, not for its speed
        if not reasons and (case.plain or name != "reference") and (only is None or name in only):
            call = functools.partial(public, impl=name)
            functions[name] = autocast(call, arguments) if name == "reference" else call
    rivals = dict(case.rivals)
    if case.plain:
        rivals[COMPILED] = Rival(lambda arguments: _compiled(functools.partial(public, impl="torch")), first=True)
    for name, rival in rivals.items():
        if device.type in rival.devices and (first or not rival.first) and (only is None or name in only):
            try:
                function = rival.prepare(arguments)
            except Exception as error:  # another library's: the call then fails in its place
                function = _failing(error)
            if not isinstance(function, str):
                functions[name] = function
    return functions


def _failing(error: Exception) -> Function:
    def call(**arguments: Any) -> Any:
        raise error

    return call


def _compiled(function: Function) -> Function:
    torch.compiler.reset()  # else what was compiled for other shapes counts against a limit
    return torch.compile(function, dynamic=False)


def gate(
    case: Case,
    names: Sequence[str],
    dtype: torch.dtype,
    device: torch.device,
    only: Collection[str] | None = None,
    full: bool = False,
) -> dict[str, str]:
    """Contenders that do not agree with the reference, by name, each with shape, result and error.

    They are compared at `gate_shape` of every shape and, where a case makes arguments of its own, on these. What is
    timed is compared with ``torch`` besides, at its full size: see `_Contest`.
    """
    wrong: dict[str, str] = {}
    for number, name in enumerate(names):
        shape = case.shape(name, device)
        sets = [inputs(case.op, gate_shape(shape, full), dtype=dtype, device=device)]
        if case.make is not None:
            sets.append(case.inputs(shape, dtype, device) | dict(case.gate_arguments))
        for arguments in sets:
            for impl, function in contenders(case, device, arguments, number == 0, only).items():
                if impl in wrong or impl == COMPILED:  # compiled anew for what is timed, where it is compared
                    continue
                # Not under autocast, which the reference is not written for.
                own = functools.partial(getattr(ops, case.op), impl=impl) if impl in ops.IMPLEMENTATIONS else function
                if reason := _disagreement(case.op, own, arguments, dtype, device, name):
                    wrong[impl] = reason
    return wrong


def _disagreement(
    op: str, function: Function, arguments: dict[str, Any], dtype: torch.dtype, device: torch.device, name: str
) -> str:
    try:
        agreements = verify_call(op, function, arguments, dtype=dtype, device=device)
    except errors.ImplementationError:
        return ""  # it does not take this shape
    except Exception as error:  # whatever a rival of another library raises is a reason to refuse it
        return f"{name}: {one_line(error)}"
    bad = [agreement for agreement in agreements if not agreement.good]
    if not bad:
        return ""
    worst = max(bad, key=lambda agreement: agreement.error / max(agreement.allowed, 1e-30))
    numbers = f"{worst.name} is off by {worst.error:.2g} where {worst.allowed:.2g} is allowed"
    return f"does not agree with the reference at {name}: {numbers}"


def measure(
    case: Case,
    names: Sequence[str],
    dtype: torch.dtype,
    device: torch.device,
    seconds: float,
    ceilings: Mapping[str, float],
    only: Collection[str] | None = None,
    full_gate: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Rows of one operation at shapes, by name; see `benchmarks._results.FIELDS`.

    ``seconds`` is the time for a shape and pass, all contenders (those of ``only``, unless it is None) together.
    ``report`` gets a line for whatever begins.
    """
    start = time.perf_counter()
    # torch too: what is timed is compared with it.
    wrong = gate(case, names, dtype, device, only and {*only, "torch"}, full_gate)
    report(f"{case.op}: compared with the reference in {time.perf_counter() - start:.1f} s")

    def refused(reasons: Mapping[str, str]) -> list[Row]:
        return [{"op": case.op, "impl": impl, "refused": reason} for impl, reason in reasons.items()]

    rows = refused({impl: reason for impl, reason in wrong.items() if only is None or impl in only})
    most = torch.get_num_threads()
    native = not ops.operation(case.op).why_not("native", device.type)
    threads = [0] if device.type == "cuda" else sorted({1, most} if native else {most})
    for number, name in enumerate(names):
        shape = case.shape(name, device)
        arguments = case.inputs(shape, dtype, device)
        functions = contenders(case, device, arguments, number == 0, only)
        for one_pass, count in itertools.product(case.passes, threads):
            torch.set_num_threads(count or most)
            try:
                contest = _Contest(case, shape, arguments, functions, device, one_pass == PASSES[1], {*wrong})
                report(f"{case.op}, {name}, {one_pass}: {', '.join(contest.functions) or 'nothing that can be timed'}")
                common = {"op": case.op, "shape": name, "sizes": dataclasses.asdict(shape), "pass": one_pass}
                common |= {"dtype": str(dtype).removeprefix("torch."), "threads": count}
                rows += [common | row for row in contest.rows(seconds, ceilings, dtype, report)]
                rows += refused({impl: f"{name}, {one_pass}: {why}" for impl, why in contest.failed.items()})
            finally:
                torch.set_num_threads(most)
    return rows


class _Contest:
    """One operation at one shape, one pass."""

    def __init__(
        self,
        case: Case,
        shape: Shape,
        arguments: dict[str, Any],
        functions: Mapping[str, Function],
        device: torch.device,
        backward: bool,
        wrong: set[str],
    ) -> None:
        self.arguments, self.backward, self.timer = arguments, backward, Timer(device)
        self.failed: dict[str, str] = {}  # reasons, by contender
        self.cost = case.cost(shape, backward)
        size = sum(tensor.nbytes for tensor in tensors_of(arguments))
        copies = self.timer.copies(size) - 1
        self.sets = [arguments, *(map_tensors(Tensor.clone, arguments) for _ in range(copies))]
        # Arguments of a case's own have been compared with the reference, and a call may change them.
        expected = None
        if case.make is None and "torch" not in wrong:
            try:
                expected = self._results(functools.partial(getattr(ops, case.op), impl="torch"))
            except Exception as error:
                reason = f"torch, which it is compared with, cannot run: {one_line(error)}"
                self.failed, functions = {name: reason for name in functions if name not in wrong}, {}
        dtype = next((t.dtype for t in tensors_of(arguments) if t.dtype == torch.bfloat16), torch.float32)
        self.functions = {
            name: function
            for name, function in functions.items()
            if name not in wrong and self._agrees(name, function, expected, dtype)
        }

    def _results(self, function: Function) -> list[Tensor | None]:
        """The results of what is timed: outputs, or gradients for the same upstream ones."""
        results = timed_call(function, self.arguments, self.backward)()
        return list(results) if isinstance(results, tuple) else [results]

    def _agrees(self, name: str, function: Function, expected: list[Tensor | None] | None, dtype: torch.dtype) -> bool:
        try:
            results = self._results(function)
            reason = difference(results, expected, dtype) if expected is not None else ""
        except errors.ImplementationError:
            return False  # it does not take this shape
        except Exception as error:  # one that fails keeps no other from being timed
            self.failed[name] = one_line(error)
            return False
        if reason:
            self.failed[name] = f"does not agree with torch on what is timed: {reason}"
        return not reason

    def _samplers(self, sets: list[dict[str, Any]]) -> dict[str, tuple[Callable[[], float], str]]:
        """`Timer.sampler` of every contender that does not fail."""
        samplers = {}
        for name, function in self.functions.items():
            if name not in self.failed:
                try:
                    calls = [timed_call(function, arguments, self.backward) for arguments in sets]
                    samplers[name] = self.timer.sampler(calls)
                except Exception as error:
                    self.failed[name] = one_line(error)
        return samplers

    def rows(
        self, seconds: float, ceilings: Mapping[str, float], dtype: torch.dtype, report: Callable[[str], None]
    ) -> Iterator[Row]:
        """Measure warm and, on a GPU, cold; `failed` then has what could not be measured."""
        if not self.functions:
            return
        moved = self.cost.bytes
        if moved is None:
            moved = traffic(self.arguments, next(iter(self.functions.values())), self.backward)
        moved += self.cost.operands * dtype.itemsize
        needs = {"gflop": self.cost.flop / 1e9, "gexp": self.cost.exps / 1e9, "gb": moved / 1e9}
        needs = {name: digits(value, 5) for name, value in needs.items()}
        for state, sets in (("warm", self.sets[:1]), ("cold", self.sets)):
            if state == "cold" and len(sets) == 1:
                continue
            samplers = self._samplers(sets)
            times = interleave({name: sample for name, (sample, _) in samplers.items()}, seconds, self.failed)
            for name, samples in times.items():
                base, eager = times.get("torch"), samplers[name][1]
                # A graph's time and that of separate launches are not times of the same.
                same = "torch" in samplers and bool(samplers["torch"][1]) == bool(eager)
                pairs = zip(samples, base, strict=True) if base and same else None
                if eager:
                    report(f"  {name}: no graph, so that its launches count: {eager}")
                middle = percentiles(samples)
                yield {
                    "impl": name,
                    "state": f"{state}, not captured" if eager else state,
                    **middle,
                    **needs,
                    **roofline(needs | {"dtype": dtype}, middle["p50"], ceilings),
                    "ratio": pairs and round(statistics.median(b / a for a, b in pairs), 3),
                }


def traffic(arguments: dict[str, Any], function: Function, backward: bool) -> float:
    """Bytes that must cross memory: inputs and outputs; backward inputs again, gradients of outputs and of leaves."""

    def size(tensors: Iterator[Tensor]) -> int:
        return sum(tensor.nbytes for tensor in tensors)

    with torch.no_grad():
        outputs = size(tensors_of(function(**arguments)))
    read = size(tensors_of(arguments))
    if not backward:
        return read + outputs
    gradients = size(tensor for tensor in tensors_of(leaves_of(arguments)) if tensor.requires_grad)
    return 2 * read + 2 * outputs + gradients


def roofline(row: Mapping[str, Any], p50: float, ceilings: Mapping[str, float]) -> dict[str, Any]:
    """``bound`` and ``roofline`` of a row's needs and dtype: what takes longest at the ceilings, and that over p50."""
    needs = {name: row[name] for name in ("gflop", "gexp", "gb")}
    bound, least = _ceilings.bound(**needs, ceilings=ceilings, dtype=row["dtype"])
    return {"bound": bound, "roofline": round(1000 * least / p50, 4)}


def interleave(
    samplers: Mapping[str, Callable[[], float]], seconds: float, failed: dict[str, str]
) -> dict[str, list[float]]:
    """Times of all, one after the other, round after round, for so long and for `LEAST_ROUNDS` at least.

    One that fails is left out, and ``failed`` gets the reason.
    """
    times: dict[str, list[float]] = {name: [] for name in samplers}
    end = time.perf_counter() + seconds
    count = 0
    while count < LEAST_ROUNDS or time.perf_counter() <= end:
        count += 1
        for name in [name for name in samplers if name not in failed]:
            times[name].append(_sample(name, samplers[name], failed))
    return {name: samples for name, samples in times.items() if name not in failed}


def _sample(name: str, sampler: Callable[[], float], failed: dict[str, str]) -> float:
    try:
        return sampler()
    except Exception as error:
        failed[name] = one_line(error)
        return math.nan
