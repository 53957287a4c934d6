"""The backward pass of a stack of blocks: three launches, whatever the number of blocks.

One walks back through the blocks, a program a track as forward, makes the stream's gradient, and leaves what the
others need; one makes the gradients of all matrices of all blocks, each as one matrix product over the rows of all
tracks; one adds up over the tracks what biases, norms and LayerScale get. Nothing is added atomically.
LayerScale's gradient needs no branch: what comes from above is multiplied by s, which is gamma kept away from zero; of
gamma * (a @ W^T + b) by gamma, sum over rows of g * (a @ W^T + b), the first part is then the sum over columns of
(s g)^T @ a, the gradient of W, times W, over s.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._block_stack_rows import KINDS, by_kind, options_of, times_rows, within
from s2vfast.kernels._block_stack_weights import finish, weight_grads
from s2vfast.kernels._finish import away_from_zero
from s2vfast.kernels._gelu import normal_distribution
from s2vfast.kernels._launch import launch

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _scale(grad, gamma, upstream, summed, L, zero, D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """upstream [L, D] = s * grad in the operands' dtype; summed [D], the sum of grad over the rows."""
    d = tl.arange(0, BLOCK_D) + zero
    in_d = within(0, D, BLOCK_D)
    factor = away_from_zero(tl.load(gamma + d, mask=in_d, other=0.0))
    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    for start in range(0, L, BLOCK_R):
        m = start + tl.arange(0, BLOCK_R) + zero
        at, inside = m[:, None] * D + d[None, :], (m < L)[:, None] & in_d[None, :]
        tile = tl.load(grad + at, mask=inside, other=0.0)
        total += tl.sum(tile, axis=0)
        tl.store(upstream + at, tile * factor[None, :], mask=inside)
    tl.store(summed + d, total, mask=in_d)


@triton.jit
def _hidden(
    normed, upstream, weight1, bias1, weight2, activations, grad_hidden, L, zero, D: tl.constexpr, E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
    FAST_GELU: tl.constexpr,
):  # fmt: skip
    """activations [L, E] = gelu(h), h = normed @ weight1^T + bias1; grad_hidden [L, E], the gradient of h."""
    operand = weight1.dtype.element_ty
    d = tl.arange(0, BLOCK_D) + zero
    in_d = within(0, D, BLOCK_D)
    for start in range(0, L, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M) + zero
        in_m = m < L
        at, inside = m[:, None] * D + d[None, :], in_m[:, None] & in_d[None, :]
        rows = tl.trans(tl.load(normed + at, mask=inside, other=0.0))  # [d, m]
        grads = tl.trans(tl.load(upstream + at, mask=inside, other=0.0))  # [d, m]
        for e0 in range(zero, E, BLOCK_E):
            e = e0 + tl.arange(0, BLOCK_E) + zero
            in_e = within(e0, E, BLOCK_E)
            h = times_rows(
                rows, normed, weight1, D, 1, m, in_m, e, in_e, d, in_d, D, BLOCK_M, BLOCK_D, BLOCK_E, BLOCK_K
            )
            h += tl.load(bias1 + e, mask=in_e, other=0.0)[:, None]  # [e, m]
            grad_a = times_rows(
                grads, upstream, weight2, 1, E, m, in_m, e, in_e, d, in_d, D, BLOCK_M, BLOCK_D, BLOCK_E, BLOCK_K
            )
            share, density = normal_distribution(h, FAST_GELU)
            to, keep = m[:, None] * E + e[None, :], in_m[:, None] & in_e[None, :]
            tl.store(activations + to, tl.trans((h * share).to(operand)), mask=keep)
            tl.store(grad_hidden + to, tl.trans((grad_a * (share + h * density)).to(operand)), mask=keep)


