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


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same dictionaries and lists with other tensors."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: map_tensors(function, item) for name, item in value.items()}
    return [map_tensors(function, item) for item in value] if isinstance(value, list) else value


def one_line(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def autocast(function: Callable[..., Any], arguments: dict[str, Any]) -> Callable[..., Any]:
    """The reference's code as a training script runs it: where operands are bfloat16, under autocast."""
    low = next((t for t in tensors_of(arguments) if t.dtype == torch.bfloat16), None)
    if low is None:
        return function

    def call(**kw: Any) -> Any:
        with torch.autocast(low.device.type, torch.bfloat16):
            return function(**kw)

    return call


def leaves_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with all floating tensors as leaves that need a gradient, but for clips, which need none."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor

    return {name: value if name == "clips" else map_tensors(leaf, value) for name, value in arguments.items()}


def _differentiable(outputs: Any) -> list[Tensor]:
    """Tensors that have a gradient: statistics of a batch have none."""
    return [tensor for tensor in tensors_of(outputs) if tensor.requires_grad]


def timed_call(function: Callable[..., Any], arguments: dict[str, Any], backward: bool) -> Callable[[], Any]:
    """The call that is timed: the function, with ``backward`` also the gradients of its floating inputs."""
    if not backward:

        def forward() -> Any:
            with torch.no_grad():
                return function(**arguments)

        return forward
    inputs = leaves_of(arguments)
    leaves = [tensor for tensor in tensors_of(inputs) if tensor.requires_grad]
    # The same numbers for every function: randn_like would draw in the order of memory, which depends on the layout.
    generator = torch.Generator(leaves[0].device).manual_seed(0)
    upstream = [
        torch.empty_like(out).copy_(torch.randn(out.shape, dtype=out.dtype, device=out.device, generator=generator))
        for out in _differentiable(function(**inputs))
    ]

    def both() -> Any:
        outputs = _differentiable(function(**inputs))
        return torch.autograd.grad(outputs, leaves, upstream, allow_unused=True)

    return both


def difference(results: list[Tensor | None], expected: list[Tensor | None], dtype: torch.dtype) -> str:
    """The first disagreement of two lists of results beyond rounding; empty where they agree."""
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    for number, (result, other) in enumerate(zip(results, expected, strict=True)):
        if result is None or other is None:
            if result is not other:
                return f"result {number} exists in one of them alone"
            continue
        error = (result.double() - other.double()).abs().max() if result.numel() else torch.zeros(())
        allowed = tolerance * other.double().abs().max() if other.is_floating_point() and other.numel() else 0.0
        if not error <= allowed:
            return f"result {number} is off by {float(error):.2g}"
    return ""
