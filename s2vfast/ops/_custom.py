"""Custom operators, each declared by one line of PyTorch's schema language.

`torch.library.custom_op` declares one by annotations that every function of it has to repeat, and imports the compiler
at the first call, which takes a second of every process. Here the schema alone says names and types; kernels and fakes
name what they look at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.function import once_differentiable

_LIBRARY = torch.library.Library("s2vfast", "FRAGMENT")

KERNELS: dict[str, Callable[..., Any]] = {}
"""What each operator runs, by its qualified name ``s2vfast::NAME``: for tests that look inside."""


def operator(schema: str) -> Callable[[Callable[..., Any]], OpOverload]:
    """Decorator that makes a function an operator on CPUs and GPUs; the operator replaces the function.

    Args:
        schema: ``NAME(Tensor x, float eps) -> Tensor``, without defaults: PyTorch leaves out arguments that equal
            theirs. ``Tensor(a!) x`` is changed in place.

    Returns:
        The decorator. Its function is called with all arguments in the order of the schema, outside of autograd.
    """

    def define(function: Callable[..., Any]) -> OpOverload:
        name = _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        overload = getattr(torch.ops.s2vfast, name).default
        changed = [i for i, argument in enumerate(overload._schema.arguments) if argument.is_write]
        uncompiled = None

        def kernel(*args: Any) -> Any:
            nonlocal uncompiled
            # Once the compiler is there it must be kept out of kernels; before, to say so would import it.
            if uncompiled is None and "torch._dynamo" in sys.modules:
                uncompiled = torch._disable_dynamo(function)
            results = (uncompiled or function)(*args)
            for i in changed:
                torch.autograd.graph.increment_version(args[i])
            return results

        for device in ("CPU", "CUDA"):
            _LIBRARY.impl(name, kernel, device)
        KERNELS[f"s2vfast::{name}"] = function
        return overload

    return define


def fake(overload: OpOverload) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of the function that makes an operator's results without computing them: shapes, dtypes, devices."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        # Called from here, not from each operation's file: PyTorch looks through all modules there are for a caller
        # that it has not met, some milliseconds each time.
        torch.library.register_fake(overload, function, lib=_LIBRARY)
        return function

    return register


def differentiate(overload: OpOverload, gradients: Callable[..., Any], save: Callable[[Any, tuple, Any], None]) -> None:
    """Give an operator its backward pass, which cannot be differentiated again.

    Args:
        overload: the operator.
        gradients: ``gradients(ctx, *upstream)``, one for each argument, None where there is none.
        save: ``save(ctx, inputs, output)`` keeps what ``gradients`` needs.
    """
    torch.library.register_autograd(overload, once_differentiable(gradients), setup_context=save, lib=_LIBRARY)


def contiguous(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Tensors as kernels read them; None stays None."""
    return [tensor if tensor is None else tensor.contiguous() for tensor in tensors]


def like(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Empty contiguous tensors of these shapes and dtypes, of those that are not None."""
    return [tensor.new_empty(tensor.shape) for tensor in tensors if tensor is not None]


def present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Those that are not None: an operator's list of results cannot hold None."""
    return [tensor for tensor in tensors if tensor is not None]


def one_each(gradients: Sequence[Tensor], tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients of `present` tensors, with None again where a tensor is None."""
    remaining = iter(gradients)
    return [None if tensor is None else next(remaining) for tensor in tensors]


def signed(seed: int) -> int:
    """A seed of 64 bits as the signed number of the same bits: a schema has signed integers alone."""
    return (seed + 2**63) % 2**64 - 2**63
