"""LayerScale, residual addition and layer norm in one pass; with a projection, the linear map before them as well.

Without projection: reads the stream and the branch once, writes the new stream and its norm; bound by bandwidth.
With one: a program owns whole rows of the result, so that LayerScale, addition and norm are the epilogue of the matrix
product, and what the projection gives is never written. Backward: one kernel over rows makes the stream's gradient and
the branch's, with a projection as its product; then one the projection's own gradient; `_finish` adds up their partial
sums in a fixed order. Without a norm the stream's gradient is what came in, and is not written again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._finish import LayerScale, Sum, away_from_zero, finish
from s2vfast.kernels._grad_stream import grad_rows, through_norm
from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch, next_power_of_2
from s2vfast.kernels._rows import norm_rows, write_sum
from s2vfast.kernels._weight_grad import weight_grad


@triton.jit
def _add_kernel(
    residual_ptr,
    branch_ptr,
    gamma_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    normed_ptr,
    mean_ptr,
    rstd_ptr,
    num_rows,
    eps,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = residual + gamma * branch (without branch: not written); normed = its layer norm, if wanted."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_m, in_d = m < num_rows, d < D
    inside = in_m[:, None] & in_d[None, :]
    at = m.to(tl.int64)[:, None] * D + d[None, :]
    total = tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if branch_ptr is not None:
        added = tl.load(branch_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if gamma_ptr is not None:
            added *= tl.load(gamma_ptr + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
        total += added
        tl.store(out_ptr + at, total, mask=inside)
    if normed_ptr is not None:
        normed = norm_rows(total, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, m, in_m, eps, D, BLOCK_D)
        tl.store(normed_ptr + at, normed, mask=inside)


@triton.jit
def _project_kernel(
    residual_ptr,
    branch_ptr,
    projection_ptr,
    projection_bias_ptr,
    gamma_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    normed_ptr,
    mean_ptr,
    rstd_ptr,
    num_rows,
    eps,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """As `_add_kernel`, of branch @ projection^T + projection_bias."""
    first_row = tl.program_id(0) * BLOCK_M
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    in_m, in_d = first_row + m < num_rows, d < D
    inside = in_m[:, None] & in_d[None, :]
    # Pointers to the tile's first row: addresses of 64 bits then take registers once a pointer, not once a row.
    branch_ptr += first_row.to(tl.int64) * E
    residual_ptr += first_row.to(tl.int64) * D
    out_ptr += first_row.to(tl.int64) * D
    if normed_ptr is not None:
        normed_ptr += first_row.to(tl.int64) * D
        mean_ptr += first_row
        rstd_ptr += first_row
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        in_e = e < E
        b = tl.load(branch_ptr + m[:, None] * E + e[None, :], mask=in_m[:, None] & in_e[None, :], other=0.0)  # [m, e]
        w = tl.load(
            projection_ptr + d[None, :] * E + e[:, None], mask=in_e[:, None] & in_d[None, :], other=0.0
        )  # [e, d]
        acc = tl.dot(b.to(w.dtype), w, acc, input_precision="ieee")
    if normed_ptr is None:
        write_sum(acc, residual_ptr, projection_bias_ptr, gamma_ptr, out_ptr, m, in_m, D, True, BLOCK_D)
    else:
        if projection_bias_ptr is not None:
            acc += tl.load(projection_bias_ptr + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
        if gamma_ptr is not None:
            acc *= tl.load(gamma_ptr + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
        at = m[:, None] * D + d[None, :]
        acc += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + at, acc, mask=inside)
        normed = norm_rows(acc, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, m, in_m, eps, D, BLOCK_D)
        tl.store(normed_ptr + at, normed, mask=inside)


@triton.jit
def _grad_project_kernel(
    grad_out_ptr,
    grad_normed_ptr,
    out_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    projection_ptr,
    gamma_ptr,
    grad_residual_ptr,
    grad_branch_ptr,
    operand_ptr,
    partial_ptr,
    num_rows,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """As `_grad_stream.grad_rows`; grad_branch [m, e] is (gamma * grad_residual) @ projection.

    operand is the left one of that product, for the projection's gradient; its gamma is as `_finish.LayerScale` wants
    it. partial [programs, 3, D]: these rows' share of the gradients of the norm's bias and weight, and of the sum of
    grad_residual.
    """
    program = tl.program_id(0)
    first_row = program * BLOCK_M
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    in_m, in_d = first_row + m < num_rows, d < D
    inside = in_m[:, None] & in_d[None, :]
    at = m[:, None] * D + d[None, :]
    # As in `_project_kernel`.
    out_ptr += first_row.to(tl.int64) * D
    operand_ptr += first_row.to(tl.int64) * D
    grad_branch_ptr += first_row.to(tl.int64) * E
    if grad_out_ptr is not None:
        grad_out_ptr += first_row.to(tl.int64) * D
    if grad_normed_ptr is not None:
        grad_normed_ptr += first_row.to(tl.int64) * D
        mean_ptr += first_row
        rstd_ptr += first_row
    if grad_residual_ptr is not None:
        grad_residual_ptr += first_row.to(tl.int64) * D
    grad, grad_bias, grad_weight = through_norm(
        grad_out_ptr,
        grad_normed_ptr,
        out_ptr,
        mean_ptr,
        rstd_ptr,
        weight_ptr,
        m,
        d,
        at,
        in_m,
        in_d,
        D,
        BLOCK_M,
        BLOCK_D,
    )
    if grad_residual_ptr is not None:
        tl.store(grad_residual_ptr + at, grad, mask=inside)
    to_ptr = partial_ptr + program.to(tl.int64) * 3 * D + d
    tl.store(to_ptr, grad_bias, mask=in_d)
    tl.store(to_ptr + D, grad_weight, mask=in_d)
    tl.store(to_ptr + 2 * D, tl.sum(grad, axis=0), mask=in_d)
    if gamma_ptr is not None:
        grad *= away_from_zero(tl.load(gamma_ptr + d, mask=in_d, other=0.0).to(tl.float32))[None, :]
    scaled = grad.to(projection_ptr.dtype.element_ty)
    tl.store(operand_ptr + at, scaled, mask=inside)
    # Transposed, so that what is made here is the right operand, which lies in shared memory, not in registers.
    rows = tl.trans(scaled)  # [d, m]
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        in_e = e < E
        w = tl.load(
            projection_ptr + d[:, None] * E + e[None, :], mask=in_d[:, None] & in_e[None, :], other=0.0
        )  # [d, e]
        result = tl.trans(tl.dot(tl.trans(w), rows, input_precision="ieee"))  # [m, e]
        tl.store(grad_branch_ptr + m[:, None] * E + e[None, :], result, mask=in_m[:, None] & in_e[None, :])


def forward(
    residual: Tensor,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    projection: Tensor | None,
    projection_bias: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """New stream (None without a branch), its norm, mean and reciprocal deviation of rows (None without a norm).

    Args:
        residual: [rows, D].
        branch: [rows, D], [rows, E] with a projection, or None.
        gamma: [D], or None.
        weight: [D] of the norm; None: no norm.
        bias: [D] of the norm.
        eps: added to the variance.
        projection: [D, E], or None.
        projection_bias: [D], or None.
    """
    num_rows, D = residual.shape
    device = residual.device
    out = None if branch is None else torch.empty_like(residual)
    normed = mean = rstd = None
    if weight is not None:
        normed = torch.empty(num_rows, D, dtype=residual.dtype if branch is None else branch.dtype, device=device)
        mean, rstd = (torch.empty(num_rows, dtype=torch.float32, device=device) for _ in range(2))
    written = (weight, bias, out, normed, mean, rstd, num_rows, eps)
    block_d = next_power_of_2(D)
    if projection is None:
        dtype = dtype_name(residual.dtype if branch is None else branch.dtype)
        options = configuration("add_norm", "add", device, dtype=dtype, rows=num_rows, D=D)
        grid = (cdiv(num_rows, options["BLOCK_M"]),)
        launch(_add_kernel, grid, residual, branch, gamma, *written, D=D, BLOCK_D=block_d, **options)
    else:
        E = projection.shape[1]
        facts = {
            "dtype": dtype_name(projection.dtype),
            "rows": num_rows,
            "D": D,
            "E": E,
            "norm": int(weight is not None),
        }
        options = configuration("add_norm", "project", device, **facts)
        grid = (cdiv(num_rows, options["BLOCK_M"]),)
        operands = (residual, branch, projection, projection_bias, gamma)
        launch(_project_kernel, grid, *operands, *written, D=D, E=E, BLOCK_D=block_d, **options)
    return out, normed, mean, rstd


def backward(
    grad_out: Tensor | None,
    grad_normed: Tensor | None,
    out: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    projection: Tensor | None,
    projection_bias: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of residual, branch, gamma, weight, bias, projection, projection_bias, each in its tensor's dtype.

    Args:
        grad_out: [rows, D] of the new stream, or None.
        grad_normed: [rows, D] of the norm, or None.
        out: [rows, D], the new stream; without a branch the stream.
        mean: [rows], from `forward`, or None.
        rstd: [rows], from `forward`, or None.
        branch: as of `forward`, as are the others.
        gamma: [D], or None.
        weight: [D]; None: there was no norm, the residual's gradient is grad_out, and None is what is given for it.
        bias: [D], or None.
        projection: [D, E], or None.
        projection_bias: [D], or None.
    """
    num_rows, D = out.shape
    device = out.device
    grads = (grad_out, grad_normed, out, mean, rstd, weight)
    grad_residual = None if weight is None else torch.empty_like(out)
    grad_branch = None if branch is None else torch.empty_like(branch)
    if projection is None:
        scale = None if branch is None else gamma
        partial = grad_rows("add_norm", *grads, branch, scale, grad_residual, grad_branch)
    else:
        E = projection.shape[1]
        facts = {"dtype": dtype_name(projection.dtype), "rows": num_rows, "D": D, "E": E}
        options = configuration("add_norm", "grad_project", device, **facts)
        programs = cdiv(num_rows, options["BLOCK_M"])
        partial = torch.empty(programs, 3, D, dtype=torch.float32, device=device)
        operand = torch.empty(num_rows, D, dtype=projection.dtype, device=device)
        arguments = (*grads, projection, gamma, grad_residual, grad_branch, operand, partial, num_rows)
        launch(_grad_project_kernel, (programs,), *arguments, D=D, E=E, BLOCK_D=next_power_of_2(D), **options)
        by_projection = weight_grad("add_norm", operand, branch, projection.dtype)  # [splits, D, E]
    summed, scaled = partial[:, 2], None
    sums = [
        None if weight is None else Sum(partial[:, 1], weight.dtype),
        None if bias is None else Sum(partial[:, 0], bias.dtype),
    ]
    if projection is None:
        sums += [None, None, None if gamma is None else Sum(summed, gamma.dtype)]
    elif gamma is None:
        by_sum = None if projection_bias is None else Sum(summed, projection_bias.dtype)
        sums += [Sum(by_projection, projection.dtype), by_sum, None]
    else:
        scaled = LayerScale(by_projection, summed, projection, projection_bias, gamma)
    by_weight, by_bias, *by_map, by_gamma = finish("add_norm", sums, scaled)
    return [grad_residual, grad_branch, by_gamma, by_weight, by_bias, *by_map]
