"""What the operations of a step were called with, and the choice that is made from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LARGE = 2**20
"""Numbers of a floating tensor that are kept at least; of a larger one, some rows stand for all."""

Signature = tuple[Any, ...]
"""Whether a gradient is needed; then (dtype, *sizes) of every tensor, and flags and texts as they are. Numbers, which
change from step to step, are not part of it."""

_NAMES: dict[torch.dtype, str] = {}


def signature(args: tuple, kwargs: Mapping[str, Any]) -> Signature:
    """The `Signature` of a call."""
    needs_gradient = False
    leaves: list[Any] = []
    for value in (*args, *kwargs.values()):
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, Tensor):
                needs_gradient = needs_gradient or item.requires_grad
                name = _NAMES.get(item.dtype) or _NAMES.setdefault(item.dtype, str(item.dtype)[6:])
                leaves.append((name, *item.shape))
            elif item is None or isinstance(item, (bool, str)):
                leaves.append(item)
    return (needs_gradient and torch.is_grad_enabled(), *leaves)


def from_json(value: Any) -> Any:
    """A signature that JSON has read, whose tuples have become lists."""
    return tuple(from_json(item) for item in value) if isinstance(value, list) else value


def text(key: Signature) -> str:
    """A signature for a table: its largest tensor, and whether a gradient is needed."""
    tensors = [leaf for leaf in key[1:] if isinstance(leaf, tuple)]
    if not tensors:
        return "no tensor"
    name, *sizes = max(tensors, key=lambda leaf: math.prod(leaf[1:]))
    return f"{name} {' × '.join(map(str, sizes))}{', gradients' if key[0] else ''}"


@dataclass(frozen=True)
class SavedTensor:
    """A tensor as it was, or some of its rows where it is large: of real numbers, signs and zeros included."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    rows: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> SavedTensor:
        """Of a tensor, on the host. Indices are kept whole: what they point at must be there."""
        rows = tensor.detach()
        if tensor.is_floating_point() and tensor.numel() > LARGE:
            count = max(LARGE // (tensor.numel() // len(tensor)), 1)
            rows = rows[:: -(-len(rows) // count)]
        rows = rows.to("cpu", copy=True).contiguous()
        return cls(tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.requires_grad, rows)

    def rebuilt(self, device: torch.device) -> Tensor:
        """A tensor of this shape and layout; rows that were left out repeat those that were not."""
        rows = self.rows.to(device)
        if self.shape and len(rows) < self.shape[0]:
            rows = rows[torch.arange(self.shape[0], device=device) % len(rows)]
        # Of an expanded dimension memory holds one.
        held = tuple(1 if step == 0 else size for size, step in zip(self.shape, self.stride, strict=True))
        result = torch.empty_strided(held, self.stride, dtype=self.dtype, device=device)
        result.copy_(rows[tuple(slice(size) for size in held)] if self.shape else rows)
        return result.expand(self.shape).requires_grad_(self.requires_grad)


@dataclass(frozen=True)
class Call:
    """A call of an operation, with `SavedTensor` for every tensor."""

    op: str
    key: Signature
    args: list[Any]
    kwargs: dict[str, Any]

    def arguments(self, device: torch.device) -> tuple[list[Any], dict[str, Any]]:
        """The arguments again, on a device."""

        def rebuilt(value: Any) -> Any:
            if isinstance(value, list):
                return [rebuilt(item) for item in value]
            return value.rebuilt(device) if isinstance(value, SavedTensor) else value

        return rebuilt(self.args), {name: rebuilt(value) for name, value in self.kwargs.items()}


class Recorder:
    """A chooser (`s2vfast.ops.use_chooser`) that chooses nothing and keeps one call of each signature.

    Args:
        device: ``cpu`` or ``cuda``; calls elsewhere are not kept.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.calls: dict[tuple[str, Signature], Call] = {}
        self.counts: dict[tuple[str, Signature], int] = {}
        """How often each was called."""

    def __call__(self, op: str, device: str, args: tuple, kwargs: dict[str, Any]) -> None:
        """Keep a call."""
        if device != self.device:
            return
        key = signature(args, kwargs)
        if (op, key) not in self.calls:
            saved_kwargs = {name: _saved(value) for name, value in kwargs.items()}
            self.calls[op, key] = Call(op, key, [_saved(value) for value in args], saved_kwargs)
        self.counts[op, key] = self.counts.get((op, key), 0) + 1


def _saved(value: Any) -> Any:
    if isinstance(value, Tensor):
        return SavedTensor.of(value)
    # Tuples of tensors too: where one is asked for, a list is as good.
    tensors = isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value)
    return [_saved(item) for item in value] if tensors else value


class Choices:
    """A chooser that answers from a table; at sizes that it does not have, as at the nearest.

    Args:
        device: ``cpu`` or ``cuda``; nothing is chosen elsewhere.
        table: implementation by operation and signature.
    """

    def __init__(self, device: str, table: Mapping[tuple[str, Signature], str]) -> None:
        self.device, self.table = device, dict(table)
        self._answers: dict[tuple[str, Signature], str | None] = dict(table)

    def __call__(self, op: str, device: str, args: tuple, kwargs: dict[str, Any]) -> str | None:
        """The implementation for a call; None: the table has nothing like it."""
        if device != self.device:
            return None
        key = op, signature(args, kwargs)
        if key not in self._answers:
            self._answers[key] = self._nearest(*key)
        return self._answers[key]

    def _nearest(self, op: str, key: Signature) -> str | None:
        distances = [
            (sum(abs(math.log((a + 1) / (b + 1))) for a, b in zip(_sizes(key), _sizes(other), strict=True)), impl)
            for (name, other), impl in self.table.items()
            if name == op and _kind(other) == _kind(key)
        ]
        return min(distances)[1] if distances else None


def _kind(key: Signature) -> Signature:
    """What must be equal: dtypes, numbers of dimensions, flags."""
    return tuple((leaf[0], len(leaf)) if isinstance(leaf, tuple) else leaf for leaf in key)


def _sizes(key: Signature) -> Iterator[int]:
    return (size for leaf in key if isinstance(leaf, tuple) for size in leaf[1:])