@triton.jit
def _product(
    source, weight, target, L, zero, K: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """target [L, D] = source [L, K] @ weight [K, D]."""
    d = tl.arange(0, BLOCK_D) + zero
    in_d = within(0, D, BLOCK_D)
    for start in range(0, L, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M) + zero
        in_m = m < L
        acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
        for k0 in range(zero, K, BLOCK_E):
            k = k0 + tl.arange(0, BLOCK_E) + zero
            in_k = within(k0, K, BLOCK_E)
            rows = tl.load(source + m[:, None] * K + k[None, :], mask=in_m[:, None] & in_k[None, :], other=0.0)
            w = tl.load(weight + k[:, None] * D + d[None, :], mask=in_k[:, None] & in_d[None, :], other=0.0)
            acc = tl.dot(rows, w, acc, input_precision="ieee")
        tl.store(target + m[:, None] * D + d[None, :], acc, mask=in_m[:, None] & in_d[None, :])


@triton.jit
def _column_sums(source, summed, L, zero, K: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_E: tl.constexpr):
    """summed [K], the sums of source [L, K] over the rows."""
    m = tl.arange(0, BLOCK_L) + zero
    for k0 in range(zero, K, BLOCK_E):
        k = k0 + tl.arange(0, BLOCK_E) + zero
        in_k = within(k0, K, BLOCK_E)
        tile = tl.load(source + m[:, None] * K + k[None, :], mask=(m < L)[:, None] & in_k[None, :], other=0.0)
        tl.store(summed + k, tl.sum(tile.to(tl.float32), axis=0), mask=in_k)


@triton.jit
def _norm_backward(
    grad_normed, source, mean, rstd, weight, grad, by_weight, by_bias, L, zero, D: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """grad [L, D] += what comes through the norm of source; by_weight and by_bias [D], the norm's own gradients."""
    d = tl.arange(0, BLOCK_D) + zero
    in_d = within(0, D, BLOCK_D)
    scale = tl.load(weight + d, mask=in_d, other=0.0)
    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    total_hat = tl.zeros([BLOCK_D], dtype=tl.float32)
    for start in range(0, L, BLOCK_R):
        m = start + tl.arange(0, BLOCK_R) + zero
        in_m = m < L
        at, inside = m[:, None] * D + d[None, :], in_m[:, None] & in_d[None, :]
        tile = tl.load(grad_normed + at, mask=inside, other=0.0)
        mu, factor = tl.load(mean + m, mask=in_m, other=0.0), tl.load(rstd + m, mask=in_m, other=0.0)
        hat = (tl.load(source + at, mask=inside, other=0.0) - mu[:, None]) * factor[:, None]
        hat = tl.where(inside, hat, 0.0)
        total += tl.sum(tile, axis=0)
        total_hat += tl.sum(tile * hat, axis=0)
        tile *= scale[None, :]
        along = tl.sum(tile * hat, axis=1) / D
        level = tl.sum(tile, axis=1) / D
        result = (tile - level[:, None] - hat * along[:, None]) * factor[:, None]
        tl.store(grad + at, result + tl.load(grad + at, mask=inside, other=0.0), mask=inside)
    tl.store(by_weight + d, total_hat, mask=in_d)
    tl.store(by_bias + d, total, mask=in_d)


@triton.jit
def _attention_backward(
    packed, mixed, grad_mixed, lse, grad_packed, L, zero, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """grad_packed [L, 3 D], one head after the other; the keys of a head are one tile."""
    w = tl.arange(0, BLOCK_W) + zero
    in_w = within(0, WIDTH, BLOCK_W)
    row = tl.arange(0, BLOCK_L) + zero
    in_row = row < L
    natural = 1.0 / tl.sqrt(WIDTH + 0.0)
    for head in range(D // WIDTH):
        keys = D + head * WIDTH + row[:, None] * (3 * D) + w[None, :]
        keep = in_row[:, None] & in_w[None, :]
        k = tl.load(packed + keys, mask=keep, other=0.0)  # [n, w]
        v = tl.load(packed + keys + D, mask=keep, other=0.0)  # [n, w]
        grad_k = tl.zeros([BLOCK_L, BLOCK_W], dtype=tl.float32)
        grad_v = tl.zeros([BLOCK_L, BLOCK_W], dtype=tl.float32)
        for start in tl.range(0, L, BLOCK_Q, num_stages=1):
            m = start + tl.arange(0, BLOCK_Q) + zero
            in_m = m < L
            inside = in_m[:, None] & in_w[None, :]
            queries = m[:, None] * (3 * D) + head * WIDTH + w[None, :]
            at = m[:, None] * D + head * WIDTH + w[None, :]
            q = tl.load(packed + queries, mask=inside, other=0.0)  # [m, w]
            g = tl.load(grad_mixed + at, mask=inside, other=0.0)  # [m, w]
            o = tl.load(mixed + at, mask=inside, other=0.0)
            delta = tl.sum(o.to(tl.float32) * g.to(tl.float32), axis=1)
            level = tl.load(lse + head * L + m, mask=in_m, other=float("inf")) * _LOG2_E
            p = tl.exp2(tl.dot(k, tl.trans(q), input_precision="ieee") * (natural * _LOG2_E) - level[None, :])
            # A key that is not there has score 0, which may be far above all that are: infinity, times a key of 0.
            p = tl.where(in_row[:, None], p, 0.0)  # [n, m]
            grad_v = tl.dot(p.to(g.dtype), g, grad_v, input_precision="ieee")
            grad_s = p * (tl.dot(v, tl.trans(g), input_precision="ieee") - delta[None, :])  # [n, m]
            grad_s = grad_s.to(q.dtype)
            grad_k = tl.dot(grad_s, q, grad_k, input_precision="ieee")
            grad_q = tl.dot(tl.trans(grad_s), k, input_precision="ieee") * natural
            tl.store(grad_packed + queries, grad_q, mask=inside)
        tl.store(grad_packed + keys, grad_k * natural, mask=keep)
        tl.store(grad_packed + keys + D, grad_v, mask=keep)


@triton.jit
def _grad_stream_kernel(
    grad_out,
    x,
    weights,
    strides,
    streams,
    middles,
    normed2,
    packed,
    mixed,
    lse,
    statistics,
    grad,
    upstream1,
    upstream2,
    activations,
    grad_hidden,
    grad_packed,
    grad_mixed,
    grad_normed,
    partial,
    tracks,
    rows,
    L,
    blocks,
    nothing,
    D: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
    FAST_GELU: tl.constexpr,
):
    """grad [N, L, D], the gradient of x, and what the other two launches need; ``nothing`` as in `forward`.

    partial [blocks, tracks, 9 D + E]: this track's share of what norm1's weight and bias, qkv's bias, proj's bias
    without LayerScale, norm2's weight and bias, fc1's bias, and fc2's bias without LayerScale get.
    """
    n = tl.program_id(0).to(tl.int64)
    own = n * L * D
    for start in range(0, L, BLOCK_R):
        m, d = start + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
        at, inside = own + m[:, None] * D + d[None, :], (m < L)[:, None] & within(0, D, BLOCK_D)[None, :]
        tl.store(grad + at, tl.load(grad_out + at, mask=inside, other=0.0), mask=inside)
    tl.debug_barrier()
    for step in range(blocks):
        i = blocks - 1 - step
        zero = i * nothing
        first = (n + i * tracks) * L
        stats = statistics + 4 * i * tracks * L + n * L
        share = partial + (n + i * tracks) * (9 * D + E)
        _scale(
            grad + own, weights[13] + i * strides[13], upstream2 + first * D, share + 8 * D + E, L, zero, D, BLOCK_R,
            BLOCK_D,
        )  # fmt: skip
        tl.debug_barrier()
        _hidden(
            normed2 + first * D, upstream2 + first * D, weights[9] + i * strides[9], weights[10] + i * strides[10],
            weights[11] + i * strides[11], activations + first * E, grad_hidden + first * E, L, zero, D, E, BLOCK_M,
            BLOCK_D, BLOCK_E, BLOCK_K, FAST_GELU,
        )  # fmt: skip
        tl.debug_barrier()
        _column_sums(grad_hidden + first * E, share + 8 * D, L, zero, E, BLOCK_L, BLOCK_E)
        _product(
            grad_hidden + first * E, weights[9] + i * strides[9], grad_normed + own, L, zero, E, D, BLOCK_M, BLOCK_D,
            BLOCK_E,
        )  # fmt: skip
        tl.debug_barrier()
        _norm_backward(
            grad_normed + own, middles + first * D, stats + 2 * rows, stats + 3 * rows, weights[7] + i * strides[7],
            grad + own, share + 6 * D, share + 7 * D, L, zero, D, BLOCK_R, BLOCK_D,
        )  # fmt: skip
        tl.debug_barrier()
        _scale(
            grad + own, weights[6] + i * strides[6], upstream1 + first * D, share + 5 * D, L, zero, D, BLOCK_R, BLOCK_D
        )
        tl.debug_barrier()
        _product(
            upstream1 + first * D, weights[4] + i * strides[4], grad_mixed + own, L, zero, D, D, BLOCK_M, BLOCK_D,
            BLOCK_E,
        )  # fmt: skip
        tl.debug_barrier()
        _attention_backward(
            packed + first * (3 * D), mixed + first * D, grad_mixed + own, lse + first * (D // WIDTH),
            grad_packed + first * (3 * D), L, zero, D, WIDTH, BLOCK_Q, BLOCK_L, BLOCK_W,
        )  # fmt: skip
        tl.debug_barrier()
        _column_sums(grad_packed + first * (3 * D), share + 2 * D, L, zero, 3 * D, BLOCK_L, BLOCK_E)
        _product(
            grad_packed + first * (3 * D), weights[2] + i * strides[2], grad_normed + own, L, zero, 3 * D, D, BLOCK_M,
            BLOCK_D, BLOCK_E,
        )  # fmt: skip
        tl.debug_barrier()
        source = x + own
        if i > 0:
            source = streams + (first - tracks * L) * D
        _norm_backward(
            grad_normed + own, source, stats, stats + rows, weights[0] + i * strides[0], grad + own, share, share + D,
            L, zero, D, BLOCK_R, BLOCK_D,
        )  # fmt: skip
        tl.debug_barrier()


def backward(
    grad_out: Tensor, x: Tensor, parameters: list[Tensor], saved: list[Tensor], heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of each kind of matrix of all n blocks, and of all other parameters.

    Args:
        grad_out: float32 [N, L, D], contiguous.
        x: as of `forward`, as are ``parameters`` and ``heads``.
        parameters: 14 a block.
        saved: from `forward`.
        heads: of attention.

    Returns:
        [N, L, D]; in the operands' dtype qkv [n, 3 D, D], proj [n, D, D], fc1 [n, E, D] and fc2 [n, D, E]; float32
        [n, 11 D + E], whose columns are those of norm1.weight, norm1.bias, qkv.bias, proj.bias, norm2.weight,
        norm2.bias, fc1.bias, fc2.bias, gamma1 and gamma2.
    """
    streams, middles, normed1, normed2, packed, mixed, lse, statistics = saved
    (N, L, D), E = x.shape, parameters[9].shape[0]
    blocks, operand, device = len(parameters) // KINDS, parameters[2].dtype, x.device
    bases, strides = by_kind(parameters)
    grad, grad_normed = (torch.empty(N, L, D, dtype=torch.float32, device=device) for _ in range(2))
    upstream1, upstream2 = (torch.empty(blocks, N, L, D, dtype=operand, device=device) for _ in range(2))
    activations, grad_hidden = (torch.empty(blocks, N, L, E, dtype=operand, device=device) for _ in range(2))
    grad_packed = torch.empty(blocks, N, L, 3 * D, dtype=operand, device=device)
    grad_mixed = torch.empty(N, L, D, dtype=operand, device=device)
    partial = torch.empty(blocks, N, 9 * D + E, dtype=torch.float32, device=device)
    launch(
        _grad_stream_kernel,
        (N,),
        grad_out,
        x,
        bases,
        strides,
        streams,
        middles,
        normed2,
        packed,
        mixed,
        lse,
        statistics,
        grad,
        upstream1,
        upstream2,
        activations,
        grad_hidden,
        grad_packed,
        grad_mixed,
        grad_normed,
        partial,
        N,
        N * L,
        L,
        blocks,
        0,
        **options_of("grad_stream", x, parameters, heads),
    )
    pairs = ((grad_packed, normed1), (upstream1, mixed), (grad_hidden, normed2), (upstream2, activations))
    matrices, dots = weight_grads(pairs, bases, strides)
    return grad, *matrices, finish(partial, dots, bases, strides)
