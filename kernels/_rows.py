"""What kernels share that multiply whole rows with a weight: the rows, normed or not; a product; configurations."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import configuration, dtype_name, next_power_of_2


@triton.jit
def norm_rows(
    tile, mean_ptr, rstd_ptr, norm_weight_ptr, norm_bias_ptr, m, in_m, eps, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The layer norm of rows m, float32 [m, d]; their statistics are written."""
    d = tl.arange(0, BLOCK_D)
    in_d = d < D
    mean = tl.sum(tile, axis=1) / D
    centred = tl.where(in_d[None, :], tile - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / D + eps)
    tl.store(mean_ptr + m, mean, mask=in_m)
    tl.store(rstd_ptr + m, rstd, mask=in_m)
    scale = tl.load(norm_weight_ptr + d, mask=in_d, other=0.0).to(tl.float32)
    shift = tl.load(norm_bias_ptr + d, mask=in_d, other=0.0).to(tl.float32)
    return centred * rstd[:, None] * scale[None, :] + shift[None, :]


@triton.jit
def left_operand(
    x_ptr, norm_weight_ptr, norm_bias_ptr, mean_ptr, rstd_ptr, rows_ptr, m, in_m, eps, OPERAND: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The layer norm of rows m, [m, d], or without norm_weight x as it is, in the operands' dtype; its statistics.

    Written to ``rows`` where that is wanted; where WIDE, for `times_slice` to read, and the result is rows_ptr itself.
    """
    d = tl.arange(0, BLOCK_D)
    inside = in_m[:, None] & (d < D)[None, :]
    at = m.to(tl.int64)[:, None] * D + d[None, :]
    tile = tl.load(x_ptr + at, mask=inside, other=0.0)
    if norm_weight_ptr is not None:
        tile = norm_rows(
            tile.to(tl.float32), mean_ptr, rstd_ptr, norm_weight_ptr, norm_bias_ptr, m, in_m, eps, D, BLOCK_D
        )
    tile = tile.to(OPERAND)
    if rows_ptr is not None:
        tl.store(rows_ptr + at, tile, mask=inside)
    if WIDE:
        tl.debug_barrier()
        return rows_ptr
    else:
        return tile


@triton.jit
def _halves(tile):
    return tl.split(tl.permute(tl.reshape(tile, [tile.shape[0], 2, tile.shape[1] // 2]), (0, 2, 1)))


@triton.jit
def quarters(tile):
    """A product's columns in four parts, from left to right; nothing moves between threads.

    For what is done to a result and needs other tiles of its size: for both as a whole there are no registers.
    """
    left, right = _halves(tile)
    first, second = _halves(left)
    third, fourth = _halves(right)
    return first, second, third, fourth


@triton.jit
def _write_columns(
    acc, first, x_ptr, bias_ptr, gamma_ptr, out_ptr, m, in_m, D: tl.constexpr, ADD: tl.constexpr, WIDTH: tl.constexpr
):
    """Columns from the first on of what `write_sum` writes."""
    d = first + tl.arange(0, WIDTH)
    in_d = d < D
    inside = in_m[:, None] & in_d[None, :]
    at = m.to(tl.int64)[:, None] * D + d[None, :]
    bias = tl.zeros([WIDTH], dtype=tl.float32)
    if bias_ptr is not None:
        bias += tl.load(bias_ptr + d, mask=in_d, other=0.0).to(tl.float32)
    if ADD:
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if gamma_ptr is not None:
            # One operation of all three: gamma and bias are then laid out as the stream is, not as a product, where
            # every thread of a warp would load them.
            gamma = tl.load(gamma_ptr + d, mask=in_d, other=0.0).to(tl.float32)
            acc = tl.fma(acc, gamma[None, :], x + (gamma * bias)[None, :])
        else:
            acc += x + bias[None, :]
    else:
        acc += bias[None, :]
    tl.store(out_ptr + at, acc, mask=inside)


@triton.jit
def write_sum(
    acc, x_ptr, bias_ptr, gamma_ptr, out_ptr, m, in_m, D: tl.constexpr, ADD: tl.constexpr, BLOCK_D: tl.constexpr
):
    """out[rows] = x + gamma * (acc + bias), acc + bias if not ADD, of a product acc [m, d].

    In quarters: the columns of a whole tile and of the stream that is added have no room in registers together.
    """
    QUARTER: tl.constexpr = BLOCK_D // 4
    parts = quarters(acc)
    for i in tl.static_range(4):
        _write_columns(parts[i], i * QUARTER, x_ptr, bias_ptr, gamma_ptr, out_ptr, m, in_m, D, ADD, QUARTER)


@triton.jit
def times_slice(
    rows, weight_ptr, e_stride, d_stride, e, in_e, m, in_m, D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """rows [m, d] @ weight [d, e], float32; where rows are too wide to be kept (BLOCK_K < BLOCK_D), of a pointer."""
    if BLOCK_K == BLOCK_D:
        d = tl.arange(0, BLOCK_D)
        w = tl.load(
            weight_ptr + e[None, :] * e_stride + d[:, None] * d_stride, mask=in_e[None, :] & (d < D)[:, None], other=0.0
        )  # [d, e]
        return tl.dot(rows, w, input_precision="ieee")
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_E], dtype=tl.float32)
        for start in range(0, D, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            in_k = k < D
            at = m.to(tl.int64)[:, None] * D + k[None, :]
            piece = tl.load(rows + at, mask=in_m[:, None] & in_k[None, :], other=0.0)
            w = tl.load(
                weight_ptr + e[None, :] * e_stride + k[:, None] * d_stride, mask=in_e[None, :] & in_k[:, None],
                other=0.0,
            )  # [k, e]  # fmt: skip
            acc = tl.dot(piece, w, acc, input_precision="ieee")
        return acc


def options_of(op: str, kernel: str, x: Tensor, weight: Tensor, **facts: int) -> dict[str, Any]:
    """The configuration of a kernel; a piece of rows is never wider than the rows.

    Args:
        op: whose table names it.
        kernel: its name there.
        x: [rows, D].
        weight: [E, D]; its dtype is that of the matrix operands.
        facts: what else the table asks for.
    """
    (M, D), E = x.shape, weight.shape[0]
    options = configuration(op, kernel, x.device, dtype=dtype_name(weight.dtype), rows=M, D=D, E=E, **facts)
    options["BLOCK_K"] = min(options["BLOCK_K"], next_power_of_2(D))
    return options
