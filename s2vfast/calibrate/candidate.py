"""One implementation of one operation in a process of its own: it is compared with the reference, and timed."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from s2vfast import errors, ops
from s2vfast.calibrate.record import Call
from s2vfast.calibrate.timer import Timer
from s2vfast.verify import verify_call

LEAST_SECONDS = 0.02
"""How long a sample lasts: so many calls are made, one at least."""


class Candidate:
    """Answers requests; each public method is one.

    Args:
        op: name of the operation.
        impl: its implementation.
        calls: what it was called with in the run.
        device: where.
        capture: whether the run's steps are captured as CUDA graphs.
    """

    def __init__(self, op: str, impl: str, calls: Sequence[Call], device: torch.device, capture: bool) -> None:
        self.op, self.impl, self.calls, self.device, self.capture = op, impl, calls, device, capture
        self.timer, self._sampler = Timer(device), (-1, None)
        self._function = functools.partial(getattr(ops, op), impl=impl)

    def ready(self) -> dict[str, Any]:
        """``declined``: why it cannot run on this device at all."""
        reasons = ops.operation(self.op).why_not(self.impl, self.device.type)
        return {"declined": "; ".join(reasons)} if reasons else {}

    def warm(self) -> dict[str, Any]:
        """`ready`; and run every call once, which compiles its kernels."""
        if declined := self.ready():
            return declined
        for call in self.calls:
            with contextlib.suppress(errors.ImplementationError):
                self._timed(call)()
        return {}

    def check(self, number: int) -> dict[str, Any]:
        """Whether it agrees with the reference on a call: ``declined`` or ``wrong`` says why not."""
        call = self.calls[number]
        names = self._named(call)
        half = {tensor.dtype for tensor in _tensors(names)} & {torch.bfloat16, torch.float16}
        dtype = half.pop() if half else torch.float32
        try:
            with _exact_products():  # what the run's precision costs is its own choice, and no fault
                rows = verify_call(
                    self.op, self._function, names, dtype=dtype, device=self.device, gradients=call.key[0]
                )
        except errors.ImplementationError as error:
            return {"declined": str(error).rpartition("cannot run here: ")[2]}
        except AssertionError as error:  # not as many results, or of other shapes
            return {"wrong": str(error)}
        if bad := [row for row in rows if not row.good]:
            worst = max(bad, key=lambda row: row.error / max(row.allowed, 1e-30))
            return {"wrong": f"{worst.name} is off by {worst.error:.2g} where {worst.allowed:.2g} is allowed"}
        return {}

    def sample(self, number: int) -> dict[str, Any]:
        """``ms`` of a call: the least of those that fit into `LEAST_SECONDS`."""
        call = self.calls[number]
        if self._sampler[0] != number:
            self._sampler = (-1, None)  # its inputs go before others come
            size = sum(tensor.nbytes for tensor in _tensors(self._named(call)))
            sampler, why = self.timer.sampler([self._timed(call) for _ in range(self.timer.copies(size))])
            if why and self.capture:
                return {"declined": f"it cannot be captured as a CUDA graph: {why}"}
            self._sampler = (number, sampler)
        take = self._sampler[1]
        assert take is not None
        first = take()
        return {"ms": min([first, *(take() for _ in range(min(int(1000 * LEAST_SECONDS / max(first, 1e-3)), 100)))])}

    def _named(self, call: Call) -> dict[str, Any]:
        """A call's arguments by the names of the public function."""
        args, kwargs = call.arguments(self.device)
        return dict(inspect.signature(getattr(ops, self.op)).bind(*args, **kwargs).arguments)

    def _timed(self, call: Call) -> Any:
        """The call on inputs of its own, with the gradients of those that had one."""
        names = self._named(call)
        if not call.key[0]:

            def forward() -> Any:
                with torch.no_grad():
                    return self._function(**names)

            return forward
        leaves = [tensor for tensor in _tensors(names) if tensor.requires_grad]

        def differentiable() -> list[Tensor]:
            outputs = self._function(**names)
            outputs = outputs if isinstance(outputs, (list, tuple)) else (outputs,)
            return [out for out in outputs if isinstance(out, Tensor) and out.requires_grad]

        upstream = [torch.randn_like(out) for out in differentiable()]

        def both() -> Any:
            return torch.autograd.grad(differentiable(), leaves, upstream, allow_unused=True)

        return both


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Products of float32 as such, as torch.set_float32_matmul_precision has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _tensors(names: dict[str, Any]) -> list[Tensor]:
    """Those among arguments, in lists too."""
    values = (item for value in names.values() for item in (value if isinstance(value, list) else [value]))
    return [item for item in values if isinstance(item, Tensor)]


def serve(requests: int, answers: int, job: dict[str, Any], op: str, impl: str) -> None:
    """Answer requests, JSON lines of two pipes, until there are no more; then end the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: who asks ends this
    if os.environ.get("S2VFAST_DEBUG") != "1":
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    torch.set_num_threads(job["threads"])
    if job["matmul_precision"] is not None:
        torch.set_float32_matmul_precision(job["matmul_precision"])
    device = torch.device(job["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    calls = [call for call in job["calls"] if call.op == op]
    candidate = Candidate(op, impl, calls, device, job["capture"])
    with os.fdopen(requests, encoding="utf-8") as lines, os.fdopen(answers, "w", encoding="utf-8") as out:
        for line in lines:
            request = json.loads(line)
            try:
                answer = getattr(candidate, request.pop("do"))(**request)
            except Exception as error:  # whatever it raises keeps this candidate out, and no other
                answer = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            print(json.dumps(answer), file=out, flush=True)
    os._exit(0)
