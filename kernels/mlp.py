"""The feed-forward branch in one kernel: layer norm, fc1, GELU, fc2, LayerScale and the residual addition.

A program owns a tile of rows. It normalises them, then makes the hidden state one slice after the other, each of which
goes into the product with fc2 as soon as it is there: the hidden state, four times as wide as the stream, never leaves
the chip. Reads the stream once (again from cache at the end), writes it once; the weights come from the second-level
cache. Bound by matrix products, 4 M D E operations; GELU, exact to the last place of bfloat16, hides behind them.

Backward recomputes the hidden state twice: for the stream's gradient (programs own rows) and for the weights' (programs
own a slice of the hidden state and go through a share of the rows; partial sums are added in a fixed order).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._gelu import normal_distribution
from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch, next_power_of_2


@triton.jit
def _normed(tile, mu, factor, norm_weight, norm_bias, d, in_d):
    """The layer norm of a tile [BLOCK_M, BLOCK_D] by its rows' statistics; 0 beyond D."""
    scale = tl.load(norm_weight + d, mask=in_d, other=0.0).to(tl.float32)
    shift = tl.load(norm_bias + d, mask=in_d, other=0.0).to(tl.float32)
    return (tile - mu[:, None]) * factor[:, None] * scale[None, :] + shift[None, :]


