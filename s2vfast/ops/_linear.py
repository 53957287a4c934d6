"""A linear map as PyTorch does it best on each device: what the ``torch`` implementations share.

On a CPU, F.linear writes the bias to the result before the product is added to it, and F.gelu goes through memory once
more. oneDNN does all in one pass, and its products of many rows with a weight are some 8 % faster than the BLAS's,
while the BLAS's are faster where the rows are summed over, as in a weight's gradient: each does what it is better at.
oneDNN also packs the weight anew in every call, some 25 microseconds: of few rows, as of one sequence, the BLAS's
products take a third of the time.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MANY_ROWS = 1024
"""From so many rows on oneDNN is as fast as the BLAS or faster, measured for D and E of 64 to 1,024."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """x @ weight^T + bias, in the weight's dtype; with ``gelu`` the exact GELU of it.

    Args:
        x: [..., D], in the weight's dtype.
        weight: [E, D].
        bias: [E] of any dtype, or None.
        gelu: whether GELU follows.

    Returns:
        [..., E].
    """
    bias = None if bias is None else bias.to(weight.dtype)
    if not _by_onednn(x, weight):
        y = F.linear(x, weight, bias)
        return F.gelu(y) if gelu else y
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        y = _Linear.apply(x, weight, bias)
        return F.gelu(y) if gelu else y  # its gradient needs what went in
    return _onednn(x, weight, bias, "gelu" if gelu else "none")


class _Linear(torch.autograd.Function):
    """The linear map with a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # [rows, E]
        by_x = _onednn(rows, weight.t(), None).view(x.shape) if need_x else None
        by_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if need_weight else None
        return by_x, by_weight, rows.sum(0) if need_bias else None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, after: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], "none")


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is to do it: not where something looks on (a compiler, a mode that counts or fakes)."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if not plain or x.numel() < MANY_ROWS * x.shape[-1] or x.shape[-1] == 0:
        return False
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    return not watched and _has_onednn()


@functools.cache
def _has_onednn() -> bool:
    """Whether this PyTorch has the fused operator, which is none of its public ones."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
