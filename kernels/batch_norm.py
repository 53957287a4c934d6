"""Batch norm of columns with a residual and ReLU (Ioffe and Szegedy, 2015), of matrices that lie side by side.

Forward: sums of rows by split, which `_finish` adds up in a fixed order, then one pass that makes the statistics of its
columns and what comes after the norm. Backward the same way: sums of the gradient, and a pass. Memory: forward x is
read twice and the result written once, backward x and the gradient are read twice and x's gradient written once; bound
by bandwidth. The variance is made of differences from the first row, so that a mean that is large beside the deviation
costs no digits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._finish import Sum, finish
from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch


@triton.jit
def _relu(x):
    """NaN stays NaN."""
    return tl.where(x <= 0.0, 0.0, x)


@triton.jit
def _sums_kernel(
    x_ptr, partial_ptr, R, W, C, offset, rows_a_split, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """partial[split, :, offset + c] = sums over the split's rows of x, of x - x[0], and of the square of this."""
    split, c = tl.program_id(1), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < W
    shift = tl.load(x_ptr + c, mask=in_c, other=0.0).to(tl.float32)
    first = tl.cast(split, tl.int64) * rows_a_split
    last = tl.minimum(first + rows_a_split, R)
    sums = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
    shifted = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
    squares = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
    for start in range(first, last, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        inside = (r < last)[:, None] & in_c[None, :]
        x = tl.load(x_ptr + r[:, None] * W + c[None, :], mask=inside, other=0.0).to(tl.float32)
        difference = tl.where(inside, x - shift[None, :], 0.0)
        sums += x
        shifted += difference
        squares += difference * difference
    to = partial_ptr + split * 3 * C + offset + c
    tl.store(to, tl.sum(sums, axis=0), mask=in_c)
    tl.store(to + C, tl.sum(shifted, axis=0), mask=in_c)
    tl.store(to + 2 * C, tl.sum(squares, axis=0), mask=in_c)


@triton.jit
def _forward_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, sums_ptr, out_ptr, mean_ptr, variance_ptr, R, W, C, offset, eps,
    RELU_FIRST: tl.constexpr, RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of one matrix's columns of out; the first tile of rows writes their mean and variance too."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c, at = c < W, offset + c
    inside = (r < R)[:, None] & in_c[None, :]
    rows = tl.cast(R, tl.float32)
    mean = tl.load(sums_ptr + at, mask=in_c, other=0.0) / rows
    shift = tl.load(sums_ptr + C + at, mask=in_c, other=0.0) / rows
    variance = tl.load(sums_ptr + 2 * C + at, mask=in_c, other=0.0) / rows - shift * shift
    variance = tl.where(variance < 0.0, 0.0, variance)
    if tl.program_id(0) == 0:
        tl.store(mean_ptr + at, mean, mask=in_c)
        tl.store(variance_ptr + at, variance, mask=in_c)
    scale = tl.load(weight_ptr + at, mask=in_c, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    bias = tl.load(bias_ptr + at, mask=in_c, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + r[:, None] * W + c[None, :], mask=inside, other=0.0).to(tl.float32)
    y = (x - mean[None, :]) * scale[None, :] + bias[None, :]
    if RELU_FIRST:
        y = _relu(y)
    to = r[:, None] * C + at[None, :]
    if residual_ptr is not None:
        y += tl.load(residual_ptr + to, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        y = _relu(y)
    tl.store(out_ptr + to, y, mask=inside)


@triton.jit
def _upstream(
    x, mean, scale, bias, grad_ptr, out_ptr, to, inside, RELU_FIRST: tl.constexpr, RELU: tl.constexpr
):  # fmt: skip
    """What the residual and what the norm's result get of the gradient.

    ReLU cut where out is not above 0, or, without a residual, where the norm's result is not.
    """
    grad = tl.load(grad_ptr + to, mask=inside, other=0.0).to(tl.float32)
    if RELU and out_ptr is not None:
        grad = tl.where(tl.load(out_ptr + to, mask=inside, other=0.0).to(tl.float32) > 0.0, grad, 0.0)
    through = grad
    if RELU_FIRST or (RELU and out_ptr is None):
        through = tl.where((x - mean) * scale + bias > 0.0, grad, 0.0)
    return grad, through


@triton.jit
def _gradient_sums_kernel(
    x_ptr, weight_ptr, bias_ptr, mean_ptr, variance_ptr, out_ptr, grad_ptr, d_residual_ptr, partial_ptr,
    R, W, C, offset, eps, rows_a_split,
    RELU_FIRST: tl.constexpr, RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial[split, :, offset + c] = sums of g, what the norm's result gets, and of g * (x - mean)."""
    split, c = tl.program_id(1), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c, at = c < W, offset + c
    mean = tl.load(mean_ptr + at, mask=in_c, other=0.0)[None, :]
    variance = tl.load(variance_ptr + at, mask=in_c, other=0.0)
    scale = (tl.load(weight_ptr + at, mask=in_c, other=0.0).to(tl.float32) / tl.sqrt(variance + eps))[None, :]
    bias = tl.load(bias_ptr + at, mask=in_c, other=0.0).to(tl.float32)[None, :]
    first = tl.cast(split, tl.int64) * rows_a_split
    last = tl.minimum(first + rows_a_split, R)
    sums = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
    products = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
    for start in range(first, last, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        inside = (r < last)[:, None] & in_c[None, :]
        to = r[:, None] * C + at[None, :]
        x = tl.load(x_ptr + r[:, None] * W + c[None, :], mask=inside, other=0.0).to(tl.float32)
        cut, through = _upstream(x, mean, scale, bias, grad_ptr, out_ptr, to, inside, RELU_FIRST, RELU)
        if d_residual_ptr is not None:
            tl.store(d_residual_ptr + to, cut, mask=inside)
        sums += through
        products += through * (x - mean)
    to = partial_ptr + split * 2 * C + at
    tl.store(to, tl.sum(sums, axis=0), mask=in_c)
    tl.store(to + C, tl.sum(products, axis=0), mask=in_c)


@triton.jit
def _backward_kernel(
    x_ptr, weight_ptr, bias_ptr, mean_ptr, variance_ptr, out_ptr, grad_ptr, sums_ptr, d_x_ptr, d_weight_ptr, d_bias_ptr,
    R, W, C, offset, eps,
    RELU_FIRST: tl.constexpr, RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of one matrix's gradient; the first tile of rows writes those of weight and bias too."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c, at = c < W, offset + c
    inside = (r < R)[:, None] & in_c[None, :]
    mean = tl.load(mean_ptr + at, mask=in_c, other=0.0)[None, :]
    variance = tl.load(variance_ptr + at, mask=in_c, other=0.0)
    deviation = tl.sqrt(variance + eps)
    scale = (tl.load(weight_ptr + at, mask=in_c, other=0.0).to(tl.float32) / deviation)[None, :]
    bias = tl.load(bias_ptr + at, mask=in_c, other=0.0).to(tl.float32)[None, :]
    sums = tl.load(sums_ptr + at, mask=in_c, other=0.0)
    products = tl.load(sums_ptr + C + at, mask=in_c, other=0.0)
    if tl.program_id(0) == 0:
        tl.store(d_bias_ptr + at, sums, mask=in_c)
        tl.store(d_weight_ptr + at, products / deviation, mask=in_c)
    rows = tl.cast(R, tl.float32)
    to = r[:, None] * C + at[None, :]
    x_at = r[:, None] * W + c[None, :]
    x = tl.load(x_ptr + x_at, mask=inside, other=0.0).to(tl.float32)
    _, through = _upstream(x, mean, scale, bias, grad_ptr, out_ptr, to, inside, RELU_FIRST, RELU)
    along = (products / ((variance + eps) * rows))[None, :]
    tl.store(d_x_ptr + x_at, (through - (sums / rows)[None, :] - (x - mean) * along) * scale, mask=inside)


def _tiles(kernel: str, matrix: Tensor) -> tuple[dict, tuple[int, int]]:
    """Options of a pass over a matrix, and its grid."""
    options = configuration("batch_norm", kernel, matrix.device, dtype=dtype_name(matrix.dtype))
    return options, (cdiv(len(matrix), options["BLOCK_R"]), cdiv(matrix.shape[1], options["BLOCK_C"]))


def _splits(kernel: str, rows: int, device: torch.device) -> tuple[dict, int]:
    """Options of sums over rows, and the number of splits, each of which has rows."""
    options = configuration("batch_norm", kernel, device)
    splits = max(min(options.pop("SPLITS"), cdiv(rows, options["BLOCK_R"])), 1)
    return options, cdiv(rows, max(cdiv(rows, splits), 1))


def _offsets(x: Sequence[Tensor]) -> list[int]:
    return [sum(matrix.shape[1] for matrix in x[:i]) for i in range(len(x))]


def forward(
    x: Sequence[Tensor], weight: Tensor, bias: Tensor, residual: Tensor | None, relu_first: bool, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The result [R, C] in x's dtype, and float32 mean and variance [C].

    Args:
        x: contiguous matrices [R, C_i].
        weight: [C].
        bias: [C].
        residual: [R, C] or None.
        relu_first: whether there is a ReLU before the residual.
        relu: whether there is one after it.
        eps: added to the variance.
    """
    (R, _), C, device = x[0].shape, len(weight), weight.device
    out = x[0].new_empty((R, C))
    mean, variance = (torch.empty(C, dtype=torch.float32, device=device) for _ in range(2))
    if not R * C:
        return out, mean.zero_(), variance.zero_()
    options, splits = _splits("sums", R, device)
    partial = torch.empty(splits, 3, C, dtype=torch.float32, device=device)
    for matrix, offset in zip(x, _offsets(x), strict=True):
        W = matrix.shape[1]
        launch(
            _sums_kernel,
            (cdiv(W, options["BLOCK_C"]), splits),
            matrix,
            partial,
            R,
            W,
            C,
            offset,
            cdiv(R, splits),
            **options,
        )
    (sums,) = finish("batch_norm", [Sum(partial, torch.float32)])
    for matrix, offset in zip(x, _offsets(x), strict=True):
        options, grid = _tiles("forward", matrix)
        tensors = (matrix, weight, bias, residual, sums, out, mean, variance)
        sizes = (R, matrix.shape[1], C, offset, eps)
        launch(_forward_kernel, grid, *tensors, *sizes, RELU_FIRST=relu_first, RELU=relu, **options)
    return out, mean, variance


def backward(
    grad: Tensor,
    x: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    out: Tensor | None,
    relu_first: bool,
    relu: bool,
    eps: float,
    need_residual: bool,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None]:
    """Gradients by x's matrices, weight, bias and, where wanted, the residual.

    Args:
        grad: [R, C].
        x: as of `forward`, and so are other arguments of the same names.
        weight: [C].
        bias: [C].
        mean: [C], of `forward`.
        variance: [C].
        out: [R, C], what `forward` gave, where there is a residual and a ReLU after it.
        relu_first: as of `forward`.
        relu: as of `forward`.
        eps: as of `forward`.
        need_residual: whether the residual's is wanted.
    """
    R, C = grad.shape
    d_x, d_weight, d_bias = [torch.empty_like(matrix) for matrix in x], torch.empty_like(weight), torch.empty_like(bias)
    d_residual = torch.empty_like(grad) if need_residual else None
    if not R * C:
        return d_x, d_weight.zero_(), d_bias.zero_(), d_residual
    options, splits = _splits("gradient_sums", R, grad.device)
    partial = torch.empty(splits, 2, C, dtype=torch.float32, device=grad.device)
    flags = {"RELU_FIRST": relu_first, "RELU": relu}
    for matrix, offset in zip(x, _offsets(x), strict=True):
        W = matrix.shape[1]
        tensors = (matrix, weight, bias, mean, variance, out, grad, d_residual, partial)
        grid = (cdiv(W, options["BLOCK_C"]), splits)
        launch(_gradient_sums_kernel, grid, *tensors, R, W, C, offset, eps, cdiv(R, splits), **flags, **options)
    (sums,) = finish("batch_norm", [Sum(partial, torch.float32)])
    for matrix, offset, by_matrix in zip(x, _offsets(x), d_x, strict=True):
        options, grid = _tiles("backward", matrix)
        tensors = (matrix, weight, bias, mean, variance, out, grad, sums, by_matrix, d_weight, d_bias)
        launch(_backward_kernel, grid, *tensors, R, matrix.shape[1], C, offset, eps, **flags, **options)
    return d_x, d_weight, d_bias, d_residual
