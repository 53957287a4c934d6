"""Which implementation of an operation runs: one rule for all of them.

1. ``auto`` takes the first entry of `PREFERENCE` whose reasons against it are none.
2. A name runs, or raises `ImplementationError` with every reason why it cannot. It never falls back.
3. `PREFERENCE` changes only together with a committed benchmark result.

A choice is a text: ``NAME`` for every operation, ``stem=NAME`` for one, or several separated by commas, as in
``torch,tube_mask=native``. The innermost wins: the ``impl`` argument of a call, `use_impl`, the environment variable
``S2VFAST_IMPL``, ``auto``.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from s2vfast import errors

IMPLEMENTATIONS = ("reference", "torch", "triton", "native")

_TORCH = ("torch",)
PREFERENCE: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": dict.fromkeys(("clip_sample", "tube_mask", "embed_gather", "mask_fill", "adamw_ema"), ("native", "torch")),
    "cuda": {},
}

Reasons = Callable[..., list[str]]
F = TypeVar("F", bound=Callable[..., Any])


def constant(function: F) -> F:
    """Let torch.compile call a function once and keep its result.

    `torch.compiler.assume_constant_result` does no more than this, and costs a second: the import of the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@dataclass
class Op:
    """An operation: its implementations by name, and for each what can be said against running it."""

    stem: str
    implementations: dict[str, Callable[..., Any]]
    reasons: dict[str, Reasons] = field(default_factory=dict)

    def why_not(self, impl: str, device: str, *args: Any, **kwargs: Any) -> list[str]:
        """Every reason why ``impl`` cannot run on such a device (and with these arguments); empty if it can."""
        if impl not in self.implementations:
            return [f"{self.stem} has no {impl} implementation"]
        check = self.reasons.get(impl)
        return check(device, *args, **kwargs) if check else []

    def __call__(self, impl: str | None, device: torch.device, *args: Any, **kwargs: Any) -> Any:
        """Run the chosen implementation."""
        _one_device(self.stem, args, kwargs)
        name = _chosen(self.stem, impl)
        if name == "auto":
            name = self._preferred(device.type, args, kwargs)
        elif reasons := self.why_not(name, device.type, *args, **kwargs):
            raise errors.ImplementationError(f"{self.stem}: impl={name!r} cannot run here: {'; '.join(reasons)}")
        return self.implementations[name](*args, **kwargs)

    def _preferred(self, device: str, args: tuple, kwargs: dict) -> str:
        for name in PREFERENCE.get(device, {}).get(self.stem, _TORCH):
            if not self.why_not(name, device, *args, **kwargs):
                return name
        return "torch"


def _one_device(stem: str, args: tuple, kwargs: dict) -> None:
    """Refuse tensors of several devices, of which only a number may be on the CPU beside a GPU's."""
    devices = set()
    for value in (*args, *kwargs.values()):
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, torch.Tensor) and item.ndim:
                devices.add(str(item.device))
    if len(devices) > 1:
        raise errors.ShapeError(f"{stem}: its tensors are on {' and '.join(sorted(devices))}; put them on one device")


_OPS: dict[str, Op] = {}
_overrides: tuple[dict[str, str], ...] = ()  # of all threads: never changed in place, others may be reading it
_changing = threading.Lock()


class _Own(threading.local):
    """What `use_impl` has set for this thread alone."""

    overrides: tuple[dict[str, str], ...] = ()


_own = _Own()


def register(stem: str, reasons: dict[str, Reasons] | None = None, **implementations: Callable[..., Any]) -> Op:
    """Declare an operation; called once by the file of its stem."""
    _OPS[stem] = Op(stem, implementations, reasons or {})
    return _OPS[stem]


def operation(stem: str) -> Op:
    """The operation of that name, to ask what it can run and why not."""
    return _OPS[stem]


def parse_choice(text: str) -> dict[str, str]:
    """``torch,tube_mask=native`` as {"": "torch", "tube_mask": "native"}.

    Raises:
        ImplementationError: an operation or implementation that does not exist.
    """
    choice = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        stem, _, name = item.rpartition("=")
        if stem and stem not in _OPS:
            raise errors.ImplementationError(f"{item}: no operation {stem!r}; there are {', '.join(sorted(_OPS))}")
        if name not in (*IMPLEMENTATIONS, "auto"):
            raise errors.ImplementationError(
                f"{item}: no implementation {name!r}; there are {', '.join(IMPLEMENTATIONS)} and auto"
            )
        choice[stem] = name
    return choice


@contextlib.contextmanager
def use_impl(choice: str, everywhere: bool = True) -> Iterator[None]:
    """Set the implementation of all operations, or of some, within a ``with`` block.

    Args:
        choice: see the module's text.
        everywhere: in all threads; else in this one alone, where it goes before what is set for all.
    """
    global _overrides
    parsed = parse_choice(choice)
    if not everywhere:
        before = _own.overrides
        _own.overrides = (*before, parsed)
        try:
            yield
        finally:
            _own.overrides = before
        return
    with _changing:
        _overrides = (*_overrides, parsed)
    try:
        yield
    finally:
        with _changing:
            # Another thread may have entered since and still be inside: take out one's own, not the last.
            last = max(i for i, other in enumerate(_overrides) if other is parsed)
            _overrides = (*_overrides[:last], *_overrides[last + 1 :])


def _chosen(stem: str, impl: str | None) -> str:
    if impl is not None:
        choice = parse_choice(impl)
        return choice.get(stem, choice.get("", "auto"))
    for choice in (*reversed(_own.overrides), *reversed(_overrides)):
        if name := choice.get(stem, choice.get("")):
            return name
    choice = parse_choice(os.environ.get("S2VFAST_IMPL", ""))
    return choice.get(stem, choice.get("", "auto"))


def availability(device: str) -> dict[str, dict[str, list[str]]]:
    """For every operation and implementation, the reasons why it cannot run on ``cpu`` or ``cuda``; none: it can."""
    return {stem: {name: op.why_not(name, device) for name in IMPLEMENTATIONS} for stem, op in sorted(_OPS.items())}


def require(good: bool, stem: str, argument: str, expected: str, found: Any) -> None:
    """Raise `ShapeError` naming the operation and the argument unless ``good``."""
    if not good:
        if isinstance(found, torch.Tensor):
            found = f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)} on {found.device}"
        raise errors.ShapeError(f"{stem}: {argument}: expected {expected}, got {found}")
