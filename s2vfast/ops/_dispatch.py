"""Which implementation of an operation runs: one rule for all of them.

1. ``auto`` takes what calibration has chosen for these sizes (`use_chooser`), where a run is calibrated; else the
   first entry of `PREFERENCE` whose reasons against it are none.
2. A name runs, or raises `ImplementationError` with every reason why it cannot. It never falls back.
3. `PREFERENCE` changes only together with a committed benchmark result.

A choice is a text: ``NAME`` for every operation, ``op=NAME`` for one, or several separated by commas, as in
``torch,tube_mask=native``. The innermost wins: the ``impl`` argument of a call, `use_impl`, the environment variable
``S2VFAST_IMPL``, ``auto``. `register_impl` adds an implementation from outside of the package.
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
    "cpu": dict.fromkeys(
        (
            *("clip_sample", "tube_mask", "embed_gather", "batch_norm", "graph_attention", "joint_mix", "mask_fill"),
            *("temporal_branches", "adamw_ema", "point_sample", "voxelize", "sparse_conv", "attention"),
        ),
        ("native", "torch"),
    ),
    "cuda": {},
}

Reasons = Callable[..., list[str]]
Chooser = Callable[[str, str, tuple, dict[str, Any]], "str | None"]
"""``chooser(op, device, args, kwargs)``: the implementation that ``auto`` takes; None leaves it to `PREFERENCE`."""
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

    name: str
    implementations: dict[str, Callable[..., Any]]
    reasons: dict[str, Reasons] = field(default_factory=dict)

    def why_not(self, impl: str, device: str, *args: Any, **kwargs: Any) -> list[str]:
        """Every reason why ``impl`` cannot run on such a device (and with these arguments); empty if it can."""
        if impl not in self.implementations:
            return [f"{self.name} has no {impl} implementation"]
        check = self.reasons.get(impl)
        return check(device, *args, **kwargs) if check else []

    def __call__(self, impl: str | None, device: torch.device, *args: Any, **kwargs: Any) -> Any:
        """Run the chosen implementation."""
        _one_device(self.name, args, kwargs)
        selected = _chosen(self.name, impl)
        if selected == "auto":
            selected = self._preferred(device.type, args, kwargs)
        elif reasons := self.why_not(selected, device.type, *args, **kwargs):
            raise errors.ImplementationError(f"{self.name}: impl={selected!r} cannot run here: {'; '.join(reasons)}")
        return self.implementations[selected](*args, **kwargs)

    def _preferred(self, device: str, args: tuple, kwargs: dict) -> str:
        if _own.chooser is not None:
            choice = _own.chooser(self.name, device, args, kwargs)
            if choice is not None and not self.why_not(choice, device, *args, **kwargs):
                return choice
        for name in self.preference(device):
            if not self.why_not(name, device, *args, **kwargs):
                return name
        return "torch"

    def preference(self, device: str) -> tuple[str, ...]:
        """What ``auto`` takes without calibration, the first that can run."""
        return PREFERENCE.get(device, {}).get(self.name, _TORCH)


def _one_device(op: str, args: tuple, kwargs: dict) -> None:
    """Refuse tensors of several devices, of which only a number may be on the CPU beside a GPU's."""
    first = None
    for value in (*args, *kwargs.values()):
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, torch.Tensor) and item.ndim:
                first = first or item.device
                if item.device != first:
                    two = " and ".join(sorted((str(first), str(item.device))))
                    raise errors.ShapeError(f"{op}: its tensors are on {two}; put them on one device")


_OPS: dict[str, Op] = {}
_overrides: tuple[dict[str, str], ...] = ()  # of all threads: never changed in place, others may be reading it
_changing = threading.Lock()


class _Own(threading.local):
    """What `use_impl` and `use_chooser` have set for this thread alone."""

    overrides: tuple[dict[str, str], ...] = ()
    chooser: Chooser | None = None


_own = _Own()


def register(op: str, reasons: dict[str, Reasons] | None = None, **implementations: Callable[..., Any]) -> Op:
    """Declare an operation; called once by the file of its name."""
    _OPS[op] = Op(op, implementations, reasons or {})
    return _OPS[op]


