"""The gradient of a linear map's weight: left^T @ right over all rows, in a fixed order.

Reads both matrices once for each tile of the other's columns, writes float32 partial sums, one for each split of the
rows, which `_finish` adds up in order: no atomics, the same bits every time. Bound by matrix products where both
matrices are a few hundred columns wide. The layer norm that made ``right`` is recomputed from the stream on the fly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch


@triton.jit
def _weight_grad_kernel(
    left_ptr,
    right_ptr,
    mean_ptr,
    rstd_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    partial_ptr,
    partial_sum_ptr,
    num_rows,
    R,
    C,
    rows_a_split,
    OPERAND: tl.constexpr,
    NORM: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """partial[split] = left[rows]^T @ norm(right[rows]); partial_sum[split] = the columns' sums of left[rows]."""
    tile, split = tl.program_id(0), tl.program_id(1)
    tiles_c = tl.cdiv(C, BLOCK_C)
    r = tile // tiles_c * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tile % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    in_r, in_c = r < R, c < C
    acc = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
    total = tl.zeros([BLOCK_R], dtype=tl.float32)
    if NORM:
        scale = tl.load(norm_weight_ptr + c, mask=in_c, other=0.0).to(tl.float32)
        shift = tl.load(norm_bias_ptr + c, mask=in_c, other=0.0).to(tl.float32)
    begin = split * rows_a_split
    end = tl.minimum(begin + rows_a_split, num_rows)
    for start in range(begin, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        in_m = m < end
        row = m.to(tl.int64)
        a = tl.load(left_ptr + row[:, None] * R + r[None, :], mask=in_m[:, None] & in_r[None, :], other=0.0)  # [m, r]
        b = tl.load(right_ptr + row[:, None] * C + c[None, :], mask=in_m[:, None] & in_c[None, :], other=0.0)  # [m, c]
        if NORM:
            mean = tl.load(mean_ptr + m, mask=in_m, other=0.0)
            rstd = tl.load(rstd_ptr + m, mask=in_m, other=0.0)
            b = (b.to(tl.float32) - mean[:, None]) * rstd[:, None] * scale[None, :] + shift[None, :]
        if SUM:
            total += tl.sum(a.to(tl.float32), axis=0)
        acc += tl.dot(tl.trans(a.to(OPERAND)), b.to(OPERAND), input_precision="ieee")
    at = split.to(tl.int64) * R * C + r[:, None].to(tl.int64) * C + c[None, :]
    tl.store(partial_ptr + at, acc, mask=in_r[:, None] & in_c[None, :])
    if SUM:
        if tile % tiles_c == 0:
            tl.store(partial_sum_ptr + split * R + r, total, mask=in_r)


def weight_grad(
    op: str,
    left: Tensor,
    right: Tensor,
    operand: torch.dtype,
    norm: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    column_sums: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """left^T @ right, and the sums of left's columns: of every split of the rows, float32.

    Args:
        op: whose table names the configuration (``weight_grad``).
        left: [rows, R], contiguous.
        right: [rows, C], contiguous.
        operand: dtype of the matrix operands.
        norm: mean [rows], rstd [rows], weight [C], bias [C] of a layer norm to apply to ``right``.
        column_sums: whether the sums are wanted.

    Returns:
        [splits, R, C], and [splits, R] or None.
    """
    (num_rows, R), C = left.shape, right.shape[1]
    options = configuration(op, "weight_grad", left.device, dtype=dtype_name(operand), rows=num_rows, R=R, C=C)
    splits = min(options.pop("SPLITS"), max(cdiv(num_rows, options["BLOCK_M"]), 1))
    rows = cdiv(cdiv(num_rows, splits), options["BLOCK_M"]) * options["BLOCK_M"]
    partial = torch.empty(splits, R, C, dtype=torch.float32, device=left.device)
    sums = torch.empty(splits, R, dtype=torch.float32, device=left.device) if column_sums else None
    grid = (cdiv(R, options["BLOCK_R"]) * cdiv(C, options["BLOCK_C"]), splits)
    mean, rstd, weight, bias = norm or (None, None, None, None)
    launch(
        _weight_grad_kernel,
        grid,
        left,
        right,
        mean,
        rstd,
        weight,
        bias,
        partial,
        sums,
        num_rows,
        R,
        C,
        rows,
        OPERAND=triton_dtype(operand),
        NORM=norm is not None,
        SUM=column_sums,
        **options,
    )
    return partial, sums


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of a dtype of matrix operands."""
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}[dtype]
