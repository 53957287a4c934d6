"""A convolution over cells whose neighbours a table names (Graham et al., CVPR 2018): products of gathered rows.

A program makes one tile of the result: for every offset it gathers the rows of x that the table names, multiplies them
by the offset's matrix and adds, so that nobody else writes to the tile and sums have one order. Offsets that no row of
a tile has are passed over: cells are sorted, so that most offsets that lead into the air do so for a whole tile. Bound
by the gathered rows, which come from the second cache, at the widths of such networks.

Backward: the same kernel for x, with the table turned round by `_turn_kernel` (no two rows of the result have the same
row of x at one offset, so its writes never meet) and matrices read as their transposes; for the matrices products over
all rows, in splits that `_finish` adds up in a fixed order. No atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._finish import Sum, finish
from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch


@triton.jit
def _product_kernel(
    x_ptr,
    weight_ptr,
    table_ptr,
    out_ptr,
    rows,
    offsets,
    inner,
    columns,
    inner_stride,
    column_stride,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[r] = sum over offsets o of x[table[o, r]] @ weight[o], for a tile of rows and columns."""
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_r, in_c = r < rows, c < columns
    acc = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
    for o in range(offsets):
        start = tl.cast(o, tl.int64)
        source = tl.load(table_ptr + start * rows + r, mask=in_r, other=-1)
        present = source >= 0
        if tl.max(source, axis=0) >= 0:
            row = x_ptr + tl.where(present, source, 0).to(tl.int64)[:, None] * inner
            matrix = weight_ptr + start * inner * columns + c[None, :] * column_stride
            for first in range(0, inner, BLOCK_K):
                k = first + tl.arange(0, BLOCK_K)
                a = tl.load(row + k[None, :], mask=present[:, None] & (k < inner)[None, :], other=0.0)
                b = tl.load(matrix + k[:, None] * inner_stride, mask=(k < inner)[:, None] & in_c[None, :], other=0.0)
                acc += tl.dot(a, b, input_precision="ieee")
    to = out_ptr + r.to(tl.int64)[:, None] * columns + c[None, :]
    tl.store(to, acc, mask=in_r[:, None] & in_c[None, :])


@triton.jit
def _turn_kernel(table_ptr, turned_ptr, rows_out, rows, size, BLOCK: tl.constexpr):
    """turned[o, table[o, r]] = r; `turned` holds -1 before."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(table_ptr + i, mask=i < size, other=-1)
    offset = i // rows_out
    present = source >= 0
    to = turned_ptr + offset * rows + tl.where(present, source, 0)
    tl.store(to, (i - offset * rows_out).to(tl.int32), mask=present)


@triton.jit
def _weight_kernel(
    x_ptr,
    grad_ptr,
    table_ptr,
    partial_ptr,
    rows,
    offsets,
    inner,
    columns,
    rows_a_split,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """partial[split, o] = sum over the split's rows r of x[table[o, r]]^T @ grad[r], for a tile of the matrix."""
    tiles = tl.cdiv(columns, BLOCK_C)
    o, split = tl.program_id(1).to(tl.int64), tl.program_id(2)
    k = tl.program_id(0) // tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    c = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    in_k, in_c = k < inner, c < columns
    begin = split * rows_a_split
    end = tl.minimum(begin + rows_a_split, rows)
    acc = tl.zeros([BLOCK_K, BLOCK_C], dtype=tl.float32)
    for first in range(begin, end, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        source = tl.load(table_ptr + o * rows + r, mask=r < end, other=-1)
        present = source >= 0
        if tl.max(source, axis=0) >= 0:
            row = x_ptr + tl.where(present, source, 0).to(tl.int64)[:, None] * inner
            a = tl.load(row + k[None, :], mask=present[:, None] & in_k[None, :], other=0.0)
            at = grad_ptr + r.to(tl.int64)[:, None] * columns + c[None, :]
            b = tl.load(at, mask=present[:, None] & in_c[None, :], other=0.0)
            acc += tl.dot(tl.trans(a), b, input_precision="ieee")
    at = (split * offsets + o) * inner * columns + k[:, None].to(tl.int64) * columns + c[None, :]
    tl.store(partial_ptr + at, acc, mask=in_k[:, None] & in_c[None, :])


def _product(x: Tensor, weight: Tensor, table: Tensor, columns: int, strides: tuple[int, int]) -> Tensor:
    """[R', columns]; ``strides`` are those of a matrix's inner dimension and columns."""
    offsets, rows = table.shape
    out = x.new_empty((rows, columns))
    inner = x.shape[1]
    options = configuration("sparse_conv", "product", x.device, dtype=dtype_name(x.dtype), K=inner, C=columns)
    grid = (cdiv(rows, options["BLOCK_R"]), cdiv(columns, options["BLOCK_C"]))
    launch(_product_kernel, grid, x, weight, table, out, rows, offsets, inner, columns, *strides, **options)
    return out


def forward(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """[R', Cout] in the dtype of x.

    Args:
        x: [R, Cin].
        weight: [O, Cin, Cout].
        table: int32 [O, R'].
    """
    columns = weight.shape[2]
    return _product(x, weight, table, columns, (columns, 1))


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, table: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by x and weight, where wanted.

    Args:
        grad: [R', Cout].
        x: [R, Cin].
        weight: [O, Cin, Cout].
        table: int32 [O, R'].
        need_x: whether the first is wanted.
        need_weight: whether the second is.
    """
    offsets, inner, columns = weight.shape
    rows = table.shape[1]
    by_x = by_weight = None
    if need_x:
        turned = table.new_full((offsets, len(x)), -1)
        options = configuration("sparse_conv", "turn", x.device)
        grid = (cdiv(table.numel(), options["BLOCK"]),)
        launch(_turn_kernel, grid, table, turned, rows, len(x), table.numel(), **options)
        by_x = _product(grad, weight, turned, inner, (1, columns))
    if need_weight:
        options = configuration("sparse_conv", "weight", x.device, dtype=dtype_name(x.dtype), K=inner, C=columns)
        splits = min(options.pop("SPLITS"), max(cdiv(rows, options["BLOCK_R"]), 1))
        a_split = cdiv(cdiv(rows, splits), options["BLOCK_R"]) * options["BLOCK_R"]
        partial = torch.empty(splits, offsets, inner, columns, dtype=torch.float32, device=x.device)
        grid = (cdiv(inner, options["BLOCK_K"]) * cdiv(columns, options["BLOCK_C"]), offsets, splits)
        sizes = (rows, offsets, inner, columns, a_split)
        launch(_weight_kernel, grid, x, grad, table, partial, *sizes, **options)
        (by_weight,) = finish("sparse_conv", [Sum(partial, weight.dtype)])
    return by_x, by_weight
