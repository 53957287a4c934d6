"""The gradient of the stream that a layer norm and a linear map read: (grad @ weight), through the norm's own backward.

A program owns whole rows, so that the norm's backward is the epilogue of the matrix product. Reads the incoming
gradient and the stream once, the weight from the second-level cache once a tile of rows; writes one gradient. What
comes to the stream past the norm is added on the way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch, next_power_of_2


@triton.jit
def _grad_stream_kernel(
    grad_out_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    norm_weight_ptr,
    weight_ptr,
    past_ptr,
    grad_x_ptr,
    partial_ptr,
    num_rows,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """grad_x[rows] = past[rows] + what comes through the map and the norm.

    partial [programs, 2, D]: these rows' share of the gradients of the norm's weight and bias.
    """
    program = tl.program_id(0)
    m = program * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = m < num_rows
    row = m.to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    in_d = d < D
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)  # gradient of what the map reads
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        in_e = e < E
        g = tl.load(grad_out_ptr + row[:, None] * E + e[None, :], mask=in_m[:, None] & in_e[None, :], other=0.0)
        w = tl.load(weight_ptr + e[:, None] * D + d[None, :], mask=in_e[:, None] & in_d[None, :], other=0.0)  # [e, d]
        acc += tl.dot(g.to(weight_ptr.dtype.element_ty), w, input_precision="ieee")
    inside = in_m[:, None] & in_d[None, :]
    at = row[:, None] * D + d[None, :]
    if norm_weight_ptr is not None:
        tile = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + m, mask=in_m, other=0.0)
        rstd = tl.load(rstd_ptr + m, mask=in_m, other=0.0)
        hat = tl.where(inside, (tile - mean[:, None]) * rstd[:, None], 0.0)
        sums_ptr = partial_ptr + program.to(tl.int64) * 2 * D + d
        tl.store(sums_ptr, tl.sum(acc * hat, axis=0), mask=in_d)
        tl.store(sums_ptr + D, tl.sum(acc, axis=0), mask=in_d)
        acc *= tl.load(norm_weight_ptr + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
        mean_grad_hat = tl.sum(acc * hat, axis=1) / D
        mean_grad = tl.sum(acc, axis=1) / D
        acc = (acc - mean_grad[:, None] - hat * mean_grad_hat[:, None]) * rstd[:, None]
    if past_ptr is not None:
        acc += tl.load(past_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(grad_x_ptr + at, acc, mask=inside)


def grad_stream(
    op: str,
    grad_out: Tensor,
    x: Tensor,
    norm: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    weight: Tensor,
    past: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The stream's gradient, as x, and the shares of the norm's weight and bias, float32 [programs, 2, D].

    Args:
        op: whose table names the configuration (``grad_stream``).
        grad_out: [rows, E], of the map's result.
        x: [rows, D].
        norm: mean [rows], rstd [rows], weight [D], bias [D]; the last two None: there is no norm.
        weight: [E, D]; its dtype is that of the matrix operands.
        past: [rows, D], added; None: nothing is.
    """
    (num_rows, D), E = x.shape, weight.shape[0]
    options = configuration(op, "grad_stream", x.device, dtype=dtype_name(weight.dtype), rows=num_rows, D=D, E=E)
    programs = cdiv(num_rows, options["BLOCK_M"])
    grad_x = torch.empty_like(x)
    partial = torch.empty(programs, 2, D, dtype=torch.float32, device=x.device)
    mean, rstd, norm_weight, _ = norm
    launch(
        _grad_stream_kernel,
        (programs,),
        grad_out,
        x,
        mean,
        rstd,
        norm_weight,
        weight,
        past,
        grad_x,
        partial,
        num_rows,
        D=D,
        E=E,
        BLOCK_D=next_power_of_2(D),
        **options,
    )
    return grad_x, partial
