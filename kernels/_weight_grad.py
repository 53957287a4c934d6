"""The gradient of a linear map's weight: left^T @ right over all rows, in a fixed order.

Reads both matrices once for each tile of the other's columns, writes float32 partial sums, one for each split of the
rows, which `_finish` adds up in order: no atomics, the same bits every time. Bound by the second-level cache where both
matrices are a few hundred columns wide.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._gelu import normal_distribution
from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch


@triton.jit
def weight_share(
    left_ptr, right_ptr, partial_ptr, tile, split, num_rows, R, C, rows_a_split, OPERAND: tl.constexpr,
    GELU: tl.constexpr, FAST_GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One tile of one split: partial[split] = left[rows]^T @ right[rows], float32; where GELU, of GELU of right."""
    tiles_c = tl.cdiv(C, BLOCK_C)
    r = tile // tiles_c * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tile % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    in_r, in_c = r < R, c < C
    acc = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
    begin = split * rows_a_split
    end = tl.minimum(begin + rows_a_split, num_rows)
    for start in range(begin, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        in_m = m < end
        row = m.to(tl.int64)
        a = tl.load(left_ptr + row[:, None] * R + r[None, :], mask=in_m[:, None] & in_r[None, :], other=0.0)  # [m, r]
        b = tl.load(right_ptr + row[:, None] * C + c[None, :], mask=in_m[:, None] & in_c[None, :], other=0.0)  # [m, c]
        if GELU:
            b = b.to(tl.float32)
            cdf, _ = normal_distribution(b, FAST_GELU)
            b *= cdf
        acc += tl.dot(tl.trans(a.to(OPERAND)), b.to(OPERAND), input_precision="ieee")
    to = split.to(tl.int64) * R * C + r[:, None].to(tl.int64) * C + c[None, :]
    tl.store(partial_ptr + to, acc, mask=in_r[:, None] & in_c[None, :])


@triton.jit
def _weight_grad_kernel(
    left_ptr,
    right_ptr,
    partial_ptr,
    num_rows,
    R,
    C,
    rows_a_split,
    OPERAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`weight_share` of a program's tile and split."""
    weight_share(
        left_ptr, right_ptr, partial_ptr, tl.program_id(0), tl.program_id(1), num_rows, R, C, rows_a_split, OPERAND,
        False, False, BLOCK_M, BLOCK_R, BLOCK_C,
    )  # fmt: skip


def rows_a_split(num_rows: int, splits: int, block: int) -> tuple[int, int]:
    """How many splits there are, at most so many, and the rows of each: whole tiles."""
    splits = min(splits, max(cdiv(num_rows, block), 1))
    return splits, cdiv(cdiv(num_rows, splits), block) * block


def weight_grad(op: str, left: Tensor, right: Tensor, operand: torch.dtype) -> Tensor:
    """left^T @ right of every split of the rows, float32 [splits, R, C].

    Args:
        op: whose table names the configuration (``weight_grad``).
        left: [rows, R], contiguous.
        right: [rows, C], contiguous.
        operand: dtype of the matrix operands.
    """
    (num_rows, R), C = left.shape, right.shape[1]
    options = configuration(op, "weight_grad", left.device, dtype=dtype_name(operand), rows=num_rows, R=R, C=C)
    splits, rows = rows_a_split(num_rows, options.pop("SPLITS"), options["BLOCK_M"])
    partial = torch.empty(splits, R, C, dtype=torch.float32, device=left.device)
    grid = (cdiv(R, options["BLOCK_R"]) * cdiv(C, options["BLOCK_C"]), splits)
    arguments = (left, right, partial, num_rows, R, C, rows)
    launch(_weight_grad_kernel, grid, *arguments, OPERAND=triton_dtype(operand), **options)
    return partial


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of a dtype of matrix operands."""
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}[dtype]
