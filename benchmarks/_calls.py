"""What is timed of an operation. Needs nothing of s2vfast, so that old revisions are timed in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def tensors_of(values: Any) -> Iterator[Tensor]:
    """All tensors in lists, tuples and dictionaries."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple, dict)):
        for value in values.values() if isinstance(values, dict) else values:
            yield from tensors_of(value)


def autocast(function: Callable[..., Any], given: dict[str, Any]) -> Callable[..., Any]:
    """The reference's code as a training script runs it: where operands are bfloat16, under autocast."""
    low = next((t for t in tensors_of(given) if t.dtype == torch.bfloat16), None)
    if low is None:
        return function

    def call(**kw: Any) -> Any:
        with torch.autocast(low.device.type, torch.bfloat16):
            return function(**kw)

    return call


def leaves_of(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments as leaves of which a gradient is asked: all floating tensors but clips, which need none."""

    def leaf(value: Any) -> Any:
        if isinstance(value, list):
            return [leaf(item) for item in value]
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().requires_grad_()
        return value

    return {name: value if name == "clips" else leaf(value) for name, value in given.items()}


def call_of(function: Callable[..., Any], given: dict[str, Any], backward: bool) -> Callable[[], Any]:
    """What is timed: the function, with ``backward`` also the gradients of its floating inputs."""
    if not backward:

        def forward() -> Any:
            with torch.no_grad():
                return function(**given)

        return forward
    asked = leaves_of(given)
    leaves = [tensor for tensor in tensors_of(asked) if tensor.requires_grad]
    # Laid out as the output is, which is no reason for other numbers: randn_like draws in the order of memory.
    upstream = [
        torch.empty_like(out).copy_(torch.randn(out.shape, dtype=out.dtype, device=out.device))
        for out in tensors_of(function(**asked))
    ]

    def both() -> Any:
        outputs = list(tensors_of(function(**asked)))
        return torch.autograd.grad(outputs, leaves, upstream, allow_unused=True)

    return both


def differs(found: list[Tensor | None], expected: list[Tensor | None], dtype: torch.dtype) -> str:
    """In what results are not another's, to what a whole batch rounds to; empty where they agree."""
    allowed = 1e-3 if dtype == torch.float32 else 5e-2
    for number, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        if mine is None or theirs is None:
            if mine is not theirs:
                return f"result {number} is there in one of them alone"
            continue
        error = (mine.double() - theirs.double()).abs().max() if mine.numel() else torch.zeros(())
        most = allowed * theirs.double().abs().max() if theirs.is_floating_point() and theirs.numel() else 0.0
        if not error <= most:
            return f"result {number} is off by {float(error):.2g}"
    return ""
