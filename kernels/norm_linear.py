"""Layer norm and the linear map after it, in one kernel: the queries, keys and values of a block, the decoder's head.

Forward: a program normalises a tile of rows, which it reads once and keeps, and multiplies it with one slice of the
weight after the other. Reads the stream (4 bytes a number) and the weight (from the second-level cache), writes the
result; the normed stream is never written. Where a row is too wide to keep, it is read again for every slice.
Backward: one kernel for the stream's gradient, whose epilogue is the norm's own backward over whole rows; one for the
weight's, which recomputes the normed stream; and `_finish`, which adds up their partial sums in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._finish import Sum, finish
from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch, next_power_of_2
from s2vfast.kernels._weight_grad import weight_grad


@triton.jit
def _forward_kernel(
    x_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    mean_ptr,
    rstd_ptr,
    num_rows,
    eps,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SLICES: tl.constexpr,
):
    """out[rows, SLICES * BLOCK_E columns] = norm(x[rows]) @ weight^T + bias."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = m < num_rows
    row = m.to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    in_d = d < D
    tile = tl.load(x_ptr + row[:, None] * D + d[None, :], mask=in_m[:, None] & in_d[None, :], other=0.0).to(tl.float32)
    mean = tl.sum(tile, axis=1) / D
    centred = tl.where(in_d[None, :], tile - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / D + eps)
    if tl.program_id(1) == 0:
        tl.store(mean_ptr + m, mean, mask=in_m)
        tl.store(rstd_ptr + m, rstd, mask=in_m)
    operand = weight_ptr.dtype.element_ty
    if BLOCK_K == BLOCK_D:
        scale = tl.load(norm_weight_ptr + d, mask=in_d, other=0.0).to(tl.float32)
        shift = tl.load(norm_bias_ptr + d, mask=in_d, other=0.0).to(tl.float32)
        normed = (centred * rstd[:, None] * scale[None, :] + shift[None, :]).to(operand)  # [m, d]
    first = tl.program_id(1) * SLICES * BLOCK_E
    for start in range(first, tl.minimum(first + SLICES * BLOCK_E, E), BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        in_e = e < E
        if BLOCK_K == BLOCK_D:
            w = tl.load(
                weight_ptr + e[None, :] * D + d[:, None], mask=in_e[None, :] & in_d[:, None], other=0.0
            )  # [d, e]
            acc = tl.dot(normed, w, input_precision="ieee")
        else:
            acc = tl.zeros([BLOCK_M, BLOCK_E], dtype=tl.float32)
            for k0 in range(0, D, BLOCK_K):
                k = k0 + tl.arange(0, BLOCK_K)
                in_k = k < D
                piece = tl.load(x_ptr + row[:, None] * D + k[None, :], mask=in_m[:, None] & in_k[None, :], other=0.0)
                scale = tl.load(norm_weight_ptr + k, mask=in_k, other=0.0).to(tl.float32)
                shift = tl.load(norm_bias_ptr + k, mask=in_k, other=0.0).to(tl.float32)
                piece = (piece.to(tl.float32) - mean[:, None]) * rstd[:, None] * scale[None, :] + shift[None, :]
                w = tl.load(weight_ptr + e[None, :] * D + k[:, None], mask=in_e[None, :] & in_k[:, None], other=0.0)
                acc += tl.dot(piece.to(operand), w, input_precision="ieee")
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + e, mask=in_e, other=0.0).to(tl.float32)[None, :]
        at = row[:, None] * E + e[None, :]
        tl.store(out_ptr + at, acc, mask=in_m[:, None] & in_e[None, :])


