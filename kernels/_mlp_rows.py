"""What the kernels of the MLP branch share: normed rows, rows too wide to be kept, configurations."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._finish import away_from_zero
from s2vfast.kernels._launch import configuration, dtype_name, next_power_of_2


@triton.jit
def normed_rows(tile, mean, rstd, norm_weight_ptr, norm_bias_ptr, d, in_d):
    """The layer norm of a tile [BLOCK_M, BLOCK_D] by its rows' statistics; 0 beyond D."""
    scale = tl.load(norm_weight_ptr + d, mask=in_d, other=0.0).to(tl.float32)
    shift = tl.load(norm_bias_ptr + d, mask=in_d, other=0.0).to(tl.float32)
    return (tile - mean[:, None]) * rstd[:, None] * scale[None, :] + shift[None, :]


@triton.jit
def hidden(
    weight_ptr, e_stride, d_stride, e, in_e, source_ptr, mean, rstd, norm_weight_ptr, norm_bias_ptr, gamma_ptr, m, in_m,
    NORM: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """weight [e, d] @ rows^T [d, m] piece by piece, where rows are too wide to be kept; NORM: of the layer norm.

    With gamma, rows are scaled as `_finish.LayerScale` wants them.
    """
    operand = weight_ptr.dtype.element_ty
    acc = tl.zeros([BLOCK_E, BLOCK_M], dtype=tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_k = k < D
        at = m.to(tl.int64)[:, None] * D + k[None, :]
        piece = tl.load(source_ptr + at, mask=in_m[:, None] & in_k[None, :], other=0.0).to(tl.float32)
        if NORM:
            piece = normed_rows(piece, mean, rstd, norm_weight_ptr, norm_bias_ptr, k, in_k)
        if gamma_ptr is not None:
            piece *= away_from_zero(tl.load(gamma_ptr + k, mask=in_k, other=0.0).to(tl.float32))[None, :]
        w = tl.load(
            weight_ptr + e[:, None] * e_stride + k[None, :] * d_stride, mask=in_e[:, None] & in_k[None, :], other=0.0
        )
        acc = tl.dot(w, tl.trans(piece.to(operand)), acc, input_precision="ieee")
    return acc


def options_of(kernel: str, x: Tensor, weight1: Tensor) -> dict[str, Any]:
    """The configuration of a kernel; a piece of rows is never wider than the rows."""
    (M, D), E = x.shape, weight1.shape[0]
    options = configuration("mlp", kernel, x.device, dtype=dtype_name(weight1.dtype), rows=M, D=D, E=E)
    options["BLOCK_K"] = min(options["BLOCK_K"], next_power_of_2(D))
    return options
