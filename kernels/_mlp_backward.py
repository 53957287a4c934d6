"""The MLP branch's backward pass, from what the forward pass has left: four matrix products and their sums.

One launch takes the incoming gradient through fc2 and GELU and writes it; `_grad_stream` takes that through fc1 and the
norm in two; one makes both weights' gradients, where programs own a tile and go through a share of the rows; and
`_finish` adds up the shares in a fixed order. No product is made twice, GELU is. Bound by the second-level cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._finish import LayerScale, Sum, away_from_zero, finish
from s2vfast.kernels._gelu import normal_distribution
from s2vfast.kernels._grad_stream import grad_stream
from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch, next_power_of_2
from s2vfast.kernels._rows import options_of, times_slice
from s2vfast.kernels._weight_grad import rows_a_split, triton_dtype, weight_share


@triton.jit
def _grad_hidden_kernel(
    grad_out_ptr,
    gamma_ptr,
    weight2_ptr,
    hidden_ptr,
    upstream_ptr,
    grad_hidden_ptr,
    partial_ptr,
    sums_ptr,
    num_rows,
    D: tl.constexpr,
    E: tl.constexpr,
    CONVERT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FAST_GELU: tl.constexpr,
):
    """grad_hidden[rows]: the gradient of what GELU is of; sums [rows / 16, E]: of every 16 of its rows.

    upstream: s * grad_out in the operands' dtype, s gamma as `_finish.LayerScale` wants it; written here if CONVERT.
    partial [programs, D]: these rows' share of the sum of grad_out.
    """
    operand = weight2_ptr.dtype.element_ty
    program = tl.program_id(0)
    m = program * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_m, in_d = m < num_rows, d < D
    inside = in_m[:, None] & in_d[None, :]
    at = m.to(tl.int64)[:, None] * D + d[None, :]
    # In quarters, for the sake of registers.
    for i in tl.static_range(4):
        columns = i * (BLOCK_D // 4) + tl.arange(0, BLOCK_D // 4)
        in_columns = columns < D
        in_tile = in_m[:, None] & in_columns[None, :]
        grad_at = m.to(tl.int64)[:, None] * D + columns[None, :]
        grad = tl.load(grad_out_ptr + grad_at, mask=in_tile, other=0.0).to(tl.float32)
        tl.store(partial_ptr + program.to(tl.int64) * D + columns, tl.sum(grad, axis=0), mask=in_columns)
        if CONVERT:
            if gamma_ptr is not None:
                gamma = tl.load(gamma_ptr + columns, mask=in_columns, other=0.0).to(tl.float32)
                grad *= away_from_zero(gamma)[None, :]
            tl.store(upstream_ptr + grad_at, grad.to(operand), mask=in_tile)
    tl.debug_barrier()
    if BLOCK_K == BLOCK_D:
        rows = tl.load(upstream_ptr + at, mask=inside, other=0.0)  # again, as in `forward`
    else:
        rows = upstream_ptr
    group = program * (BLOCK_M // 16) + tl.arange(0, BLOCK_M // 16)
    first = tl.arange(0, BLOCK_E)
    h_at = m.to(tl.int64)[:, None] * E + first[None, :]
    h_next = tl.load(hidden_ptr + h_at, mask=in_m[:, None] & (first < E)[None, :], other=0.0)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        in_e = e < E
        to = m.to(tl.int64)[:, None] * E + e[None, :]
        h = h_next.to(tl.float32)
        h_next = tl.load(
            hidden_ptr + to + BLOCK_E, mask=in_m[:, None] & (e + BLOCK_E < E)[None, :], other=0.0
        )  # an iteration ahead
        grad_a = times_slice(rows, weight2_ptr, 1, E, e, in_e, m, in_m, D, BLOCK_M, BLOCK_D, BLOCK_E, BLOCK_K)  # [m, e]
        cdf, pdf = normal_distribution(h, FAST_GELU)
        grad_h = grad_a * (cdf + h * pdf)
        # 16 rows of a product are one warp's: their sums need no other, and no shared memory. Summed here, where the
        # gradient is in registers: behind it, as `_grad_stream` does, it would be a product more.
        sums = tl.sum(tl.reshape(grad_h, [BLOCK_M // 16, 16, BLOCK_E]), axis=1)
        tl.store(sums_ptr + group.to(tl.int64)[:, None] * E + e[None, :], sums, mask=in_e[None, :])
        tl.store(grad_hidden_ptr + to, grad_h, mask=in_m[:, None] & in_e[None, :])


@triton.jit
def _grad_weight_kernel(
    grad_hidden_ptr,
    rows_ptr,
    upstream_ptr,
    hidden_ptr,
    partial1_ptr,
    partial2_ptr,
    num_rows,
    D,
    E,
    rows_a_split,
    OPERAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    FAST_GELU: tl.constexpr,
):
    """A share of weight1's gradient [E, D], or of weight2's [D, E]."""
    tile, split = tl.program_id(0), tl.program_id(1)
    if tl.program_id(2) == 0:
        weight_share(
            grad_hidden_ptr, rows_ptr, partial1_ptr, tile, split, num_rows, E, D, rows_a_split,
            OPERAND, False, FAST_GELU, BLOCK_M, BLOCK_E, BLOCK_D,
        )  # fmt: skip
    else:
        weight_share(
            upstream_ptr, hidden_ptr, partial2_ptr, tile, split, num_rows, D, E, rows_a_split, OPERAND, True,
            FAST_GELU, BLOCK_M, BLOCK_D, BLOCK_E,
        )  # fmt: skip


def backward(
    grad_out: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    rows: Tensor,
    hidden: Tensor,
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
        rows: [rows, D], from `forward`, or [0, D].
        hidden: [rows, E], from `forward`.
        weight1: [E, D].
        bias1: [E].
        weight2: [D, E].
        bias2: [D].
        norm_weight: [D], or None.
        norm_bias: [D], or None.
        gamma: [D], or None.
    """
    (num_rows, D), E = x.shape, weight1.shape[0]
    device, operand = x.device, weight1.dtype
    rows = rows if rows.shape[0] else x

    options = options_of("mlp", "grad_hidden", x, weight1)
    programs = cdiv(num_rows, options["BLOCK_M"])
    convert = gamma is not None or grad_out.dtype != operand
    upstream = torch.empty(num_rows, D, dtype=operand, device=device) if convert else grad_out
    grad_hidden = torch.empty_like(hidden)
    grad_sums = torch.empty(programs, D, dtype=torch.float32, device=device)
    hidden_sums = torch.empty(programs * options["BLOCK_M"] // 16, E, dtype=torch.float32, device=device)
    arguments = (grad_out, gamma, weight2, hidden, upstream, grad_hidden, grad_sums, hidden_sums, num_rows)
    sizes = {"D": D, "E": E, "CONVERT": convert, "BLOCK_D": next_power_of_2(D)}
    launch(_grad_hidden_kernel, (programs,), *arguments, **sizes, **options)

    past = None if norm_weight is None else grad_out
    norm = (mean, rstd, norm_weight)
    grad_x, norm_sums, _ = grad_stream("mlp", grad_hidden, x, norm, weight1, past, sums=False)

    options = configuration("mlp", "grad_weight", device, dtype=dtype_name(operand), rows=num_rows, D=D, E=E)
    splits, split_rows = rows_a_split(num_rows, options.pop("SPLITS"), options["BLOCK_M"])
    partial1, partial2 = (torch.empty(splits, *shape, dtype=torch.float32, device=device) for shape in ((E, D), (D, E)))
    tiles = cdiv(E, options["BLOCK_E"]) * cdiv(D, options["BLOCK_D"])
    arguments = (grad_hidden, rows, upstream, hidden, partial1, partial2, num_rows, D, E, split_rows)
    launch(_grad_weight_kernel, (tiles, splits, 2), *arguments, OPERAND=triton_dtype(operand), **options)

    sums = [
        Sum(partial1, weight1.dtype),
        Sum(hidden_sums, bias1.dtype),
        None if norm_weight is None else Sum(norm_sums[:, 1], norm_weight.dtype),
        None if norm_bias is None else Sum(norm_sums[:, 0], norm_bias.dtype),
    ]
    scaled = None
    if gamma is None:
        sums += [Sum(partial2, weight2.dtype), Sum(grad_sums, bias2.dtype)]
    else:
        scaled = LayerScale(partial2, grad_sums, weight2, bias2, gamma)
    by_weight1, by_bias1, by_norm_weight, by_norm_bias, *linear2_grads = finish("mlp", sums, scaled)
    by_weight2, by_bias2, by_gamma = linear2_grads if scaled else (*linear2_grads, None)
    return [grad_x, by_weight1, by_bias1, by_weight2, by_bias2, by_norm_weight, by_norm_bias, by_gamma]
