"""Compare and time the implementations of recorded calls, each in a process of its own.

    python -m s2vfast.calibrate.measure JOB RESULT

JOB is what `run` has written: calls, device, limits. RESULT is JSON, written anew after every operation. This process
imports what candidates need and never touches a GPU, so that each of them is forked from it in milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from s2vfast import errors, files, ops
from s2vfast.calibrate.candidate import serve
from s2vfast.calibrate.record import Call, Signature, from_json
from s2vfast.config.registry import PLUGIN, load_plugin
from s2vfast.ops import _linear

LIMIT = 30.0
"""Seconds that a candidate may take for an answer."""
BUDGET = 60.0
"""Seconds after which no further operation is begun."""
ROUNDS = 5
"""In which candidates are timed in turn: what else the machine does hits all of them."""
SLOW = 10.0
"""Times the fastest, above which a candidate is timed once."""
WORKERS = 8
MARGIN = 0.03
"""The least share of its time that another implementation must save to be taken in place of the usual one."""
LAZY = ("torch.fx.experimental.symbolic_shapes",)
"""What a backward pass imports at its first call: once here and not in each candidate."""
_PR_SET_PDEATHSIG = 1

Row = dict[str, Any]
"""``op``, ``key``, ``impl``; ``ms`` of one that is right, else ``why`` it is out."""


class Gone(Exception):
    """A candidate that gives no answer, and why."""


class Process:
    """A candidate's process.

    Args:
        job: what it needs.
        op: name of the operation.
        impl: its implementation.
    """

    def __init__(self, job: dict[str, Any], op: str, impl: str) -> None:
        self.op, self.impl, self.limit = op, impl, job["limit"]
        (theirs_in, self._requests), (self._answers, theirs_out) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for end in (self._requests, self._answers):
                    os.close(end)
                # A hung one must not outlive whoever would end it.
                with contextlib.suppress(OSError, AttributeError):
                    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                serve(theirs_in, theirs_out, job, op, impl)
            finally:
                os._exit(1)
        os.close(theirs_in)
        os.close(theirs_out)
        self._deadline, self._read = 0.0, b""

    def ask(self, do: str, **request: int) -> None:
        """Send a request."""
        self._deadline = time.monotonic() + self.limit
        with contextlib.suppress(BrokenPipeError):  # it has ended, which its answer will say
            os.write(self._requests, json.dumps({"do": do, **request}).encode() + b"\n")

    def answer(self) -> dict[str, Any]:
        """Its answer; `Gone` where there is none in time."""
        while b"\n" not in self._read:
            if not select.select([self._answers], [], [], max(self._deadline - time.monotonic(), 0.0))[0]:
                self.end()
                raise Gone(f"it gave no answer within {self.limit:g} s")
            data = os.read(self._answers, 65536)
            if not data:  # it is about to end by itself, and says by what
                raise Gone(_end(self.end(patience=1.0)))
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        reply = json.loads(line)
        for name in ("declined", "wrong", "failed"):
            if name in reply:
                raise Refused(name, reply[name])
        return reply

    def end(self, patience: float = 0.0) -> int:
        """End the process, after so many seconds if it has not by itself; its wait status."""
        if self.pid == 0:
            return 0
        pid, self.pid, last = self.pid, 0, time.monotonic() + patience
        ended, status = os.waitpid(pid, os.WNOHANG)
        while not ended:
            if time.monotonic() >= last:
                os.kill(pid, signal.SIGKILL)
                ended, status = os.waitpid(pid, 0)
            else:
                time.sleep(0.01)
                ended, status = os.waitpid(pid, os.WNOHANG)
        for end in (self._requests, self._answers):
            os.close(end)
        return status


class Refused(Exception):
    """A candidate says why it is out: ``declined``, ``wrong`` or ``failed``, and the reason."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__({"declined": "", "wrong": "wrong: ", "failed": ""}[kind] + reason)
        self.kind = kind


@contextlib.contextmanager
def _noted(impl: str, reasons: dict[str, str], kind: type[Exception]) -> Iterator[None]:
    """Errors of a kind become reasons against an implementation."""
    try:
        yield
    except kind as error:
        reasons[impl] = str(error)


