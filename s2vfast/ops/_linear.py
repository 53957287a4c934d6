"""A linear map as PyTorch does it best on each device: what the ``torch`` implementations share.

On a CPU, F.linear writes the bias to the result before the product is added to it, and F.gelu goes through memory once
more. oneDNN does both in one pass: 120 GFLOP/s where F.linear has 69, of 16,640 rows of 64 numbers and 192 results.
Products without a bias are the BLAS's, of a weight that is turned over first. Of these the gradient of x is the faster
one where x is the wider: 145 to 160 GFLOP/s where oneDNN has 84 to 105 (384 and 768 to 128 and 256 numbers). A weight's
gradient is made with the smaller of the weight's two sizes as rows: 121 in place of 86 GFLOP/s (64 and 192). oneDNN
also packs the weight anew in every call, some 25 microseconds: of few rows, as of one sequence, F.linear takes a third
of the time.

Where `torch.get_float32_matmul_precision` is not "highest", and the CPU has a matrix unit for bfloat16 (Intel AMX),
products are made there (csrc/split_product.h): every number as the sum of two bfloat16, errors of some 1e-5. Of 3,000
rows of 256 numbers they take half the time, forward and backward; of 64 numbers to 64 memory is what binds, and they
take no less.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from s2vfast import _extension
from s2vfast.ops._native import addresses, place

WIDE = 192
"""Numbers of a row and of its result, together, from which on the matrix unit is faster."""
MANY_ROWS = 1024
"""From so many rows on all this is as fast as F.linear or faster, measured for D and E of 48 to 1,024."""


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
    if not _many_rows(x, weight):
        y = F.linear(x, weight, bias)
        return F.gelu(y) if gelu else y
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        y = _Linear.apply(x, weight, bias)
        return F.gelu(y) if gelu else y  # its gradient needs what went in
    return _product(x, weight, bias, gelu)


class _Linear(torch.autograd.Function):
    """The linear map with a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # [rows, D]
        ctx.save_for_backward(rows, weight)
        ctx.shape = x.shape
        return _product(rows, weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])  # [rows, E]
        times = _split_product if _wide(*weight.shape) else torch.matmul
        by_x = times(grad, weight).view(ctx.shape) if need_x else None
        by_weight = None
        if need_weight:
            E, D = weight.shape
            by_weight = times(grad.t(), rows) if E <= D else times(rows.t(), grad).t()
        return by_x, by_weight, grad.sum(0) if need_bias else None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    if _wide(*weight.shape):
        y = _split_product(x.reshape(-1, x.shape[-1]), weight.t().contiguous(), bias).view(*x.shape[:-1], -1)
        return F.gelu(y) if gelu else y
    if bias is None and not gelu:
        return x @ weight.t().contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")


def _split_product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left [rows, n] @ right [n, columns], plus bias [columns], on the matrix unit."""
    turned = left.stride(0) == 1 and left.stride(1) > 1
    left = left if turned or left.stride(1) == 1 else left.contiguous()
    right = right if right.stride(1) == 1 else right.contiguous()
    out = left.new_empty(left.shape[0], right.shape[1])
    sizes = {"rows": left.shape[0], "count": left.shape[1], "columns": right.shape[1], "turned": turned}
    steps = {"left_step": left.stride(1 if turned else 0), "right_step": right.stride(0), "out_step": out.stride(0)}
    tensors = {"left": left, "right": right, "out": out, "bias": None if bias is None else bias.contiguous()}
    _extension.load().split_product(**sizes, **steps, **addresses(**tensors), **place(out))
    return out


def splits() -> bool:
    """Whether products of float32 on this CPU are those of sums of two bfloat16."""
    return _extension.emulated() is None and _has_unit() and precision() not in ("highest", None)


def precision() -> str | None:
    """What torch.get_float32_matmul_precision says; None where precisions are set for each backend: it then refuses."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _wide(*sizes: int) -> bool:
    """Whether products of a weight of these sizes are faster on the matrix unit, and may be made there."""
    return sum(sizes) >= WIDE and splits()


@functools.cache
def _has_unit() -> bool:
    return not _extension.why_not() and _extension.facts()["matrix unit"]


def _many_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether all this is worth it: not where something looks on (a compiler, a mode that counts or fakes)."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    if not plain or watched:  # who looks on would take a question about sizes for a condition on them
        return False
    return x.numel() >= MANY_ROWS * x.shape[-1] > 0 and _has_onednn()


@functools.cache
def _has_onednn() -> bool:
    """Whether this PyTorch has the fused operator, which is none of its public ones."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