def register_impl(op: str, name: str, function: Callable[..., Any], why_not: Reasons | None = None) -> None:
    """Add an implementation of an operation; ``impl=name``, `use_impl` and `s2vfast.verify` then take it.

    ``auto`` chooses it only where calibration has found it right and the fastest. A name that was added before is
    replaced.

    Args:
        op: name of the operation, such as ``attention``.
        name: of the implementation: letters, digits and underscores, and none of `IMPLEMENTATIONS` or ``auto``.
        function: called as the public function is, with all arguments but ``impl``: those before the ``*`` in order,
            the others by name. They have been checked. It returns what the public function returns, and is
            differentiable where that is: plain PyTorch is, or a custom operator with its own backward pass.
        why_not: ``why_not(device, *args, **kwargs)`` returns every reason why it cannot run on a device (``cpu``,
            ``cuda``) with these arguments, none where it can; asked without arguments for the device alone.

    Raises:
        ImplementationError: no such operation, or a name that cannot be given.
    """
    _known_op(op, f"register_impl({op!r}, {name!r})")
    if not name.isidentifier() or name in (*IMPLEMENTATIONS, "auto"):
        reserved = ", ".join((*IMPLEMENTATIONS, "auto"))
        raise errors.ImplementationError(
            f"register_impl({op!r}, {name!r}): expected letters, digits and underscores, and not one of {reserved}"
        )
    _OPS[op].implementations[name] = function
    _OPS[op].reasons[name] = why_not or (lambda *_, **__: [])


def operation(op: str) -> Op:
    """The operation of that name, to ask what it can run and why not."""
    return _OPS[op]


def _known_op(op: str, caller: str) -> None:
    if op not in _OPS:
        raise errors.ImplementationError(f"{caller}: no operation {op!r}; there are {', '.join(sorted(_OPS))}")


def parse_choice(text: str) -> dict[str, str]:
    """``torch,tube_mask=native`` as {"": "torch", "tube_mask": "native"}.

    Raises:
        ImplementationError: an operation or implementation that does not exist.
    """
    choice = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        op, _, name = item.rpartition("=")
        if op:
            _known_op(op, item)
        names = _names([_OPS[op]] if op else list(_OPS.values()))
        if name not in names and name != "auto":
            raise errors.ImplementationError(
                f"{item}: no implementation {name!r}; there are {', '.join(names)} and auto"
            )
        choice[op] = name
    return choice


def _names(operations: list[Op]) -> list[str]:
    """`IMPLEMENTATIONS`, whether the operations have them or not, and those that `register_impl` added to any."""
    names = list(IMPLEMENTATIONS)
    for op in operations:
        names += [name for name in op.implementations if name not in names]
    return names


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


@contextlib.contextmanager
def use_chooser(chooser: Chooser | None) -> Iterator[None]:
    """Let ``auto`` ask this first within a ``with`` block, in this thread alone; None: `PREFERENCE` alone."""
    before, _own.chooser = _own.chooser, chooser
    try:
        yield
    finally:
        _own.chooser = before


def is_auto(choice: str) -> bool:
    """Whether a text, or the environment where it is ``auto``, leaves operations that it does not name to ``auto``."""
    texts = (choice, os.environ.get("S2VFAST_IMPL", ""))
    return all(parse_choice(text).get("", "auto") == "auto" for text in texts)


def _chosen(op: str, impl: str | None) -> str:
    if impl is not None:
        choice = parse_choice(impl)
        return choice.get(op, choice.get("", "auto"))
    for choice in (*reversed(_own.overrides), *reversed(_overrides)):
        if name := choice.get(op, choice.get("")):
            return name
    choice = parse_choice(os.environ.get("S2VFAST_IMPL", ""))
    return choice.get(op, choice.get("", "auto"))


def availability(device: str) -> dict[str, dict[str, list[str]]]:
    """For every operation and implementation, the reasons why it cannot run on ``cpu`` or ``cuda``; none: it can."""
    return {name: {impl: op.why_not(impl, device) for impl in _names([op])} for name, op in sorted(_OPS.items())}


def require(good: bool, op: str, argument: str, expected: str, value: Any) -> None:
    """Raise `ShapeError` naming the operation and the argument unless ``good``."""
    if not good:
        if isinstance(value, torch.Tensor):
            value = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
        raise errors.ShapeError(f"{op}: {argument}: expected {expected}, got {value}")
