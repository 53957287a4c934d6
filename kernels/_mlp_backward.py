"""The MLP branch's backward pass: the hidden state is recomputed, never read.

Three launches: one for the stream's gradient, where programs own rows; one for both weights', where programs own a
slice of the hidden state and go through a share of the rows; and `_finish`, which adds up the shares in a fixed order.
Bound by matrix products. The first leaves norm(x) and the incoming gradient, times LayerScale, in the operands' dtype
for the second.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._finish import LayerScale, Sum, away_from_zero, finish
from s2vfast.kernels._gelu import normal_distribution
from s2vfast.kernels._launch import cdiv, launch, next_power_of_2
from s2vfast.kernels._mlp_rows import hidden, normed_rows, options_of


@triton.jit
def _grad_stream_kernel(
    grad_out_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    weight1_ptr,
    bias1_ptr,
    weight2_ptr,
    gamma_ptr,
    grad_x_ptr,
    normed_ptr,
    upstream_ptr,
    partial_ptr,
    num_rows,
    D: tl.constexpr,
    E: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FAST_GELU: tl.constexpr,
):
    """grad_x[rows], and for `_grad_weight_kernel` norm(x) and s * grad_out in the operands' dtype.

    s is gamma as `_finish.LayerScale` wants it. partial [programs, 3, D]: these rows' share of the sum of grad_out, and
    of what the norm's bias and weight get.
    """
    operand = weight1_ptr.dtype.element_ty
    program = tl.program_id(0)
    m = program * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_m, in_d = m < num_rows, d < D
    inside = in_m[:, None] & in_d[None, :]
    at = m.to(tl.int64)[:, None] * D + d[None, :]
    tile = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        mean = tl.load(mean_ptr + m, mask=in_m, other=0.0)
        rstd = tl.load(rstd_ptr + m, mask=in_m, other=0.0)
        tile = normed_rows(tile, mean, rstd, norm_weight_ptr, norm_bias_ptr, d, in_d)
    else:
        mean = tl.zeros([BLOCK_M], dtype=tl.float32)
        rstd = mean
    rows = tl.trans(tile.to(operand))  # [d, m]
    if NORM:
        tl.store(normed_ptr + at, tile.to(operand), mask=inside)
    grad = tl.load(grad_out_ptr + at, mask=inside, other=0.0).to(tl.float32)
    sums_ptr = partial_ptr + program.to(tl.int64) * 3 * D + d
    tl.store(sums_ptr, tl.sum(grad, axis=0), mask=in_d)
    if gamma_ptr is not None:
        grad *= away_from_zero(tl.load(gamma_ptr + d, mask=in_d, other=0.0).to(tl.float32))[None, :]
    if upstream_ptr is not None:
        tl.store(upstream_ptr + at, grad.to(operand), mask=inside)
    branch = tl.trans(grad.to(operand))  # [d, m]
    acc = tl.zeros([BLOCK_D, BLOCK_M], dtype=tl.float32)  # gradient of the normed stream, transposed as in `forward`
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        in_e = e < E
        w1 = tl.load(weight1_ptr + e[:, None] * D + d[None, :], mask=in_e[:, None] & in_d[None, :], other=0.0)  # [e, d]
        if BLOCK_K == BLOCK_D:
            h = tl.dot(w1, rows, input_precision="ieee")
            w2 = tl.load(
                weight2_ptr + d[:, None] * E + e[None, :], mask=in_e[None, :] & in_d[:, None], other=0.0
            )  # [d, e]
            grad_a = tl.dot(tl.trans(w2), branch, input_precision="ieee")
        else:
            h = hidden(
                weight1_ptr, D, 1, e, in_e, x_ptr, mean, rstd, norm_weight_ptr, norm_bias_ptr, None, m, in_m, NORM, D,
                BLOCK_M, BLOCK_E, BLOCK_K,
            )  # fmt: skip
            grad_a = hidden(
                weight2_ptr, 1, E, e, in_e, grad_out_ptr, mean, rstd, norm_weight_ptr, norm_bias_ptr, gamma_ptr, m,
                in_m, False, D, BLOCK_M, BLOCK_E, BLOCK_K,
            )  # fmt: skip
        h += tl.load(bias1_ptr + e, mask=in_e, other=0.0).to(tl.float32)[:, None]
        cdf, pdf = normal_distribution(h, FAST_GELU)
        grad_h = grad_a * (cdf + h * pdf)
        acc = tl.dot(tl.trans(w1), grad_h.to(operand), acc, input_precision="ieee")
    acc = tl.trans(acc)  # [m, d]
    if NORM:
        tile = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        hat = tl.where(inside, (tile - mean[:, None]) * rstd[:, None], 0.0)
        tl.store(sums_ptr + D, tl.sum(acc, axis=0), mask=in_d)
        tl.store(sums_ptr + 2 * D, tl.sum(acc * hat, axis=0), mask=in_d)
        acc *= tl.load(norm_weight_ptr + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
        mean_grad_hat = tl.sum(acc * hat, axis=1) / D
        mean_grad = tl.sum(acc, axis=1) / D
        acc = (acc - mean_grad[:, None] - hat * mean_grad_hat[:, None]) * rstd[:, None]
        acc += tl.load(grad_out_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(grad_x_ptr + at, acc, mask=inside)


@triton.jit
def _grad_one_weight(
    upstream_ptr, normed_ptr, weight1_ptr, bias1_ptr, weight2_ptr, partial_ptr, partial_bias_ptr, num_rows,
    rows_a_split, D: tl.constexpr, E: tl.constexpr, FIRST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, FAST_GELU: tl.constexpr,
):  # fmt: skip
    """One slice of the hidden state, one share of the rows: this share's part of the gradient of a weight.

    FIRST: partial [e, d] is grad_h^T @ norm(x), and partial_bias [e] the sum of grad_h.
    Else: partial [d, e] is upstream^T @ gelu(h).
    """
    operand = weight1_ptr.dtype.element_ty
    split = tl.program_id(1)
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    d = tl.arange(0, BLOCK_D)
    in_e, in_d = e < E, d < D
    b1 = tl.load(bias1_ptr + e, mask=in_e, other=0.0).to(tl.float32)
    acc = tl.zeros([BLOCK_E, BLOCK_D], dtype=tl.float32)
    total = tl.zeros([BLOCK_E], dtype=tl.float32)
    begin = split * rows_a_split
    end = tl.minimum(begin + rows_a_split, num_rows)
    for start in range(begin, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        inside = (m < end)[:, None] & in_d[None, :]
        at = m.to(tl.int64)[:, None] * D + d[None, :]
        rows = tl.load(normed_ptr + at, mask=inside, other=0.0)  # [m, d]
        grad = tl.load(upstream_ptr + at, mask=inside, other=0.0)  # [m, d]
        if BLOCK_K == BLOCK_D:
            # The same weights every time, from cache: left operands stay in shared memory only if loaded here.
            w1 = tl.load(
                weight1_ptr + e[:, None] * D + d[None, :], mask=in_e[:, None] & in_d[None, :], other=0.0
            )  # [e, d]
            h = tl.dot(w1, tl.trans(rows), input_precision="ieee") + b1[:, None]  # [e, m]
        else:
            h = b1[:, None] + hidden(
                weight1_ptr, D, 1, e, in_e, normed_ptr, b1, b1, None, None, None, m, m < end, False, D, BLOCK_M,
                BLOCK_E, BLOCK_K,
            )  # fmt: skip
        cdf, pdf = normal_distribution(h, FAST_GELU)
        # Rows beyond the end have no gradient, so that what GELU makes of them does not matter.
        if FIRST:
            if BLOCK_K == BLOCK_D:
                w2 = tl.load(weight2_ptr + d[:, None] * E + e[None, :], mask=in_e[None, :] & in_d[:, None], other=0.0)
                grad_a = tl.dot(tl.trans(w2), tl.trans(grad), input_precision="ieee")
            else:
                grad_a = hidden(
                    weight2_ptr, 1, E, e, in_e, upstream_ptr, b1, b1, None, None, None, m, m < end, False, D, BLOCK_M,
                    BLOCK_E, BLOCK_K,
                )  # fmt: skip
            # One instruction, whose rounded result is summed: a multiplication that is fused with the first addition
            # across lanes would leave copies of a sum that differ in the last bit.
            grad_h = tl.fma(grad_a, cdf + h * pdf, 0.0)
            total += tl.sum(grad_h, axis=1)
            acc = tl.dot(grad_h.to(operand), rows, acc, input_precision="ieee")
        else:
            acc = tl.dot((h * cdf).to(operand), grad, acc, input_precision="ieee")
    partial_ptr += split.to(tl.int64) * E * D
    inside = in_e[:, None] & in_d[None, :]
    if FIRST:
        tl.store(partial_ptr + e[:, None] * D + d[None, :], acc, mask=inside)
        tl.store(partial_bias_ptr + split * E + e, total, mask=in_e)
    else:
        tl.store(partial_ptr + d[None, :] * E + e[:, None], acc, mask=inside)


@triton.jit
def _grad_weight_kernel(
    upstream_ptr,
    normed_ptr,
    weight1_ptr,
    bias1_ptr,
    weight2_ptr,
    partial1_ptr,
    partial2_ptr,
    partial_bias_ptr,
    num_rows,
    rows_a_split,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FAST_GELU: tl.constexpr,
):
    """`_grad_one_weight` of weight1 and bias1, or of weight2: both at once need more accumulators than registers."""
    if tl.program_id(2) == 0:
        _grad_one_weight(
            upstream_ptr, normed_ptr, weight1_ptr, bias1_ptr, weight2_ptr, partial1_ptr, partial_bias_ptr, num_rows,
            rows_a_split, D, E, True, BLOCK_M, BLOCK_D, BLOCK_E, BLOCK_K, FAST_GELU,
        )  # fmt: skip
    else:
        _grad_one_weight(
            upstream_ptr, normed_ptr, weight1_ptr, bias1_ptr, weight2_ptr, partial2_ptr, partial_bias_ptr, num_rows,
            rows_a_split, D, E, False, BLOCK_M, BLOCK_D, BLOCK_E, BLOCK_K, FAST_GELU,
        )  # fmt: skip


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
        grad_out: [rows, D].
        x: [rows, D], as of `forward`, as are the others.
        mean: [rows], from `forward`.
        rstd: [rows], from `forward`.
        weight1: [E, D].
        bias1: [E].
        weight2: [D, E].
        bias2: [D].
        norm_weight: [D], or None.
        norm_bias: [D], or None.
        gamma: [D], or None.
    """
    (num_rows, D), E = x.shape, weight1.shape[0]
    norm, device = norm_weight is not None, x.device
    operand = weight1.dtype
    block_d = next_power_of_2(D)

    options = options_of("grad_stream", x, weight1)
    programs = cdiv(num_rows, options["BLOCK_M"])
    grad_x = torch.empty_like(x)
    normed = torch.empty(num_rows, D, dtype=operand, device=device) if norm else x
    as_it_is = gamma is None and grad_out.dtype == operand
    upstream = grad_out if as_it_is else torch.empty(num_rows, D, dtype=operand, device=device)
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
        weight2,
        gamma,
        grad_x,
        normed if norm else None,
        None if as_it_is else upstream,
        partial,
        num_rows,
        D=D,
        E=E,
        NORM=norm,
        BLOCK_D=block_d,
        **options,
    )

    options = options_of("grad_weight", x, weight1)
    splits = min(options.pop("SPLITS"), max(cdiv(num_rows, options["BLOCK_M"]), 1))
    rows = cdiv(cdiv(num_rows, splits), options["BLOCK_M"]) * options["BLOCK_M"]
    partial1, partial2, partial_bias = (
        torch.empty(splits, *shape, dtype=torch.float32, device=device) for shape in ((E, D), (D, E), (E,))
    )
    launch(
        _grad_weight_kernel,
        (cdiv(E, options["BLOCK_E"]), splits, 2),
        upstream,
        normed,
        weight1,
        bias1,
        weight2,
        partial1,
        partial2,
        partial_bias,
        num_rows,
        rows,
        D=D,
        E=E,
        BLOCK_D=block_d,
        **options,
    )

    sums = [
        Sum(partial1, weight1.dtype),
        Sum(partial_bias, bias1.dtype),
        Sum(partial[:, 2], norm_weight.dtype) if norm else None,
        Sum(partial[:, 1], norm_bias.dtype) if norm else None,
    ]
    scaled = None
    if gamma is None:
        sums += [Sum(partial2, weight2.dtype), Sum(partial[:, 0], bias2.dtype)]
    else:
        scaled = LayerScale(partial2, partial[:, 0], weight2, bias2, gamma)
    by_weight1, by_bias1, by_norm_weight, by_norm_bias, *linear2_grads = finish("mlp", sums, scaled)
    by_weight2, by_bias2, by_gamma = linear2_grads if scaled else (*linear2_grads, None)
    return [grad_x, by_weight1, by_bias1, by_weight2, by_bias2, by_norm_weight, by_norm_bias, by_gamma]
