"""The feed-forward branch in one kernel: layer norm, fc1, GELU, fc2, LayerScale and the residual addition.

A program owns a tile of rows. It normalises them, then makes the hidden state one slice after the other, each of which
goes into the product with fc2 as soon as it is there, out of the registers that the first product left it in. Reads the
stream twice and writes it once; the weights come from the second-level cache, once a tile. Bound by that cache and by
matrix products, 4 · rows · D · E operations; GELU, exact to the last place of bfloat16, goes on beside them. For the
backward pass, in _mlp_backward.py, it leaves the normed rows and what GELU is of.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._gelu import normal_distribution
from s2vfast.kernels._launch import cdiv, launch, next_power_of_2
from s2vfast.kernels._mlp_backward import backward
from s2vfast.kernels._rows import left_operand, options_of, times_slice, write_sum

__all__ = ["backward", "forward"]


@triton.jit
def _forward_kernel(
    x_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    weight1_ptr,
    bias1_ptr,
    weight2_ptr,
    bias2_ptr,
    gamma_ptr,
    out_ptr,
    mean_ptr,
    rstd_ptr,
    rows_ptr,
    hidden_ptr,
    num_rows,
    eps,
    D: tl.constexpr,
    E: tl.constexpr,
    NORM: tl.constexpr,
    CONVERT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FAST_GELU: tl.constexpr,
):
    """out[rows] = x + gamma * (gelu(norm(x) @ weight1^T + bias1) @ weight2^T + bias2); the branch alone if not NORM.

    rows: norm(x), or x, in the operands' dtype, where wanted; made here if CONVERT. hidden: what GELU is of, where
    that is wanted.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_m, in_d = m < num_rows, d < D
    WIDE: tl.constexpr = BLOCK_K < BLOCK_D
    if CONVERT:
        rows = left_operand(
            x_ptr, norm_weight_ptr, norm_bias_ptr, mean_ptr, rstd_ptr, rows_ptr, m, in_m, eps,
            weight1_ptr.dtype.element_ty, D, BLOCK_D, WIDE,
        )  # fmt: skip
    elif WIDE:
        rows = x_ptr
    else:
        rows = tl.load(x_ptr + m.to(tl.int64)[:, None] * D + d[None, :], mask=in_m[:, None] & in_d[None, :], other=0.0)
    # Goes round once. The compiler keeps a left operand in shared memory if it was loaded or comes from a loop, else in
    # registers, all of it.
    for turn in range(0, num_rows, num_rows):  # noqa: B007
        acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
        first = tl.arange(0, BLOCK_E)
        bias1 = tl.load(bias1_ptr + first, mask=first < E, other=0.0)
        for start in range(0, E, BLOCK_E):
            e = start + tl.arange(0, BLOCK_E)
            in_e = e < E
            h = times_slice(rows, weight1_ptr, D, 1, e, in_e, m, in_m, D, BLOCK_M, BLOCK_D, BLOCK_E, BLOCK_K)  # [m, e]
            h += bias1.to(tl.float32)[None, :]
            bias1 = tl.load(bias1_ptr + e + BLOCK_E, mask=e + BLOCK_E < E, other=0.0)  # an iteration ahead
            if hidden_ptr is not None:
                tl.store(hidden_ptr + m.to(tl.int64)[:, None] * E + e[None, :], h, mask=in_m[:, None] & in_e[None, :])
            cdf, _ = normal_distribution(h, FAST_GELU)
            w2 = tl.load(
                weight2_ptr + d[None, :] * E + e[:, None], mask=in_e[:, None] & in_d[None, :], other=0.0
            )  # [e, d]
            # The hidden state stays in registers: what a product gives lies there as the next one's left operand must.
            acc = tl.dot((h * cdf).to(w2.dtype), w2, acc, input_precision="ieee")
        write_sum(acc, x_ptr, bias2_ptr, gamma_ptr, out_ptr, m, in_m, D, NORM, BLOCK_D)
        if not WIDE:
            rows += rows  # as if there were another round


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
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The result [rows, D] in the dtype of x, and what `backward` takes.

    That is mean and reciprocal deviation of rows, float32 [rows] ([0] without norm); the left operand of fc1, [rows, D]
    in the weights' dtype ([0, D] where it is x itself, and unless ``keep``); and what GELU is of, [rows, E] in that
    dtype ([0, E] unless ``keep``).

    Args:
        x: [rows, D].
        weight1: [E, D]; its dtype is that of the matrix operands.
        bias1: [E].
        weight2: [D, E].
        bias2: [D].
        norm_weight: [D]; None: the branch alone.
        norm_bias: [D].
        gamma: [D], or None.
        eps: added to the variance.
        keep: whether there will be a backward pass.
    """
    (num_rows, D), E = x.shape, weight1.shape[0]
    device, operand = x.device, weight1.dtype
    norm = norm_weight is not None
    convert = norm or x.dtype != operand
    options = options_of("mlp", "forward", x, weight1, keep=int(keep))
    out = torch.empty_like(x)
    mean, rstd = (torch.empty(num_rows if norm else 0, dtype=torch.float32, device=device) for _ in range(2))
    written = convert and (keep or options["BLOCK_K"] < next_power_of_2(D))
    rows = torch.empty(num_rows if written else 0, D, dtype=operand, device=device)
    hidden = torch.empty(num_rows if keep else 0, E, dtype=operand, device=device)
    launch(
        _forward_kernel,
        (cdiv(num_rows, options["BLOCK_M"]),),
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
        rows if written else None,
        hidden if keep else None,
        num_rows,
        eps,
        D=D,
        E=E,
        NORM=norm,
        CONVERT=convert,
        BLOCK_D=next_power_of_2(D),
        **options,
    )
    return out, mean, rstd, rows if keep else rows[:0], hidden
