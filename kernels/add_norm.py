"""LayerScale, residual addition and layer norm in one pass; with a projection, the linear map before them as well.

Without projection: reads the stream and the branch once, writes the new stream and its norm; bound by bandwidth.
With one: a program owns whole rows of the result, so that LayerScale, addition and norm are the epilogue of the matrix
product, and what the projection gives is never written. Backward: one kernel over rows makes the stream's gradient and
the branch's; with a projection, one makes the product with it from there, and one the projection's own gradient without
LayerScale, from which LayerScale's follows: of gamma * (b @ W^T) by gamma it is the sum over columns of
(gradient^T @ b) * W. Sums over rows go through partial sums in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch, next_power_of_2
from s2vfast.kernels._weight_grad import weight_grad


@triton.jit
def _norm_rows(total, normed, mean, rstd, weight, bias, m, d, at, in_m, in_d, eps, D: tl.constexpr):
    """Write the layer norm of rows [m, d] and their statistics."""
    mu = tl.sum(total, axis=1) / D
    centred = tl.where(in_d[None, :], total - mu[:, None], 0.0)
    factor = tl.rsqrt(tl.sum(centred * centred, axis=1) / D + eps)
    tl.store(mean + m, mu, mask=in_m)
    tl.store(rstd + m, factor, mask=in_m)
    scale = tl.load(weight + d, mask=in_d, other=0.0).to(tl.float32)
    shift = tl.load(bias + d, mask=in_d, other=0.0).to(tl.float32)
    result = centred * factor[:, None] * scale[None, :] + shift[None, :]
    tl.store(normed + at, result, mask=in_m[:, None] & in_d[None, :])


@triton.jit
def _add_kernel(
    residual,
    branch,
    gamma,
    weight,
    bias,
    out,
    normed,
    mean,
    rstd,
    M,
    eps,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = residual + gamma * branch (without branch: not written); normed = its layer norm, if wanted."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_m, in_d = m < M, d < D
    inside = in_m[:, None] & in_d[None, :]
    at = m.to(tl.int64)[:, None] * D + d[None, :]
    total = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if branch is not None:
        added = tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
        if gamma is not None:
            added *= tl.load(gamma + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
        total += added
        tl.store(out + at, total, mask=inside)
    if normed is not None:
        _norm_rows(total, normed, mean, rstd, weight, bias, m, d, at, in_m, in_d, eps, D)


@triton.jit
def _project_kernel(
    residual,
    branch,
    projection,
    projection_bias,
    gamma,
    weight,
    bias,
    out,
    normed,
    mean,
    rstd,
    M,
    eps,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """As `_add_kernel`, of branch @ projection^T + projection_bias."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_m, in_d = m < M, d < D
    inside = in_m[:, None] & in_d[None, :]
    row = m.to(tl.int64)
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        in_e = e < E
        b = tl.load(branch + row[:, None] * E + e[None, :], mask=in_m[:, None] & in_e[None, :], other=0.0)  # [m, e]
        w = tl.load(projection + d[None, :] * E + e[:, None], mask=in_e[:, None] & in_d[None, :], other=0.0)  # [e, d]
        acc = tl.dot(b.to(w.dtype), w, acc, input_precision="ieee")
    if projection_bias is not None:
        acc += tl.load(projection_bias + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
    if gamma is not None:
        acc *= tl.load(gamma + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
    at = row[:, None] * D + d[None, :]
    acc += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, acc, mask=inside)
    if normed is not None:
        _norm_rows(acc, normed, mean, rstd, weight, bias, m, d, at, in_m, in_d, eps, D)


@triton.jit
def _grad_rows_kernel(
    grad_out,
    grad_normed,
    out,
    mean,
    rstd,
    weight,
    branch,
    gamma,
    grad_residual,
    grad_branch,
    partial,
    M,
    tiles,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """grad_residual = grad_out + what comes through the norm; grad_branch = gamma * grad_residual, where wanted.

    partial [programs, 4, D]: these rows' share of the gradients of the norm's bias and weight, of the sum of
    grad_residual, and of gamma where the branch is there as it was added. A program goes through ``tiles`` tiles.
    """
    program = tl.program_id(0)
    d = tl.arange(0, BLOCK_D)
    in_d = d < D
    by_bias = tl.zeros([BLOCK_D], dtype=tl.float32)
    by_weight = tl.zeros([BLOCK_D], dtype=tl.float32)
    summed = tl.zeros([BLOCK_D], dtype=tl.float32)
    by_gamma = tl.zeros([BLOCK_D], dtype=tl.float32)
    for tile in range(program * tiles, program * tiles + tiles):
        m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        in_m = m < M
        inside = in_m[:, None] & in_d[None, :]
        at = m.to(tl.int64)[:, None] * D + d[None, :]
        grad = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
        if grad_out is not None:
            grad += tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
        if grad_normed is not None:
            g = tl.load(grad_normed + at, mask=inside, other=0.0).to(tl.float32)
            mu = tl.load(mean + m, mask=in_m, other=0.0)
            factor = tl.load(rstd + m, mask=in_m, other=0.0)
            hat = tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
            hat = tl.where(inside, (hat - mu[:, None]) * factor[:, None], 0.0)
            by_bias += tl.sum(g, axis=0)
            by_weight += tl.sum(g * hat, axis=0)
            g *= tl.load(weight + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
            along = tl.sum(g * hat, axis=1) / D
            level = tl.sum(g, axis=1) / D
            grad += tl.where(inside, (g - level[:, None] - hat * along[:, None]) * factor[:, None], 0.0)
        tl.store(grad_residual + at, grad, mask=inside)
        summed += tl.sum(grad, axis=0)
        if branch is not None:
            by_gamma += tl.sum(grad * tl.load(branch + at, mask=inside, other=0.0).to(tl.float32), axis=0)
        if grad_branch is not None:
            if gamma is not None:
                grad *= tl.load(gamma + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
            tl.store(grad_branch + at, grad, mask=inside)
    to = partial + program * 4 * D + d
    tl.store(to, by_bias, mask=in_d)
    tl.store(to + D, by_weight, mask=in_d)
    tl.store(to + 2 * D, summed, mask=in_d)
    tl.store(to + 3 * D, by_gamma, mask=in_d)


@triton.jit
def _grad_branch_kernel(
    grad,
    projection,
    grad_branch,
    M,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """grad_branch [M, E] = grad [M, D] @ projection [D, E], which is scaled by gamma."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    in_m, in_e = m < M, e < E
    row = m.to(tl.int64)
    acc = tl.zeros([BLOCK_M, BLOCK_E], dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        in_d = d < D
        g = tl.load(grad + row[:, None] * D + d[None, :], mask=in_m[:, None] & in_d[None, :], other=0.0)
        w = tl.load(projection + d[:, None] * E + e[None, :], mask=in_d[:, None] & in_e[None, :], other=0.0)
        acc = tl.dot(g, w, acc, input_precision="ieee")
    tl.store(grad_branch + row[:, None] * E + e[None, :], acc, mask=in_m[:, None] & in_e[None, :])


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
        residual: [M, D].
        branch: [M, D], [M, E] with a projection, or None.
        gamma: [D], or None.
        weight: [D] of the norm; None: no norm.
        bias: [D] of the norm.
        eps: added to the variance.
        projection: [D, E], or None.
        projection_bias: [D], or None.
    """
    M, D = residual.shape
    device = residual.device
    out = None if branch is None else torch.empty_like(residual)
    normed = mean = rstd = None
    if weight is not None:
        normed = torch.empty(M, D, dtype=residual.dtype if branch is None else branch.dtype, device=device)
        mean, rstd = (torch.empty(M, dtype=torch.float32, device=device) for _ in range(2))
    written = (weight, bias, out, normed, mean, rstd, M, eps)
    block_d = next_power_of_2(D)
    if projection is None:
        dtype = dtype_name(residual.dtype if branch is None else branch.dtype)
        options = configuration("add_norm", "add", device, dtype=dtype, rows=M, D=D)
        grid = (cdiv(M, options["BLOCK_M"]),)
        launch(_add_kernel, grid, residual, branch, gamma, *written, D=D, BLOCK_D=block_d, **options)
    else:
        E = projection.shape[1]
        facts = {"dtype": dtype_name(projection.dtype), "rows": M, "D": D, "E": E}
        options = configuration("add_norm", "project", device, **facts)
        grid = (cdiv(M, options["BLOCK_M"]),)
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
        grad_out: [M, D] of the new stream, or None.
        grad_normed: [M, D] of the norm, or None.
        out: [M, D], the new stream; without a branch the stream.
        mean: [M], from `forward`, or None.
        rstd: [M], from `forward`, or None.
        branch: as of `forward`, as are the others.
        gamma: [D], or None.
        weight: [D], or None.
        bias: [D], or None.
        projection: [D, E], or None.
        projection_bias: [D], or None.
    """
    M, D = out.shape
    device = out.device
    plain = branch is not None and projection is None
    dtype = dtype_name(out.dtype if branch is None else branch.dtype)
    options = configuration("add_norm", "grad_rows", device, dtype=dtype, rows=M, D=D)
    blocks = cdiv(M, options["BLOCK_M"])
    programs = max(min(options.pop("PROGRAMS"), blocks), 1)
    grad_residual = torch.empty_like(out)
    # What matrix products read is in the operands' dtype, LayerScale being in the other operand.
    operand = torch.empty(M, D, dtype=projection.dtype, device=device) if projection is not None else None
    grad_branch = torch.empty_like(branch) if plain else operand
    partial = torch.empty(programs, 4, D, dtype=torch.float32, device=device)
    launch(
        _grad_rows_kernel,
        (programs,),
        grad_out,
        grad_normed,
        out,
        mean,
        rstd,
        weight,
        branch if plain and gamma is not None else None,
        gamma if plain else None,
        grad_residual,
        grad_branch,
        partial,
        M,
        cdiv(blocks, programs),
        D=D,
        BLOCK_D=next_power_of_2(D),
        **options,
    )
    by_gamma = partial[:, 3].sum(0) if plain else None
    by_projection = by_projection_bias = None
    if projection is not None:
        grad_branch, by_projection, by_projection_bias, by_gamma = _through_projection(
            operand, partial[:, 2].sum(0), branch, gamma, projection, projection_bias
        )
    return [
        grad_residual,
        grad_branch,
        by_gamma.to(gamma.dtype) if gamma is not None else None,
        partial[:, 1].sum(0).to(weight.dtype) if weight is not None else None,
        partial[:, 0].sum(0).to(bias.dtype) if bias is not None else None,
        by_projection,
        by_projection_bias,
    ]


def _through_projection(
    grad: Tensor,
    summed: Tensor,
    branch: Tensor,
    gamma: Tensor | None,
    projection: Tensor,
    projection_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of branch [M, E], projection [D, E], projection_bias [D] and gamma [D] from the stream's, ``grad``."""
    (M, E), D = branch.shape, projection.shape[0]
    scaled = projection if gamma is None else (projection * gamma[:, None]).to(projection.dtype)
    facts = {"dtype": dtype_name(projection.dtype), "rows": M, "D": D, "E": E}
    options = configuration("add_norm", "grad_branch", branch.device, **facts)
    grad_branch = torch.empty_like(branch)
    grid = (cdiv(M, options["BLOCK_M"]), cdiv(E, options["BLOCK_E"]))
    launch(_grad_branch_kernel, grid, grad, scaled, grad_branch, M, D=D, E=E, **options)
    unscaled, _ = weight_grad("add_norm", grad, branch, projection.dtype)  # [D, E]
    by_bias, by_gamma = summed, None
    if gamma is not None:
        by_gamma = (unscaled * projection).sum(1)
        if projection_bias is not None:
            by_gamma = by_gamma + projection_bias * summed
        unscaled, by_bias = unscaled * gamma[:, None], summed * gamma
    by_bias = None if projection_bias is None else by_bias.to(projection_bias.dtype)
    return grad_branch, unscaled.to(projection.dtype), by_bias, by_gamma