@triton.jit
def _forward_kernel(
    x,
    norm_weight,
    norm_bias,
    weight1,
    bias1,
    weight2,
    bias2,
    gamma,
    out,
    mean,
    rstd,
    M,
    eps,
    D: tl.constexpr,
    E: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    FAST_GELU: tl.constexpr,
):
    """out[rows] = x + gamma * (gelu(norm(x) @ weight1^T + bias1) @ weight2^T + bias2); the branch alone if not NORM."""
    operand = weight1.dtype.element_ty
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_m, in_d = m < M, d < D
    inside = in_m[:, None] & in_d[None, :]
    at = m.to(tl.int64)[:, None] * D + d[None, :]
    tile = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        mu = tl.sum(tile, axis=1) / D
        centred = tl.where(in_d[None, :], tile - mu[:, None], 0.0)
        factor = tl.rsqrt(tl.sum(centred * centred, axis=1) / D + eps)
        tl.store(mean + m, mu, mask=in_m)
        tl.store(rstd + m, factor, mask=in_m)
        tile = _normed(tile, mu, factor, norm_weight, norm_bias, d, in_d)
    rows = tl.trans(tile.to(operand))  # [d, m]
    # Transposed, so that what is made here is always the right operand, which has to lie in shared memory anyway, and
    # the left one is a weight as it is loaded: a left operand made here would be held in registers, all of it.
    acc = tl.zeros([BLOCK_D, BLOCK_M], dtype=tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        in_e = e < E
        w1 = tl.load(weight1 + e[:, None] * D + d[None, :], mask=in_e[:, None] & in_d[None, :], other=0.0)  # [e, d]
        h = tl.dot(w1, rows, input_precision="ieee") + tl.load(bias1 + e, mask=in_e, other=0.0).to(tl.float32)[:, None]
        share, _ = normal_distribution(h, FAST_GELU)
        w2 = tl.load(weight2 + d[:, None] * E + e[None, :], mask=in_e[None, :] & in_d[:, None], other=0.0)  # [d, e]
        acc = tl.dot(w2, (h * share).to(operand), acc, input_precision="ieee")
    acc = tl.trans(acc)  # [m, d]
    acc += tl.load(bias2 + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
    if NORM:
        if gamma is not None:
            acc *= tl.load(gamma + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
        acc += tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, acc, mask=inside)


@triton.jit
def _grad_stream_kernel(
    grad_out,
    x,
    mean,
    rstd,
    norm_weight,
    norm_bias,
    weight1,
    bias1,
    weight2,
    grad_x,
    normed,
    upstream,
    partial,
    M,
    D: tl.constexpr,
    E: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    FAST_GELU: tl.constexpr,
):
    """grad_x[rows], and for `_grad_weight_kernel` norm(x) and grad_out in the operands' dtype.

    weight2 is scaled by gamma. partial [programs, 3, D]: these rows' share of the sum of grad_out, and of what the
    norm's bias and weight get.
    """
    operand = weight1.dtype.element_ty
    program = tl.program_id(0)
    m = program * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_m, in_d = m < M, d < D
    inside = in_m[:, None] & in_d[None, :]
    at = m.to(tl.int64)[:, None] * D + d[None, :]
    tile = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        mu = tl.load(mean + m, mask=in_m, other=0.0)
        factor = tl.load(rstd + m, mask=in_m, other=0.0)
        tile = _normed(tile, mu, factor, norm_weight, norm_bias, d, in_d)
    rows = tl.trans(tile.to(operand))  # [d, m]
    if NORM:
        tl.store(normed + at, tile.to(operand), mask=inside)
    grad = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
    sums = partial + program.to(tl.int64) * 3 * D + d
    tl.store(sums, tl.sum(grad, axis=0), mask=in_d)
    if upstream is not None:
        tl.store(upstream + at, grad.to(operand), mask=inside)
    branch = tl.trans(grad.to(operand))  # [d, m]
    acc = tl.zeros([BLOCK_D, BLOCK_M], dtype=tl.float32)  # gradient of the normed stream, transposed as in `forward`
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        in_e = e < E
        w1 = tl.load(weight1 + e[:, None] * D + d[None, :], mask=in_e[:, None] & in_d[None, :], other=0.0)  # [e, d]
        h = tl.dot(w1, rows, input_precision="ieee") + tl.load(bias1 + e, mask=in_e, other=0.0).to(tl.float32)[:, None]
        w2 = tl.load(weight2 + d[:, None] * E + e[None, :], mask=in_e[None, :] & in_d[:, None], other=0.0)  # [d, e]
        share, density = normal_distribution(h, FAST_GELU)
        grad_h = tl.dot(tl.trans(w2), branch, input_precision="ieee") * (share + h * density)
        acc = tl.dot(tl.trans(w1), grad_h.to(operand), acc, input_precision="ieee")
    acc = tl.trans(acc)  # [m, d]
    if NORM:
        tile = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        hat = tl.where(inside, (tile - mu[:, None]) * factor[:, None], 0.0)
        tl.store(sums + D, tl.sum(acc, axis=0), mask=in_d)
        tl.store(sums + 2 * D, tl.sum(acc * hat, axis=0), mask=in_d)
        acc *= tl.load(norm_weight + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
        along = tl.sum(acc * hat, axis=1) / D
        level = tl.sum(acc, axis=1) / D
        acc = (acc - level[:, None] - hat * along[:, None]) * factor[:, None]
        acc += tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(grad_x + at, acc, mask=inside)


@triton.jit
def _grad_weight_kernel(
    upstream,
    normed,
    weight1,
    bias1,
    weight2,
    partial,
    partial_bias,
    M,
    rows_a_split,
    D: tl.constexpr,
    E: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    FAST_GELU: tl.constexpr,
):
    """One slice of the hidden state, one share of the rows: this share's part of the gradient of a weight.

    FIRST: partial [e, d] is grad_h^T @ norm(x), and partial_bias [e] the sum of grad_h; weight2 is scaled by gamma.
    Else: partial [e, d] is gelu(h)^T @ grad_out. Both at once would need more accumulators than there are registers.
    """
    operand = weight1.dtype.element_ty
    split = tl.program_id(1)
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    d = tl.arange(0, BLOCK_D)
    in_e, in_d = e < E, d < D
    b1 = tl.load(bias1 + e, mask=in_e, other=0.0).to(tl.float32)
    acc = tl.zeros([BLOCK_E, BLOCK_D], dtype=tl.float32)
    total = tl.zeros([BLOCK_E], dtype=tl.float32)
    begin = split * rows_a_split
    end = tl.minimum(begin + rows_a_split, M)
    for start in range(begin, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        inside = (m < end)[:, None] & in_d[None, :]
        at = m.to(tl.int64)[:, None] * D + d[None, :]
        rows = tl.load(normed + at, mask=inside, other=0.0)  # [m, d]
        grad = tl.load(upstream + at, mask=inside, other=0.0)  # [m, d]
        # The same weights every time, from cache: as left operands they stay in shared memory only if loaded here.
        w1 = tl.load(weight1 + e[:, None] * D + d[None, :], mask=in_e[:, None] & in_d[None, :], other=0.0)  # [e, d]
        h = tl.dot(w1, tl.trans(rows), input_precision="ieee") + b1[:, None]  # [e, m]
        share, density = normal_distribution(h, FAST_GELU)
        # Rows beyond the end have no gradient, so that what GELU makes of them does not matter.
        if FIRST:
            w2 = tl.load(weight2 + d[:, None] * E + e[None, :], mask=in_e[None, :] & in_d[:, None], other=0.0)  # [d, e]
            grad_h = tl.dot(tl.trans(w2), tl.trans(grad), input_precision="ieee") * (share + h * density)
            total += tl.sum(grad_h, axis=1)
            acc = tl.dot(grad_h.to(operand), rows, acc, input_precision="ieee")
        else:
            acc = tl.dot((h * share).to(operand), grad, acc, input_precision="ieee")
    to = split.to(tl.int64) * E * D + e[:, None].to(tl.int64) * D + d[None, :]
    tl.store(partial + to, acc, mask=in_e[:, None] & in_d[None, :])
    if FIRST:
        tl.store(partial_bias + split * E + e, total, mask=in_e)


def forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    gamma: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result [M, D] in the dtype of x; mean and reciprocal deviation of every row, float32 [M] ([0] without norm).

    Args:
        x: [M, D].
        weight1: [E, D]; its dtype is that of the matrix operands.
        bias1: [E].
        weight2: [D, E].
        bias2: [D].
        norm_weight: [D]; None: the branch alone.
        norm_bias: [D].
        gamma: [D], or None.
        eps: added to the variance.
    """
    (M, D), E = x.shape, weight1.shape[0]
    norm = norm_weight is not None
    options = configuration("mlp", "forward", x.device, dtype=dtype_name(weight1.dtype), rows=M, D=D, E=E)
    out = torch.empty_like(x)
    mean, rstd = (torch.empty(M if norm else 0, dtype=torch.float32, device=x.device) for _ in range(2))
    launch(
        _forward_kernel,
        (cdiv(M, options["BLOCK_M"]),),
        x,
        norm_weight,
        norm_bias,
        weight1,
        bias1,
        weight2,
        bias2,
        gamma,
        out,
        mean,
        rstd,
        M,
        eps,
        D=D,
        E=E,
        NORM=norm,
        BLOCK_D=next_power_of_2(D),
        **options,
    )
    return out, mean, rstd


def backward(
    grad_out: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    gamma: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of x, weight1, bias1, weight2, bias2, norm_weight, norm_bias, gamma, each in its tensor's dtype.

    Args:
        grad_out: [M, D].
        x: [M, D], as of `forward`, as are the others.
        mean: [M], from `forward`.
        rstd: [M], from `forward`.
        weight1: [E, D].
        bias1: [E].
        weight2: [D, E].
        bias2: [D].
        norm_weight: [D], or None.
        norm_bias: [D], or None.
        gamma: [D], or None.
    """
    (M, D), E = x.shape, weight1.shape[0]
    norm, device = norm_weight is not None, x.device
    facts = {"dtype": dtype_name(weight1.dtype), "rows": M, "D": D, "E": E}
    operand = weight1.dtype
    scaled = weight2 if gamma is None else (weight2 * gamma[:, None]).to(operand)
    block_d = next_power_of_2(D)

    options = configuration("mlp", "grad_stream", device, **facts)
    programs = cdiv(M, options["BLOCK_M"])
    grad_x = torch.empty_like(x)
    normed = torch.empty(M, D, dtype=operand, device=device) if norm else x
    upstream = grad_out if grad_out.dtype == operand else torch.empty(M, D, dtype=operand, device=device)
    partial = torch.empty(programs, 3, D, dtype=torch.float32, device=device)
    launch(
        _grad_stream_kernel,
        (programs,),
        grad_out,
        x,
        mean,
        rstd,
        norm_weight,
        norm_bias,
        weight1,
        bias1,
        scaled,
        grad_x,
        normed if norm else None,
        None if upstream is grad_out else upstream,
        partial,
        M,
        D=D,
        E=E,
        NORM=norm,
        BLOCK_D=block_d,
        **options,
    )

    options = configuration("mlp", "grad_weight", device, **facts)
    splits = min(options.pop("SPLITS"), max(cdiv(M, options["BLOCK_M"]), 1))
    rows = cdiv(cdiv(M, splits), options["BLOCK_M"]) * options["BLOCK_M"]
    partial_bias = torch.empty(splits, E, dtype=torch.float32, device=device)
    by_weights = []
    for first in (True, False):
        shares = torch.empty(splits, E, D, dtype=torch.float32, device=device)
        launch(
            _grad_weight_kernel,
            (cdiv(E, options["BLOCK_E"]), splits),
            upstream,
            normed,
            weight1,
            bias1,
            scaled,
            shares,
            partial_bias,
            M,
            rows,
            D=D,
            E=E,
            FIRST=first,
            BLOCK_D=block_d,
            **options,
        )
        by_weights.append(shares.sum(0))  # [E, D]
    total = partial[:, 0].sum(0)  # [D], of grad_out over all rows
    by_weight2 = by_weights[1].t()  # [D, E], without LayerScale
    by_bias2 = total
    by_gamma = None
    if gamma is not None:
        # Of gamma * (a @ weight2^T + bias2) by gamma, without a: grad_out^T @ a is there already.
        by_gamma = ((by_weight2 * weight2).sum(1) + bias2 * total).to(gamma.dtype)
        by_weight2 = by_weight2 * gamma[:, None]
        by_bias2 = by_bias2 * gamma
    return [
        grad_x,
        by_weights[0].to(weight1.dtype),
        partial_bias.sum(0).to(bias1.dtype),
        by_weight2.to(weight2.dtype).contiguous(),
        by_bias2.to(bias2.dtype),
        partial[:, 2].sum(0).to(norm_weight.dtype) if norm else None,
        partial[:, 1].sum(0).to(norm_bias.dtype) if norm else None,
        by_gamma,
    ]
