"""Batch norm with statistics of the batch, a residual and ReLU. Contract: `s2vfast.reference.batch_norm`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from s2vfast import _extension
from s2vfast.ops import _native, _triton
from s2vfast.ops._custom import contiguous, differentiate, fake, operator
from s2vfast.ops._dispatch import register, require
from s2vfast.reference.batch_norm import batch_norm as _reference


def batch_norm(
    x: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    relu_first: bool = False,
    relu: bool = False,
    eps: float = 1e-5,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """relu(relu(norm of x's columns) + residual), where either ReLU and the residual may be left out.

    Args:
        x: matrices [..., C_i] that lie side by side, C channels together; rows are all axes but the last.
        weight: [C].
        bias: [C].
        residual: [..., C], or None.
        relu_first: whether there is a ReLU before the residual.
        relu: whether there is one after it.
        eps: added to the variance.
        impl: implementation; None: see `use_impl`.

    Returns:
        [..., C], and the rows' mean and biased variance, [C] each, which have no gradient.
    """
    x = list(x)
    require(len(x) > 0, "batch_norm", "x", "one matrix or more", x)
    first = x[0].shape[:-1]
    for matrix in x:
        good = matrix.ndim > 1 and matrix.shape[:-1] == first
        require(good, "batch_norm", "x", f"[{', '.join(map(str, first))}, C_i]", matrix)
    channels = sum(matrix.shape[-1] for matrix in x)
    for name, value in (("weight", weight), ("bias", bias)):
        require(value.shape == (channels,), "batch_norm", name, f"[{channels}]", value)
    good = residual is None or residual.shape == (*first, channels)
    require(good, "batch_norm", "residual", f"[{', '.join(map(str, first))}, {channels}]", residual)
    return _op(impl, x[0].device, x, weight, bias, residual, relu_first=relu_first, relu=relu, eps=eps)


def _torch(
    x: list[Tensor], weight: Tensor, bias: Tensor, residual: Tensor | None, *, relu_first: bool, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    columns = x[0] if len(x) == 1 else torch.cat(x, -1)
    if not columns.numel():
        return _reference(x, weight, bias, residual, relu_first=relu_first, relu=relu, eps=eps)
    y, mean, rstd = torch.native_batch_norm(columns.flatten(0, -2), weight, bias, None, None, True, 0.0, eps)
    y = y.view(columns.shape)
    if relu_first:
        y = torch.relu(y)
    if residual is not None:
        y = y + residual
    if relu:
        y = torch.relu(y)
    variance = (rstd.detach().square().reciprocal() - eps).clamp(min=0.0)
    return y, mean.detach(), variance


def _sizes(x: list[Tensor]) -> dict[str, Any]:
    widths = [matrix.shape[-1] for matrix in x]
    return {"rows": x[0][..., 0].numel(), "widths": widths, "x": [matrix.data_ptr() for matrix in x]}


_FORWARD = (
    "(Tensor[] x, Tensor weight, Tensor bias, Tensor? residual, bool relu_first, bool relu, float eps)"
    " -> (Tensor, Tensor, Tensor)"
)


@operator(f"batch_norm_native{_FORWARD}")
def _native_op(x, weight, bias, residual, relu_first, relu, eps):
    x, (weight, bias, residual) = contiguous(x), contiguous((weight, bias, residual))
    mean, variance = torch.empty_like(weight), torch.empty_like(weight)
    out = x[0].new_empty((*x[0].shape[:-1], len(weight)))
    _extension.load().batch_norm(
        **_sizes(x),
        **_native.addresses(weight=weight, bias=bias, residual=residual, mean=mean, variance=variance, out=out),
        relu_first=relu_first,
        relu=relu,
        eps=eps,
        **_native.place(weight),
    )
    return out, mean, variance


@operator(f"batch_norm_triton{_FORWARD}")
def _triton_op(x, weight, bias, residual, *options):
    rows = [matrix.flatten(0, -2) for matrix in contiguous(x)]
    parameters = contiguous((weight, bias, residual if residual is None else residual.flatten(0, -2)))
    out, mean, variance = _triton.kernels("batch_norm").forward(rows, *parameters, *options)
    return out.view(*x[0].shape[:-1], len(weight)), mean, variance


@fake(_native_op)
@fake(_triton_op)
def _(x, weight, bias, residual, relu_first, relu, eps):
    out = x[0].new_empty((*x[0].shape[:-1], weight.shape[0]))
    return out, weight.new_empty(weight.shape), weight.new_empty(weight.shape)


_BACKWARD = (
    "(Tensor grad, Tensor[] x, Tensor weight, Tensor bias, Tensor mean, Tensor variance, Tensor? out, bool relu_first, "
    "bool relu, float eps, bool need_residual) -> Tensor[]"
)


@operator(f"batch_norm_native_backward{_BACKWARD}")
def _native_backward(grad, x, weight, bias, mean, variance, out, relu_first, relu, eps, need_residual):
    x, (grad, weight, bias, out) = contiguous(x), contiguous((grad, weight, bias, out))
    d_x = [torch.empty_like(matrix) for matrix in x]
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
    d_residual = torch.empty_like(grad) if need_residual else None
    _extension.load().batch_norm_backward(
        **_sizes(x),
        **_native.addresses(weight=weight, bias=bias, mean=mean, variance=variance, out=out, grad=grad),
        relu_first=relu_first,
        relu=relu,
        eps=eps,
        d_x=[matrix.data_ptr() for matrix in d_x],
        **_native.addresses(d_weight=d_weight, d_bias=d_bias, d_residual=d_residual),
        **_native.place(weight),
    )
    return [*d_x, d_weight, d_bias, *([] if d_residual is None else [d_residual])]


@operator(f"batch_norm_triton_backward{_BACKWARD}")
def _triton_backward(grad, x, weight, bias, mean, variance, out, *options):
    rows = [matrix.flatten(0, -2) for matrix in contiguous(x)]
    parameters = contiguous((weight, bias, mean, variance))
    grad_rows, out = (value if value is None else value.contiguous().flatten(0, -2) for value in (grad, out))
    gradients = _triton.kernels("batch_norm").backward(grad_rows, rows, *parameters, out, *options)
    d_x, d_weight, d_bias, d_residual = gradients
    d_x = [by_matrix.view(matrix.shape) for by_matrix, matrix in zip(d_x, x, strict=True)]
    return [*d_x, d_weight, d_bias, *([] if d_residual is None else [d_residual.view(grad.shape)])]


@fake(_native_backward)
@fake(_triton_backward)
def _(grad, x, weight, bias, mean, variance, out, relu_first, relu, eps, need_residual):
    likes = [*x, weight, bias, *([grad] if need_residual else [])]
    return [tensor.new_empty(tensor.shape) for tensor in likes]


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, bias, residual, *ctx.options = inputs
    y, mean, variance = output
    relu = ctx.options[1]
    # Without a residual, x says where ReLU cut.
    needed = relu and residual is not None
    ctx.save_for_backward(*x, weight, bias, mean, variance, *([y] if needed else []))
    ctx.matrices, ctx.needed = len(x), needed
    ctx.mark_non_differentiable(mean, variance)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, upstream: Tensor | None, *_: Any, backward: Any) -> tuple[Any, ...]:
    if upstream is None:
        return (None,) * 7
    saved = ctx.saved_tensors
    x, (weight, bias, mean, variance) = list(saved[: ctx.matrices]), saved[ctx.matrices : ctx.matrices + 4]
    relu_first, relu, eps = ctx.options
    wants_residual = ctx.needs_input_grad[3]
    cut = wants_residual and relu  # else the residual gets what comes from above
    gradients = backward(
        *(upstream, x, weight, bias, mean, variance, saved[-1] if ctx.needed else None),
        *(relu_first, relu, eps, cut),
    )
    d_x, (d_weight, d_bias) = gradients[: ctx.matrices], gradients[ctx.matrices : ctx.matrices + 2]
    d_residual = (gradients[-1] if cut else upstream) if wants_residual else None
    return d_x, d_weight, d_bias, d_residual, None, None, None


differentiate(_native_op, partial(_gradients, backward=_native_backward), _save)
differentiate(_triton_op, partial(_gradients, backward=_triton_backward), _save)


def _run(
    x: list[Tensor],
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    *,
    relu_first: bool,
    relu: bool,
    eps: float,
    op: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return op(x, weight, bias, residual, relu_first, relu, eps)


def _float32(x: list[Tensor], *_: Any, **options: Any) -> list[str]:
    """`reasons` looks at tensors, not into lists."""
    wrong = next((matrix.dtype for matrix in x if matrix.dtype != torch.float32), None)
    return [] if wrong is None else [f"it takes float32, not {str(wrong)[6:]}"]


_op = register(
    "batch_norm",
    reference=_reference,
    torch=_torch,
    triton=partial(_run, op=_triton_op),
    native=partial(_run, op=_native_op),
    reasons={
        "triton": _triton.reasons(),
        "native": _native.reasons(_float32, floats=(torch.float32,), cuda=False),
    },
)
