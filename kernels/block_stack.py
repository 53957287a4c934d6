"""All transformer blocks of a stack over short sequences, in one kernel: a program owns a track and walks through them.

Where sequences are short, separate operations are launches of a few microseconds of work each. A track of at most 64
tokens fits one tile, so that a program needs nothing of any other: it goes from norm to norm on its own, and threads
hand each other what they computed through global memory (in fact the second-level cache), between barriers. The stream
is read and written a few times a block; the weights, read once by every program, come from the second-level cache and
are what binds, together with the matrix products. Backward: _block_stack_backward.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._block_stack_backward import backward
from s2vfast.kernels._block_stack_rows import KINDS, by_kind, options_of, times_rows, within
from s2vfast.kernels._gelu import normal_distribution
from s2vfast.kernels._launch import launch

__all__ = ["backward", "forward"]

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def _norm(
    source,
    weight,
    bias,
    normed,
    mean,
    rstd,
    L,
    eps,
    zero,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """normed [L, D] = layer_norm(source), in the operands' dtype; mean and reciprocal deviation of every row."""
    d = tl.arange(0, BLOCK_D) + zero
    in_d = within(0, D, BLOCK_D)
    for start in range(0, L, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M) + zero
        in_m = m < L
        at, inside = m[:, None] * D + d[None, :], in_m[:, None] & in_d[None, :]
        tile = tl.load(source + at, mask=inside, other=0.0)
        mu = tl.sum(tile, axis=1) / D
        centred = tl.where(in_d[None, :], tile - mu[:, None], 0.0)
        factor = tl.rsqrt(tl.sum(centred * centred, axis=1) / D + eps)
        tl.store(mean + m, mu, mask=in_m)
        tl.store(rstd + m, factor, mask=in_m)
        scale = tl.load(weight + d, mask=in_d, other=0.0)
        shift = tl.load(bias + d, mask=in_d, other=0.0)
        tl.store(normed + at, centred * factor[:, None] * scale[None, :] + shift[None, :], mask=inside)


