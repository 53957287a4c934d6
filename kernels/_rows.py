"""What kernels share that multiply whole rows with a weight: the rows, normed or not; a product; configurations."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import configuration, dtype_name, next_power_of_2


@triton.jit
def leave_normed(
    x_ptr, norm_weight_ptr, norm_bias_ptr, mean_ptr, rstd_ptr, rows_ptr, m, in_m, eps, D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the layer norm of rows m, in the dtype of ``rows``, and its statistics; without norm_weight x as it is."""
    d = tl.arange(0, BLOCK_D)
    in_d = d < D
    inside = in_m[:, None] & in_d[None, :]
    at = m.to(tl.int64)[:, None] * D + d[None, :]
    tile = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if norm_weight_ptr is not None:
        mean = tl.sum(tile, axis=1) / D
        centred = tl.where(in_d[None, :], tile - mean[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / D + eps)
        tl.store(mean_ptr + m, mean, mask=in_m)
        tl.store(rstd_ptr + m, rstd, mask=in_m)
        scale = tl.load(norm_weight_ptr + d, mask=in_d, other=0.0).to(tl.float32)
        shift = tl.load(norm_bias_ptr + d, mask=in_d, other=0.0).to(tl.float32)
        tile = centred * rstd[:, None] * scale[None, :] + shift[None, :]
    tl.store(rows_ptr + at, tile, mask=inside)
    tl.debug_barrier()


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
def times_slice(
    rows, rows_ptr, weight_ptr, e_stride, d_stride, e, in_e, m, in_m, D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """rows [m, d] @ weight [d, e], float32; piece by piece where rows are too wide to be kept (BLOCK_K < BLOCK_D)."""
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
            piece = tl.load(rows_ptr + at, mask=in_m[:, None] & in_k[None, :], other=0.0)
            w = tl.load(
                weight_ptr + e[None, :] * e_stride + k[:, None] * d_stride, mask=in_e[None, :] & in_k[:, None],
                other=0.0,
            )  # [k, e]  # fmt: skip
            acc = tl.dot(piece, w, acc, input_precision="ieee")
        return acc


def options_of(op: str, kernel: str, x: Tensor, weight: Tensor) -> dict[str, Any]:
    """The configuration of a kernel; a piece of rows is never wider than the rows.

    Args:
        op: whose table names it.
        kernel: its name there.
        x: [rows, D].
        weight: [E, D]; its dtype is that of the matrix operands.
    """
    (M, D), E = x.shape, weight.shape[0]
    options = configuration(op, kernel, x.device, dtype=dtype_name(weight.dtype), rows=M, D=D, E=E)
    options["BLOCK_K"] = min(options["BLOCK_K"], next_power_of_2(D))
    return options
