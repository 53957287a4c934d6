"""The feed-forward branch in one kernel: layer norm, fc1, GELU, fc2, LayerScale and the residual addition.

A program owns a tile of rows. It normalises them, then makes the hidden state one slice after the other, each of which
goes into the product with fc2 as soon as it is there: the hidden state, four times as wide as the stream, never leaves
the chip. Reads the stream once (again from cache at the end), writes it once; the weights come from the second-level
cache. Bound by matrix products, 4 · rows · D · E operations; GELU, exact to the last place of bfloat16, hides behind
them. Backward, in _mlp_backward.py, recomputes the hidden state.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._gelu import normal_distribution
from s2vfast.kernels._launch import cdiv, launch, next_power_of_2
from s2vfast.kernels._mlp_backward import backward
from s2vfast.kernels._mlp_rows import hidden, normed_rows, options_of

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
    num_rows,
    eps,
    D: tl.constexpr,
    E: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FAST_GELU: tl.constexpr,
):
    """out[rows] = x + gamma * (gelu(norm(x) @ weight1^T + bias1) @ weight2^T + bias2); the branch alone if not NORM."""
    operand = weight1_ptr.dtype.element_ty
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_m, in_d = m < num_rows, d < D
    inside = in_m[:, None] & in_d[None, :]
    at = m.to(tl.int64)[:, None] * D + d[None, :]
    tile = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        mean = tl.sum(tile, axis=1) / D
        centred = tl.where(in_d[None, :], tile - mean[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / D + eps)
        tl.store(mean_ptr + m, mean, mask=in_m)
        tl.store(rstd_ptr + m, rstd, mask=in_m)
        tile = normed_rows(tile, mean, rstd, norm_weight_ptr, norm_bias_ptr, d, in_d)
    else:
        mean = tl.zeros([BLOCK_M], dtype=tl.float32)
        rstd = mean
    rows = tl.trans(tile.to(operand))  # [d, m]
    # Transposed, so that what is made here is always the right operand, which has to lie in shared memory anyway, and
    # the left one is a weight as it is loaded: a left operand made here would be held in registers, all of it.
    acc = tl.zeros([BLOCK_D, BLOCK_M], dtype=tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        in_e = e < E
        if BLOCK_K == BLOCK_D:
            w1 = tl.load(
                weight1_ptr + e[:, None] * D + d[None, :], mask=in_e[:, None] & in_d[None, :], other=0.0
            )  # [e, d]
            h = tl.dot(w1, rows, input_precision="ieee")
        else:
            h = hidden(
                weight1_ptr, D, 1, e, in_e, x_ptr, mean, rstd, norm_weight_ptr, norm_bias_ptr, None, m, in_m, NORM, D,
                BLOCK_M, BLOCK_E, BLOCK_K,
            )  # fmt: skip
        h += tl.load(bias1_ptr + e, mask=in_e, other=0.0).to(tl.float32)[:, None]
        cdf, _ = normal_distribution(h, FAST_GELU)
        w2 = tl.load(weight2_ptr + d[:, None] * E + e[None, :], mask=in_e[None, :] & in_d[:, None], other=0.0)  # [d, e]
        acc = tl.dot(w2, (h * cdf).to(operand), acc, input_precision="ieee")
    acc = tl.trans(acc)  # [m, d]
    acc += tl.load(bias2_ptr + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
    if NORM:
        if gamma_ptr is not None:
            acc *= tl.load(gamma_ptr + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
        acc += tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, acc, mask=inside)


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
    """The result [rows, D] in the dtype of x; mean and reciprocal deviation of rows, float32 [rows] ([0] without norm).

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
    """
    (num_rows, D), E = x.shape, weight1.shape[0]
    norm = norm_weight is not None
    block_d = next_power_of_2(D)
    options = options_of("forward", x, weight1)
    out = torch.empty_like(x)
    mean, rstd = (torch.empty(num_rows if norm else 0, dtype=torch.float32, device=x.device) for _ in range(2))
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
        num_rows,
        eps,
        D=D,
        E=E,
        NORM=norm,
        BLOCK_D=block_d,
        **options,
    )
    return out, mean, rstd