@triton.jit
def _linear(
    source, weight, bias, gamma, residual, target, L, zero, D: tl.constexpr, E: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """target [L, E] = source @ weight^T + bias, slice by slice; with gamma, residual + gamma times that."""
    d = tl.arange(0, BLOCK_D) + zero
    in_d = within(0, D, BLOCK_D)
    for start in range(0, L, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M) + zero
        in_m = m < L
        tile = tl.load(source + m[:, None] * D + d[None, :], mask=in_m[:, None] & in_d[None, :], other=0.0)
        rows = tl.trans(tile)  # [d, m]
        for e0 in range(0, E, BLOCK_E):
            e = e0 + tl.arange(0, BLOCK_E) + zero
            in_e = within(e0, E, BLOCK_E)
            result = times_rows(
                rows, source, weight, D, 1, m, in_m, e, in_e, d, in_d, D, BLOCK_M, BLOCK_D, BLOCK_E, BLOCK_K
            )
            result += tl.load(bias + e, mask=in_e, other=0.0)[:, None]  # [e, m]
            at, inside = m[:, None] * E + e[None, :], in_m[:, None] & in_e[None, :]
            if gamma is None:
                tl.store(target + at, tl.trans(result.to(target.dtype.element_ty)), mask=inside)
            else:
                result = tl.trans(result * tl.load(gamma + e, mask=in_e, other=0.0)[:, None])
                tl.store(target + at, result + tl.load(residual + at, mask=inside, other=0.0), mask=inside)


@triton.jit
def _attention(
    packed, mixed, lse, L, zero, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_L: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    """mixed [L, D] and lse [D / WIDTH, L], one head after the other; the keys of a head are one tile."""
    w = tl.arange(0, BLOCK_W) + zero
    in_w = within(0, WIDTH, BLOCK_W)
    row = tl.arange(0, BLOCK_L) + zero
    keep = (row < L)[:, None] & in_w[None, :]
    scale = _LOG2_E * (1.0 / tl.sqrt(WIDTH + 0.0))
    tiles = tl.cdiv(L, BLOCK_Q)
    for step in range(D // WIDTH * tiles):
        head = step // tiles
        m = step % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q) + zero
        inside = (m < L)[:, None] & in_w[None, :]
        queries = packed + head * WIDTH
        keys = queries + D + row[:, None] * (3 * D) + w[None, :]
        q = tl.load(queries + m[:, None] * (3 * D) + w[None, :], mask=inside, other=0.0)  # [m, w]
        k = tl.load(keys, mask=keep, other=0.0)  # [n, w]
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")  # [m, n]
        scores = tl.where((row < L)[None, :], scores, float("-inf"))
        top = tl.max(scores, axis=1) * scale
        p = tl.exp2(scores * scale - top[:, None])
        total = tl.sum(p, axis=1)
        v = tl.load(keys + D, mask=keep, other=0.0)  # [n, w]
        result = tl.dot(p.to(v.dtype), v, input_precision="ieee") / total[:, None]
        tl.store(mixed + m[:, None] * D + head * WIDTH + w[None, :], result, mask=inside)
        tl.store(lse + head * L + m, (top + tl.log2(total)) * _LN_2, mask=m < L)


@triton.jit
def _mlp(
    source, weight1, bias1, weight2, bias2, gamma, residual, target, L, zero, D: tl.constexpr, E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
    FAST_GELU: tl.constexpr,
):  # fmt: skip
    """target [L, D] = residual + gamma * (gelu(source @ weight1^T + bias1) @ weight2^T + bias2)."""
    d = tl.arange(0, BLOCK_D)
    in_d = within(0, D, BLOCK_D)
    for start in range(0, L, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M) + zero
        in_m = m < L
        at, inside = m[:, None] * D + d[None, :], in_m[:, None] & in_d[None, :]
        rows = tl.trans(tl.load(source + at, mask=inside, other=0.0))  # [d, m]
        # Transposed as in `mlp`: a left operand made here would be held in registers, all of it.
        acc = tl.zeros([BLOCK_D, BLOCK_M], dtype=tl.float32)
        for e0 in range(0, E, BLOCK_E):
            e = e0 + tl.arange(0, BLOCK_E) + zero
            in_e = within(e0, E, BLOCK_E)
            h = times_rows(
                rows, source, weight1, D, 1, m, in_m, e, in_e, d, in_d, D, BLOCK_M, BLOCK_D, BLOCK_E, BLOCK_K
            )
            h += tl.load(bias1 + e, mask=in_e, other=0.0)[:, None]
            share, _ = normal_distribution(h, FAST_GELU)
            w2 = tl.load(weight2 + d[:, None] * E + e[None, :], mask=in_e[None, :] & in_d[:, None], other=0.0)
            acc = tl.dot(w2, (h * share).to(w2.dtype), acc, input_precision="ieee")  # [d, m]
        acc += tl.load(bias2 + d, mask=in_d, other=0.0)[:, None]
        acc *= tl.load(gamma + d, mask=in_d, other=0.0)[:, None]
        tl.store(target + at, tl.trans(acc) + tl.load(residual + at, mask=inside, other=0.0), mask=inside)


@triton.jit
def _forward_kernel(
    x,
    weights,
    strides,
    out,
    streams,
    middles,
    normed1,
    normed2,
    packed,
    mixed,
    lse,
    statistics,
    tracks,
    rows,
    L,
    blocks,
    nothing,
    eps,
    D: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
    FAST_GELU: tl.constexpr,
):
    """All blocks of one track. ``tracks`` is how far apart blocks lie in what is kept: 0 where nothing is.

    ``nothing`` is 0, which the compiler does not know: addresses that it is part of are not computed once and held in
    registers throughout the kernel, all stages' at the same time.
    """
    n = tl.program_id(0).to(tl.int64)
    source = x + n * L * D
    for i in range(blocks):
        zero = i * nothing
        first = (n + i * tracks) * L
        # The statistics of both norms: mean and reciprocal deviation of the first, then of the second.
        stats = statistics + 4 * i * tracks * L + n * L
        _norm(
            source, weights[0] + i * strides[0], weights[1] + i * strides[1], normed1 + first * D, stats, stats + rows,
            L, eps, zero, D, BLOCK_M, BLOCK_D,
        )  # fmt: skip
        tl.debug_barrier()
        _linear(
            normed1 + first * D, weights[2] + i * strides[2], weights[3] + i * strides[3], None, None,
            packed + first * (3 * D), L, zero, D, 3 * D, BLOCK_M, BLOCK_D, BLOCK_E, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()
        _attention(
            packed + first * (3 * D), mixed + first * D, lse + first * (D // WIDTH), L, zero, D, WIDTH, BLOCK_Q,
            BLOCK_L, BLOCK_W,
        )  # fmt: skip
        tl.debug_barrier()
        middle = middles + first * D
        _linear(
            mixed + first * D, weights[4] + i * strides[4], weights[5] + i * strides[5], weights[6] + i * strides[6],
            source, middle, L, zero, D, D, BLOCK_M, BLOCK_D, BLOCK_E, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()
        _norm(
            middle, weights[7] + i * strides[7], weights[8] + i * strides[8], normed2 + first * D, stats + 2 * rows,
            stats + 3 * rows, L, eps, zero, D, BLOCK_M, BLOCK_D,
        )  # fmt: skip
        tl.debug_barrier()
        target = streams + first * D
        if i + 1 == blocks:
            target = out + n * L * D
        _mlp(
            normed2 + first * D, weights[9] + i * strides[9], weights[10] + i * strides[10],
            weights[11] + i * strides[11], weights[12] + i * strides[12], weights[13] + i * strides[13], middle, target,
            L, zero, D, E, BLOCK_M, BLOCK_D, BLOCK_E, BLOCK_K, FAST_GELU,
        )  # fmt: skip
        tl.debug_barrier()
        source = target


def forward(x: Tensor, parameters: list[Tensor], heads: int, eps: float, save: bool) -> tuple[Tensor, list[Tensor]]:
    """The stream after the last block, [N, L, D]; with ``save`` what the backward pass needs, else nothing.

    Args:
        x: float32 [N, L, D], contiguous, L at most 64.
        parameters: 14 a block, as of `s2vfast.ops.block_stack`.
        heads: of attention.
        eps: added to variances.
        save: whether there will be a backward pass.

    Returns:
        out, and of n blocks streams [n - 1, N, L, D] (between blocks), middles [n, N, L, D] (the stream within blocks),
        packed [n, N, L, 3 D] (queries, keys, values) and mixed [n, N, L, D] in the operands' dtype, lse [n, N, H, L],
        statistics [n, 4, N, L] (mean and reciprocal deviation of the first norm, then of the second).
    """
    N, L, D = x.shape
    blocks, operand, device = len(parameters) // KINDS, parameters[2].dtype, x.device
    kept = blocks if save else 1
    out = torch.empty_like(x)
    streams = torch.empty(blocks - 1, N, L, D, dtype=torch.float32, device=device) if save else out
    middles = torch.empty(kept, N, L, D, dtype=torch.float32, device=device)
    normed1, normed2 = (torch.empty(kept, N, L, D, dtype=operand, device=device) for _ in range(2))
    packed = torch.empty(kept, N, L, 3 * D, dtype=operand, device=device)
    mixed = torch.empty(kept, N, L, D, dtype=operand, device=device)
    lse = torch.empty(kept, N, heads, L, dtype=torch.float32, device=device)
    statistics = torch.empty(kept, 4, N, L, dtype=torch.float32, device=device)
    launch(
        _forward_kernel,
        (N,),
        x,
        *by_kind(parameters),
        out,
        streams,
        middles,
        normed1,
        normed2,
        packed,
        mixed,
        lse,
        statistics,
        N if save else 0,
        N * L,
        L,
        blocks,
        0,
        eps,
        **options_of("forward", x, parameters, heads),
    )
    return out, [streams, middles, normed1, normed2, packed, mixed, lse, statistics] if save else []
