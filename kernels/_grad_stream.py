"""The gradient of the stream that a layer norm reads, and of the linear map after the norm.

`grad_rows` goes through a norm's own backward pass, adds what comes to the stream past the norm, and hands on the sum
to a branch and its LayerScale: bound by bandwidth. `grad_stream` makes grad @ weight before it; the product of a whole
tile of rows leaves no registers for that pass, and with fewer rows a tile the weight is read from the second-level
cache too often: it is written, in the operands' dtype, and read again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch, next_power_of_2


@triton.jit
def through_norm(
    grad_out_ptr, grad_normed_ptr, out_ptr, mean_ptr, rstd_ptr, weight_ptr, m, d, at, in_m, in_d, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of rows [m, d]: the new stream's gradient, and what the norm's bias and weight get, [d]."""
    inside = in_m[:, None] & in_d[None, :]
    grad = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    grad_bias = tl.zeros([BLOCK_D], dtype=tl.float32)
    grad_weight = grad_bias
    if grad_out_ptr is not None:
        grad += tl.load(grad_out_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if grad_normed_ptr is not None:
        g = tl.load(grad_normed_ptr + at, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + m, mask=in_m, other=0.0)
        rstd = tl.load(rstd_ptr + m, mask=in_m, other=0.0)
        hat = tl.load(out_ptr + at, mask=inside, other=0.0).to(tl.float32)
        hat = tl.where(inside, (hat - mean[:, None]) * rstd[:, None], 0.0)
        grad_bias = tl.sum(g, axis=0)
        grad_weight = tl.sum(g * hat, axis=0)
        g *= tl.load(weight_ptr + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
        mean_grad_hat = tl.sum(g * hat, axis=1) / D
        mean_grad = tl.sum(g, axis=1) / D
        grad += tl.where(inside, (g - mean_grad[:, None] - hat * mean_grad_hat[:, None]) * rstd[:, None], 0.0)
    return grad, grad_bias, grad_weight


@triton.jit
def _grad_rows_kernel(
    grad_out_ptr,
    grad_normed_ptr,
    out_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    branch_ptr,
    gamma_ptr,
    grad_residual_ptr,
    grad_branch_ptr,
    partial_ptr,
    num_rows,
    tiles,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """grad_residual = grad_out + what comes through the norm; grad_branch = gamma * grad_residual; where wanted.

    partial [programs, 3, D]: these rows' share of the gradients of the norm's bias and weight, and of gamma. A program
    goes through ``tiles`` tiles.
    """
    program = tl.program_id(0)
    d = tl.arange(0, BLOCK_D)
    in_d = d < D
    grad_bias = tl.zeros([BLOCK_D], dtype=tl.float32)
    grad_weight = tl.zeros([BLOCK_D], dtype=tl.float32)
    grad_gamma = tl.zeros([BLOCK_D], dtype=tl.float32)
    for tile in range(program * tiles, program * tiles + tiles):
        m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        in_m = m < num_rows
        inside = in_m[:, None] & in_d[None, :]
        at = m.to(tl.int64)[:, None] * D + d[None, :]
        grad, to_bias, to_weight = through_norm(
            grad_out_ptr, grad_normed_ptr, out_ptr, mean_ptr, rstd_ptr, weight_ptr, m, d, at, in_m, in_d, D, BLOCK_M,
            BLOCK_D,
        )  # fmt: skip
        grad_bias += to_bias
        grad_weight += to_weight
        if grad_residual_ptr is not None:
            tl.store(grad_residual_ptr + at, grad, mask=inside)
        if gamma_ptr is not None:
            grad_gamma += tl.sum(grad * tl.load(branch_ptr + at, mask=inside, other=0.0).to(tl.float32), axis=0)
            grad *= tl.load(gamma_ptr + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
        if grad_branch_ptr is not None:
            tl.store(grad_branch_ptr + at, grad, mask=inside)
    to_ptr = partial_ptr + program.to(tl.int64) * 3 * D + d
    tl.store(to_ptr, grad_bias, mask=in_d)
    tl.store(to_ptr + D, grad_weight, mask=in_d)
    tl.store(to_ptr + 2 * D, grad_gamma, mask=in_d)


@triton.jit
def _grad_normed_kernel(
    grad_out_ptr,
    weight_ptr,
    result_ptr,
    sums_ptr,
    num_rows,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """result [m, d] = grad_out [m, e] @ weight [e, d] for a tile of rows; sums [programs, e]: of grad_out's rows.

    Sums are a product with ones, too: with a user that reads grad_out into registers the compiler leaves out the buffer
    that a product still reads while the copy after next begins.
    """
    program = tl.program_id(0)
    m = program * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_m, in_d = m < num_rows, d < D
    row = m.to(tl.int64)
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        in_e = e < E
        g = tl.load(grad_out_ptr + row[:, None] * E + e[None, :], mask=in_m[:, None] & in_e[None, :], other=0.0)
        w = tl.load(weight_ptr + e[:, None] * D + d[None, :], mask=in_e[:, None] & in_d[None, :], other=0.0)  # [e, d]
        g = g.to(weight_ptr.dtype.element_ty)
        acc = tl.dot(g, w, acc, input_precision="ieee")
        if sums_ptr is not None:
            sums = tl.dot(
                tl.trans(g), tl.full([BLOCK_M, 16], 1.0, tl.float32).to(g.dtype), input_precision="ieee"
            )  # [e, 16 times]
            column = tl.arange(0, 16)[None, :]
            to_ptr = sums_ptr + program.to(tl.int64) * E + e[:, None] + 0 * column
            tl.store(to_ptr, sums, mask=in_e[:, None] & (column == 0))
    tl.store(result_ptr + row[:, None] * D + d[None, :], acc, mask=in_m[:, None] & in_d[None, :])


def grad_rows(
    op: str,
    grad_out: Tensor | None,
    grad_normed: Tensor | None,
    out: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight: Tensor | None,
    branch: Tensor | None,
    gamma: Tensor | None,
    grad_residual: Tensor | None,
    grad_branch: Tensor | None,
) -> Tensor:
    """What `_grad_rows_kernel` writes; shares of the norm's bias and weight, and of gamma, float32 [programs, 3, D].

    Args:
        op: whose table names the configuration (``grad_rows``).
        grad_out: [rows, D], what comes to the stream past the norm, or None.
        grad_normed: [rows, D] of the norm's result, or None.
        out: [rows, D], the stream.
        mean: [rows], or None.
        rstd: [rows], or None.
        weight: [D] of the norm, or None.
        branch: [rows, D], or None.
        gamma: [D] of LayerScale, or None.
        grad_residual: [rows, D], written, or None.
        grad_branch: [rows, D], written, or None.
    """
    num_rows, D = out.shape
    dtype = dtype_name(out.dtype if branch is None else branch.dtype)
    options = configuration(op, "grad_rows", out.device, dtype=dtype, rows=num_rows, D=D)
    blocks = cdiv(num_rows, options["BLOCK_M"])
    programs = max(min(options.pop("PROGRAMS"), blocks), 1)
    partial = torch.empty(programs, 3, D, dtype=torch.float32, device=out.device)
    arguments = (grad_out, grad_normed, out, mean, rstd, weight, branch, gamma, grad_residual, grad_branch, partial)
    launch(
        _grad_rows_kernel,
        (programs,),
        *arguments,
        num_rows,
        cdiv(blocks, programs),
        D=D,
        BLOCK_D=next_power_of_2(D),
        **options,
    )
    return partial


def grad_stream(
    op: str,
    grad_out: Tensor,
    x: Tensor,
    norm: tuple[Tensor, Tensor, Tensor | None],
    weight: Tensor,
    past: Tensor | None = None,
    *,
    sums: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The stream's gradient, as x; shares of the norm's bias and weight [programs, 3, D], last 0; of the map's bias.

    Args:
        op: whose table names the configurations (``grad_normed``, ``grad_rows``).
        grad_out: [rows, E], of the map's result.
        x: [rows, D].
        norm: mean [rows], rstd [rows], weight [D]; weight None: there is no norm, and no shares.
        weight: [E, D]; its dtype is that of the matrix operands.
        past: [rows, D], added behind a norm; None: nothing is.
        sums: whether there are shares of the map's bias, [programs, E]; shares are float32.
    """
    (num_rows, D), E = x.shape, weight.shape[0]
    options = configuration(op, "grad_normed", x.device, dtype=dtype_name(weight.dtype), rows=num_rows, D=D, E=E)
    grad_x = torch.empty_like(x)
    product = grad_x if norm[2] is None else torch.empty(num_rows, D, dtype=weight.dtype, device=x.device)
    programs = cdiv(num_rows, options["BLOCK_M"])
    by_bias = torch.empty(programs, E, dtype=torch.float32, device=x.device) if sums else None
    arguments = (grad_out, weight, product, by_bias, num_rows)
    launch(_grad_normed_kernel, (programs,), *arguments, D=D, E=E, BLOCK_D=next_power_of_2(D), **options)
    if norm[2] is None:
        assert past is None, "nothing comes past a norm that is not there"
        return grad_x, None, by_bias
    return grad_x, grad_rows(op, past, product, x, *norm, None, None, grad_x, None), by_bias
