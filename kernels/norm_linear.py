"""Layer norm and the linear map after it, in one kernel: the queries, keys and values of a block, the decoder's head.

Forward: a program normalises a tile of rows and multiplies it with one slice of the weight after the other. Reads the
stream and, from the second-level cache, the weight; writes the result, and the normed rows for the backward pass.
Backward: two kernels for the stream's gradient, `_grad_stream`; one for the weight's, `_weight_grad`, from the normed
rows; and `_finish`, which adds up their partial sums in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._finish import Sum, finish
from s2vfast.kernels._grad_stream import grad_stream
from s2vfast.kernels._launch import cdiv, launch, next_power_of_2
from s2vfast.kernels._rows import left_operand, options_of, times_slice
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
    rows_ptr,
    num_rows,
    eps,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """out[rows] = norm(x[rows]) @ weight^T + bias; rows: norm(x) in the weight's dtype, where wanted."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = m < num_rows
    WIDE: tl.constexpr = BLOCK_K < BLOCK_D
    rows = left_operand(
        x_ptr, norm_weight_ptr, norm_bias_ptr, mean_ptr, rstd_ptr, rows_ptr, m, in_m, eps, weight_ptr.dtype.element_ty,
        D, BLOCK_D, WIDE,
    )  # fmt: skip
    # Goes round once: see `mlp`.
    for _ in range(0, num_rows, num_rows):
        if bias_ptr is not None:
            first = tl.arange(0, BLOCK_E)
            bias = tl.load(bias_ptr + first, mask=first < E, other=0.0)
        for start in range(0, E, BLOCK_E):
            e = start + tl.arange(0, BLOCK_E)
            in_e = e < E
            acc = times_slice(rows, weight_ptr, D, 1, e, in_e, m, in_m, D, BLOCK_M, BLOCK_D, BLOCK_E, BLOCK_K)
            if bias_ptr is not None:
                acc += bias.to(tl.float32)[None, :]
                bias = tl.load(bias_ptr + e + BLOCK_E, mask=e + BLOCK_E < E, other=0.0)  # an iteration ahead
            tl.store(out_ptr + m.to(tl.int64)[:, None] * E + e[None, :], acc, mask=in_m[:, None] & in_e[None, :])
        if not WIDE:
            rows += rows


def forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor | None, eps: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result [rows, E] in the weight's dtype, and what `backward` takes.

    That is mean and reciprocal deviation of every row, float32 [rows], and the normed rows [rows, D] in that dtype
    ([0, D] unless ``keep``).

    Args:
        x: [rows, D], float32 or the weight's dtype.
        norm_weight: [D].
        norm_bias: [D].
        weight: [E, D].
        bias: [E], or None.
        eps: added to the variance.
        keep: whether there will be a backward pass.
    """
    (num_rows, D), E = x.shape, weight.shape[0]
    options = options_of("norm_linear", "forward", x, weight)
    out = torch.empty(num_rows, E, dtype=weight.dtype, device=x.device)
    mean = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    written = keep or options["BLOCK_K"] < next_power_of_2(D)
    rows = torch.empty(num_rows if written else 0, D, dtype=weight.dtype, device=x.device)
    launch(
        _forward_kernel,
        (cdiv(num_rows, options["BLOCK_M"]),),
        x,
        norm_weight,
        norm_bias,
        weight,
        bias,
        out,
        mean,
        rstd,
        rows if written else None,
        num_rows,
        eps,
        D=D,
        E=E,
        BLOCK_D=next_power_of_2(D),
        **options,
    )
    return out, mean, rstd, rows if keep else rows[:0]


def backward(
    grad_out: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    rows: Tensor,
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
        rows: [rows, D], from `forward`.
        norm_weight: [D].
        norm_bias: [D].
        weight: [E, D].
        bias: [E], or None.
    """
    norm = (mean, rstd, norm_weight)
    grad_x, partial, by_bias = grad_stream("norm_linear", grad_out, x, norm, weight, sums=bias is not None)
    by_weight = weight_grad("norm_linear", grad_out, rows, weight.dtype)
    sums = [
        Sum(partial[:, 1], norm_weight.dtype),
        Sum(partial[:, 0], norm_bias.dtype),
        Sum(by_weight, weight.dtype),
        None if bias is None else Sum(by_bias, bias.dtype),
    ]
    return (grad_x, *finish("norm_linear", sums))
