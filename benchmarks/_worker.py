"""One version of s2vfast in a process that measures on request: the other end of `benchmarks.compare`.

    python -m benchmarks._worker FOLDER DEVICE DTYPE

Requests are JSON lines on stdin, answers JSON lines on stdout; what libraries print goes to stderr. s2vfast is imported
from FOLDER and from nowhere else, and of the harness only what needs nothing of s2vfast: FOLDER may hold an old
revision, which lacks what the harness imports.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._calls import autocast, map_tensors, one_line, timed_call
from benchmarks._timer import Timer

LONG_MS = 20.0  # a call that takes longer needs no others to warm up for it, and is guessed from one
_GUESSES = 3  # calls that say how many fit into a turn
_LINE, _PAGE = 64, 4096  # bytes
_SPACER = 2**20


class OnlyFrom:
    """Finds s2vfast in one folder: what is missing there is missing, though an installation elsewhere has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Where a module of s2vfast is; None for all others."""
        if name.partition(".")[0] != "s2vfast":
            return None
        spec = PathFinder.find_spec(name, [str(self.folder)] if path is None else path)
        if spec is None:
            raise ModuleNotFoundError(f"there is no {name}", name=name)
        return spec


class Worker:
    """Answers requests, one at a time: each public method is one."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self.timer, self.most = Timer(device), torch.get_num_threads()
        self._case: tuple[Callable[..., Any], dict[str, Any], bool] | None = None
        self._replay: Callable[[], float] | None = None  # on a GPU

    def hello(self) -> dict[str, Any]:
        """The version's operations, and for every implementation the reasons why it cannot run here."""
        import s2vfast
        from s2vfast import ops

        path = Path(str(s2vfast.__file__)).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ImportError(f"s2vfast was imported from {path}, not from {self.folder}")
        return {"has": ops.availability(self.device.type)}

    def verify(self, op: str, impl: str, sizes: dict[str, int]) -> dict[str, Any]:
        """``wrong``: the disagreement of an implementation with the reference of its own version; {} without any."""
        from s2vfast.inputs import Shape
        from s2vfast.verify import verify

        torch.set_num_threads(self.most)
        names = {field.name for field in dataclasses.fields(Shape)}
        shape = Shape(**{name: size for name, size in sizes.items() if name in names})
        try:
            agreements = verify(op, impl, shape, dtype=self.dtype, device=self.device)
        except AssertionError as error:  # not even as many results, or of other shapes
            return {"wrong": str(error)}
        if bad := [agreement for agreement in agreements if not agreement.good]:
            worst = max(bad, key=lambda agreement: agreement.error / max(agreement.allowed, 1e-30))
            return {"wrong": f"{worst.name} is off by {worst.error:.2g} where {worst.allowed:.2g} is allowed"}
        return {}

    def prepare(self, op: str, impl: str, inputs: str, backward: bool, threads: int) -> dict[str, Any]:
        """Get ready to sample with the arguments in a file, ``inputs``; about how many ms a call takes.

        ``threads`` of 0 are all.
        """
        from s2vfast import ops

        self._case = self._replay = None
        if self.timer.cuda:
            torch.cuda.empty_cache()  # the other version needs memory as well
        torch.set_num_threads(threads or self.most)
        # The file was written by `benchmarks.compare`, a moment ago.
        arguments = torch.load(inputs, map_location=self.device, weights_only=False)
        function = functools.partial(getattr(ops, op), impl=impl)
        self._case = autocast(function, arguments) if impl == "reference" else function, arguments, backward
        if self.timer.cuda:
            self._replay, _ = self.timer.sampler([timed_call(*self._case)])
        (first,) = self.sample(1, 1)["ms"]
        return {"ms": first if first > LONG_MS else min(self.sample(_GUESSES, 0)["ms"])}

    def sample(self, count: int, warm: int) -> dict[str, Any]:
        """Milliseconds of each of so many calls, after ``warm`` that are not counted.

        On a CPU the inputs are moved first: their addresses change times by some per cent, in every version.
        """
        assert self._case is not None
        take, spacer = self._replay, None
        if take is None:
            function, arguments, backward = self._case
            spacer = torch.empty(random.randrange(_SPACER), dtype=torch.uint8)  # moves what the calls allocate
            take = functools.partial(self.timer, timed_call(function, map_tensors(moved, arguments), backward))
        for _ in range(warm):
            take()
        times = [take() for _ in range(count)]
        del spacer
        return {"ms": times}

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """``declined``: it does not take this; ``failed``: any other error."""
        try:
            return getattr(self, request.pop("do"))(**request)
        except Exception as error:  # whatever an old revision raises is a reason not to compare with it
            return {"declined" if type(error).__name__ == "ImplementationError" else "failed": one_line(error)}


def moved(tensor: Tensor) -> Tensor:
    """The same numbers at a random cache line of new pages."""
    line = max(_LINE // tensor.element_size(), 1)
    offset = random.randrange(_PAGE // _LINE) * line
    memory = torch.empty(tensor.numel() + offset, dtype=tensor.dtype)
    return memory[offset:].view(tensor.shape).copy_(tensor)


def main(folder: str, device: str, dtype: str) -> None:
    """Answer until there are no more requests."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes: the other one ends this
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        sys.meta_path.insert(0, OnlyFrom(Path(folder)))
        worker = Worker(Path(folder), torch.device(device), getattr(torch, dtype))
        for line in sys.stdin:
            print(json.dumps(worker._answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
