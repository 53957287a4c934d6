"""One version of s2vfast, kept alive, that measures what it is asked for: the other end of `benchmarks.compare`.

    python -m benchmarks._worker FOLDER DESCRIPTOR DEVICE DTYPE

Requests are JSON lines on stdin; answers are JSON lines on a descriptor of their own, so that what libraries print does
not get between them. s2vfast is imported from FOLDER and from nowhere else, and of the harness only what needs nothing
of s2vfast is: FOLDER may hold an old revision, which lacks what `benchmarks._ops` imports.
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

from benchmarks._calls import autocast, call_of
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
        found = PathFinder.find_spec(name, [str(self.folder)] if path is None else path)
        if found is None:
            raise ModuleNotFoundError(f"there is no {name}", name=name)
        return found


class Worker:
    """Answers requests, one at a time: each method is one, but those with an underscore."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self.timer, self.most = Timer(device), torch.get_num_threads()
        self._case: tuple[Callable[..., Any], dict[str, Any], bool] | None = None
        self._replay: Callable[[], float] | None = None  # on a GPU

    def hello(self) -> dict[str, Any]:
        """What this version has: operations, and for every implementation the reasons why it cannot run here."""
        import s2vfast
        from s2vfast import ops

        found = Path(str(s2vfast.__file__)).resolve()
        if not found.is_relative_to(self.folder.resolve()):
            raise ImportError(f"s2vfast was imported from {found}, not from {self.folder}")
        return {"has": ops.availability(self.device.type), "threads": self.most}

    def verify(self, stem: str, impl: str, sizes: dict[str, int]) -> dict[str, Any]:
        """``wrong``: in what an implementation differs from the reference of its own version; {} where in nothing."""
        from s2vfast.inputs import Shape
        from s2vfast.verify import verify

        torch.set_num_threads(self.most)
        known = {field.name for field in dataclasses.fields(Shape)}
        shape = Shape(**{name: size for name, size in sizes.items() if name in known})
        try:
            rows = verify(stem, impl, shape, dtype=self.dtype, device=self.device)
        except AssertionError as error:  # not even as many results, or of other shapes
            return {"wrong": str(error)}
        if bad := [row for row in rows if not row.good]:
            worst = max(bad, key=lambda row: row.error / max(row.allowed, 1e-30))
            return {"wrong": f"{worst.name} is off by {worst.error:.2g} where {worst.allowed:.2g} is allowed"}
        return {}

    def prepare(self, stem: str, impl: str, inputs: str, backward: bool, threads: int) -> dict[str, Any]:
        """Get ready to sample; about how many ms a call takes.

        Args:
            stem: name of the operation.
            impl: its implementation.
            inputs: path of a file that holds the arguments.
            backward: gradients too.
            threads: how many; 0: all.
        """
        from s2vfast import ops

        self._case = self._replay = None
        if self.timer.cuda:
            torch.cuda.empty_cache()  # the other version needs room as well
        torch.set_num_threads(threads or self.most)
        # What is in the file was written by `benchmarks.compare`, a moment ago.
        given = torch.load(inputs, map_location=self.device, weights_only=False)
        function = functools.partial(getattr(ops, stem), impl=impl)
        self._case = autocast(function, given) if impl == "reference" else function, given, backward
        if self.timer.cuda:
            self._replay, _ = self.timer.sampler([call_of(*self._case)])
        (first,) = self.sample(1, 1)["ms"]
        return {"ms": first if first > LONG_MS else min(self.sample(_GUESSES, 0)["ms"])}

    def sample(self, count: int, warm: int) -> dict[str, Any]:
        """Milliseconds of each of so many calls, after ``warm`` that are not counted.

        On a CPU the inputs are moved first: where they lie makes some per cent, which is no property of a version.
        """
        assert self._case is not None
        take, spacer = self._replay, None
        if take is None:
            function, given, backward = self._case
            spacer = torch.empty(random.randrange(_SPACER), dtype=torch.uint8)  # moves what the calls allocate
            take = functools.partial(self.timer, call_of(function, _moved(given), backward))
        for _ in range(warm):
            take()
        times = [take() for _ in range(count)]
        del spacer
        return {"ms": times}

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """``declined``: it does not take this; ``failed``: anything else that was raised."""
        try:
            return getattr(self, request.pop("do"))(**request)
        except Exception as error:  # whatever an old revision raises is a reason not to compare with it
            kind = "declined" if type(error).__name__ == "ImplementationError" else "failed"
            return {kind: f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _moved(value: Any) -> Any:
    """The same numbers at a random cache line of new pages."""
    if isinstance(value, dict):
        return {name: _moved(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_moved(item) for item in value]
    if not isinstance(value, Tensor):
        return value
    line = max(_LINE // value.element_size(), 1)
    begin = random.randrange(_PAGE // _LINE) * line
    room = torch.empty(value.numel() + begin, dtype=value.dtype)
    return room[begin:].view(value.shape).copy_(value)


def main(folder: str, descriptor: str, device: str, dtype: str) -> None:
    """Answer until there are no more requests."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes: the other one ends this
    sys.meta_path.insert(0, OnlyFrom(Path(folder)))
    worker = Worker(Path(folder), torch.device(device), getattr(torch, dtype))
    with os.fdopen(int(descriptor), "w", encoding="utf-8") as answers:
        for line in sys.stdin:
            print(json.dumps(worker._answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