def _end(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"its process was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"its process ended with exit code {os.WEXITSTATUS(status)}"


def candidates(op: str) -> list[str]:
    """Names of what may be chosen for an operation: all but the reference."""
    return [name for name in ops.operation(op).implementations if name != "reference"]


def warm(job: dict[str, Any], waiting: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Compile kernels, in processes side by side; why candidates are out that crash or hang in it."""
    out: dict[tuple[str, str], str] = {}
    running: list[Process] = []
    while waiting or running:
        while waiting and len(running) < job["workers"]:
            running.append(Process(job, *waiting.pop(0)))
            running[-1].ask("warm")
        readable, _, _ = select.select([process._answers for process in running], [], [], 0.2)
        for process in list(running):
            if process._answers in readable or process._deadline < time.monotonic():
                running.remove(process)
                try:
                    process.answer()
                except Gone as gone:
                    out[process.op, process.impl] = str(gone)
                except Refused as refusal:
                    # Side by side memory may be short: what merely failed is tried again alone.
                    if refusal.kind == "declined":
                        out[process.op, process.impl] = str(refusal)
                process.end()
    return out


def measure(job: dict[str, Any], op: str, out: dict[tuple[str, str], str]) -> Iterator[Row]:
    """A row for every call and candidate of an operation."""
    keys = [call.key for call in job["calls"] if call.op == op]
    gone = {impl: why for (name, impl), why in out.items() if name == op}
    processes = {impl: Process(job, op, impl) for impl in candidates(op) if impl not in gone}
    refused: dict[str, str] = {}

    def answers(groups: Sequence[Sequence[str]], do: str, **request: int) -> dict[str, dict[str, Any]]:
        """Answers by implementation, of a group at once; who gives none is in `refused` or `gone`."""
        result = {}
        for group in groups:
            for impl in group:
                processes[impl].ask(do, **request)
            for impl in group:
                with _noted(impl, refused, Refused), _noted(impl, gone, Gone):
                    result[impl] = processes[impl].answer()
        return result

    try:
        able = answers([list(processes)], "ready")
        gone |= refused
        for number, key in enumerate(keys):
            refused.clear()
            active = [impl for impl in able if impl not in gone]
            alone = len(active) == 1  # there is nothing to choose
            if not alone:
                active = list(answers([active], "check", number=number))
            best_ms: dict[str, float] = {}
            for _ in range(1 if alone else ROUNDS):
                fastest = min((ms for impl, ms in best_ms.items() if impl in active), default=0.0)
                active = [impl for impl in active if best_ms.get(impl, 0.0) <= SLOW * fastest]
                sampled = answers([[impl] for impl in active], "sample", number=number)
                active = list(sampled)
                for impl, answer in sampled.items():
                    best_ms[impl] = min(answer["ms"], best_ms.get(impl, answer["ms"]))
            for impl in candidates(op):
                why = refused.get(impl) or gone.get(impl)
                result = {"ms": best_ms[impl]} if why is None else {"why": why}
                yield {"op": op, "key": key, "impl": impl, **result}
    finally:
        for process in processes.values():
            process.end()


def main(job_file: str, result_file: str) -> int:
    """Measure what a job asks for; operations that no time is left for are left out."""
    job = torch.load(job_file, weights_only=False)  # written by `run`, a moment ago
    begun, rows = time.monotonic(), []
    for path in job["plugins"]:
        load_plugin(path)
    names = list(dict.fromkeys(call.op for call in job["calls"]))
    out = {}
    for name in LAZY:
        importlib.import_module(name)
    if torch.device(job["device"]).type == "cuda":
        with contextlib.suppress(ImportError):  # once, before candidates are forked
            importlib.import_module("triton")
        out = warm(job, [(op, impl) for op in names for impl in candidates(op)])
    for op in names:
        if time.monotonic() - begun > job["budget"]:
            break
        rows += measure(job, op, out)
        files.write_json(Path(result_file), rows)
    return 0


def run(
    calls: Sequence[Call], device: torch.device, *, capture: bool, limit: float = LIMIT, budget: float = BUDGET
) -> tuple[list[Row], str]:
    """Rows of `measure` of all calls, from a process that this one starts; and what went wrong with it, if anything.

    Args:
        calls: of the operations.
        device: where they run; a GPU should have nothing else to do.
        capture: whether they are going to be captured as a CUDA graph.
        limit: seconds for an answer of a candidate.
        budget: seconds after which no further operation is begun.
    """
    plugins = [module.__file__ for name, module in list(sys.modules.items()) if name.startswith(PLUGIN)]
    job = {"calls": list(calls), "device": str(device), "capture": capture, "plugins": plugins}
    job |= {"limit": limit, "budget": budget, "threads": torch.get_num_threads()}
    job["matmul_precision"] = _linear.precision()
    job["workers"] = min(WORKERS, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="s2vfast-calibrate-") as folder:
        job_file, result = Path(folder, "job.pt"), Path(folder, "rows.json")
        torch.save(job, job_file)
        command = [sys.executable, "-m", "s2vfast.calibrate.measure", str(job_file), str(result)]
        # A group of its own: it and its candidates end together.
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        trouble = ""
        try:
            _, log = process.communicate(timeout=budget + 4 * limit)
            if process.returncode:
                lines = log.strip().splitlines() or ["no message"]
                trouble = f"calibration ended with exit code {process.returncode}: {lines[-1]}"
        except subprocess.TimeoutExpired:
            trouble = f"calibration took longer than {budget + 4 * limit:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        try:
            rows = json.loads(result.read_text("utf-8"))
        except (OSError, ValueError):
            return [], trouble or "calibration measured nothing"
    rows = [row | {"key": from_json(row["key"])} for row in rows]
    # Registered by no plugin, they are unknown to the other process.
    why = {"why": "a process of its own does not know it; register it in a file given to --plugin"}
    measured = {(row["op"], row["key"], row["impl"]) for row in rows}
    for op, key in dict.fromkeys((row["op"], row["key"]) for row in rows):
        unknown = (impl for impl in candidates(op) if (op, key, impl) not in measured)
        rows += [{"op": op, "key": key, "impl": impl, **why} for impl in unknown]
    return rows, trouble


def best(rows: Sequence[Row], device: str) -> dict[tuple[str, Signature], str]:
    """The implementation of each call: the fastest that is right, or the usual one where none saves `MARGIN`.

    Args:
        rows: of `run`.
        device: ``cpu`` or ``cuda``.
    """
    times: dict[tuple[str, Signature], dict[str, float]] = {}
    for row in rows:
        if "ms" in row:
            times.setdefault((row["op"], row["key"]), {})[row["impl"]] = row["ms"]
    table = {}
    for key, ms in times.items():
        usual = next((impl for impl in ops.operation(key[0]).preference(device) if impl in ms), None)
        fastest = min(ms, key=lambda impl: ms[impl])
        table[key] = fastest if usual is None or ms[fastest] <= (1.0 - MARGIN) * ms[usual] else usual
    return table


def _exit() -> NoReturn:
    try:
        sys.exit(main(*sys.argv[1:]))
    except errors.S2vfastError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _exit()