@triton.jit
def _grad_stream_kernel(
    grad_out_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    norm_weight_ptr,
    weight_ptr,
    grad_x_ptr,
    partial_weight_ptr,
    partial_bias_ptr,
    num_rows,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """grad_x[rows], and these rows' share of the gradients of the norm's weight and bias."""
    program = tl.program_id(0)
    m = program * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = m < num_rows
    row = m.to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    in_d = d < D
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)  # gradient of the normed stream
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        in_e = e < E
        g = tl.load(grad_out_ptr + row[:, None] * E + e[None, :], mask=in_m[:, None] & in_e[None, :], other=0.0)
        w = tl.load(weight_ptr + e[:, None] * D + d[None, :], mask=in_e[:, None] & in_d[None, :], other=0.0)  # [e, d]
        acc += tl.dot(g.to(weight_ptr.dtype.element_ty), w, input_precision="ieee")
    inside = in_m[:, None] & in_d[None, :]
    tile = tl.load(x_ptr + row[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + m, mask=in_m, other=0.0)
    rstd = tl.load(rstd_ptr + m, mask=in_m, other=0.0)
    hat = tl.where(inside, (tile - mean[:, None]) * rstd[:, None], 0.0)
    tl.store(partial_weight_ptr + program * D + d, tl.sum(acc * hat, axis=0), mask=in_d)
    tl.store(partial_bias_ptr + program * D + d, tl.sum(acc, axis=0), mask=in_d)
    scale = tl.load(norm_weight_ptr + d, mask=in_d, other=0.0).to(tl.float32)
    acc = acc * scale[None, :]
    mean_grad_hat = tl.sum(acc * hat, axis=1) / D
    mean_grad = tl.sum(acc, axis=1) / D
    result = (acc - mean_grad[:, None] - hat * mean_grad_hat[:, None]) * rstd[:, None]
    tl.store(grad_x_ptr + row[:, None] * D + d[None, :], result, mask=inside)


def forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The result [rows, E] in the weight's dtype, and mean and reciprocal deviation of every row, float32 [rows].

    Args:
        x: [rows, D], float32 or the weight's dtype.
        norm_weight: [D].
        norm_bias: [D].
        weight: [E, D].
        bias: [E], or None.
        eps: added to the variance.
    """
    (num_rows, D), E = x.shape, weight.shape[0]
    block_d = next_power_of_2(D)
    options = configuration("norm_linear", "forward", x.device, dtype=dtype_name(weight.dtype), rows=num_rows, D=D, E=E)
    options["BLOCK_K"] = min(options["BLOCK_K"], block_d)
    out = torch.empty(num_rows, E, dtype=weight.dtype, device=x.device)
    mean = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    grid = (cdiv(num_rows, options["BLOCK_M"]), cdiv(E, options["BLOCK_E"] * options["SLICES"]))
    launch(
        _forward_kernel,
        grid,
        x,
        norm_weight,
        norm_bias,
        weight,
        bias,
        out,
        mean,
        rstd,
        num_rows,
        eps,
        D=D,
        E=E,
        BLOCK_D=block_d,
        **options,
    )
    return out, mean, rstd


def backward(
    grad_out: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, norm_weight, norm_bias, weight and bias, each in its tensor's dtype.

    Args:
        grad_out: [rows, E].
        x: [rows, D], as of `forward`, as are the others.
        mean: [rows], from `forward`.
        rstd: [rows], from `forward`.
        norm_weight: [D].
        norm_bias: [D].
        weight: [E, D].
        bias: [E], or None.
    """
    (num_rows, D), E = x.shape, weight.shape[0]
    options = configuration(
        "norm_linear", "grad_stream", x.device, dtype=dtype_name(weight.dtype), rows=num_rows, D=D, E=E
    )
    programs = cdiv(num_rows, options["BLOCK_M"])
    grad_x = torch.empty_like(x)
    partial = torch.empty(2, programs, D, dtype=torch.float32, device=x.device)
    launch(
        _grad_stream_kernel,
        (programs,),
        grad_out,
        x,
        mean,
        rstd,
        norm_weight,
        weight,
        grad_x,
        partial[0],
        partial[1],
        num_rows,
        D=D,
        E=E,
        BLOCK_D=next_power_of_2(D),
        **options,
    )
    norm = (mean, rstd, norm_weight, norm_bias)
    by_weight, by_bias = weight_grad("norm_linear", grad_out, x, weight.dtype, norm, column_sums=bias is not None)
    sums = [
        Sum(partial[0], norm_weight.dtype),
        Sum(partial[1], norm_bias.dtype),
        Sum(by_weight, weight.dtype),
        None if bias is None else Sum(by_bias, bias.dtype),
    ]
    return (grad_x, *finish("norm_linear", sums))
