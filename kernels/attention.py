"""Flash attention, forward and backward, straight from the packed queries, keys and values (Dao et al., 2022 and 2023).

Forward: a program owns a tile of queries of one head and goes through all keys; scores never leave the chip. Reads the
keys and values once for each tile of queries (from the second-level cache but for the first), writes the output and the
log-sum-exp. Softmax runs in base 2, scale and log2(e) folded into one multiply-add. No largest score is looked for and
nothing is rescaled: a query's score with its own key stands in its place, and a tile with a row for which that will not
do is computed again. At head width 32 the exponentials bind, not the matrix products: POLYNOMIAL computes every fourth
on the multiply-add units. Only the tail is masked.
Backward: two kernels; one owns queries and goes through the keys, one owns keys and goes through the queries, with the
rows' log-sum-exps and sums that the first has left. Nothing is added atomically, so the bits are the same every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import INTERPRETED, cdiv, configuration, dtype_name, launch, next_power_of_2

_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)
_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
_LEAST_SUM: tl.constexpr = tl.constexpr(2.0**-64)
_MOST_SUM: tl.constexpr = tl.constexpr(2.0**64)


@triton.jit
def _load(
    base_ptr, start, stride, L, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_W: tl.constexpr, TAIL: tl.constexpr
):
    """Rows [start, start + BLOCK) of one head, [BLOCK, BLOCK_W]; 0 beyond WIDTH, and beyond L where TAIL."""
    rows, w = start + tl.arange(0, BLOCK), tl.arange(0, BLOCK_W)
    at = base_ptr + rows[:, None] * stride + w[None, :]
    if TAIL:
        return tl.load(at, mask=(rows < L)[:, None] & (w < WIDTH)[None, :], other=0.0)
    elif WIDTH == BLOCK_W:
        return tl.load(at)
    else:
        return tl.load(at, mask=(w < WIDTH)[None, :], other=0.0)


@triton.jit
def _exp2_polynomial(x):
    """2**x on the multiply-add units, relative error 1e-4: less than half a unit of bfloat16's last place.

    x is cut to [-126, 126]. Adding 1.5 * 2**23 rounds to an integer and leaves that in the low bits; the rest, in
    [-0.5, 0.5], goes into a polynomial of degree 3 (minimax), and the integer into the exponent.
    """
    x = tl.clamp(x, -126.0, 126.0, propagate_nan=tl.PropagateNan.ALL)
    shifted = x + 12582912.0
    fraction = x - (shifted - 12582912.0)
    value = 0.99992807 + fraction * (0.69326099 + fraction * (0.24261112 + fraction * 0.05517167))
    return (value.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)).to(tl.float32, bitcast=True)


# `_exp2_polynomial` of the last of four numbers, step by step, and three exponentials. No number leaves its thread.
_EXP2_OF_FOUR: tl.constexpr = tl.constexpr("""{
.reg .f32 x, shifted, fraction, value;
.reg .b32 exponent, bits;
ex2.approx.ftz.f32 $0, $4;
ex2.approx.ftz.f32 $1, $5;
ex2.approx.ftz.f32 $2, $6;
min.NaN.xorsign.abs.f32 x, $7, 0f42FC0000;
add.rn.f32 shifted, x, 0f4B400000;
sub.rn.f32 fraction, shifted, 0f4B400000;
sub.rn.f32 fraction, x, fraction;
fma.rn.f32 value, fraction, 0f3D61FBB0, 0f3E786F0D;
fma.rn.f32 value, fraction, value, 0f3F31798D;
fma.rn.f32 value, fraction, value, 0f3F7FFB49;
mov.b32 exponent, shifted;
mov.b32 bits, value;
shl.b32 exponent, exponent, 23;
add.s32 $3, exponent, bits;
}""")


@triton.jit
def _exp2(x, POLYNOMIAL: tl.constexpr):
    """2**x; with POLYNOMIAL the last of every four that a thread holds by `_exp2_polynomial`."""
    if not POLYNOMIAL:
        return tl.exp2(x)
    elif _INTERPRETED:
        return tl.where((tl.arange(0, x.shape[1]) % 4 == 3)[None, :], _exp2_polynomial(x), tl.exp2(x))
    else:
        return tl.inline_asm_elementwise(_EXP2_OF_FOUR, "=r,=r,=r,=r,r,r,r,r", [x], tl.float32, True, 4)


@triton.jit
def _scores(
    q, keys_ptr, start, stride, L, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
    TAIL: tl.constexpr,
):  # fmt: skip
    """Scores [m, n] of a tile of keys, -infinity for those that are not there."""
    k = _load(keys_ptr, start, stride, L, WIDTH, BLOCK_N, BLOCK_W, TAIL)  # [n, w]
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if TAIL:
        scores = tl.where((start + tl.arange(0, BLOCK_N) < L)[None, :], scores, float("-inf"))
    return scores


@triton.jit
def _attend(
    q, keys_ptr, values_ptr, start, stride, L, acc, sums, shift, scale_log2, WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, TAIL: tl.constexpr, POLYNOMIAL: tl.constexpr,
):  # fmt: skip
    """One tile of keys and values: the new accumulator, and the new sums of exponentials, eight a row."""
    scores = _scores(q, keys_ptr, start, stride, L, WIDTH, BLOCK_N, BLOCK_W, TAIL)
    p = _exp2(scores * scale_log2 - shift[:, None], POLYNOMIAL and not TAIL)
    sums += tl.sum(tl.reshape(p, [p.shape[0], BLOCK_N // 8, 8]), axis=1)
    v = _load(values_ptr, start, stride, L, WIDTH, BLOCK_N, BLOCK_W, TAIL)  # [n, w]
    return tl.dot(p.to(v.dtype), v, acc, input_precision="ieee"), sums


@triton.jit
def _attend_rescaled(
    q, keys_ptr, values_ptr, start, stride, L, acc, m_i, l_i, scale_log2, WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One tile of keys and values: the new accumulator, largest score (times scale) and sum of exponentials."""
    scores = _scores(q, keys_ptr, start, stride, L, WIDTH, BLOCK_N, BLOCK_W, True)
    m_new = tl.maximum(m_i, tl.max(scores, axis=1) * scale_log2)
    p = tl.exp2(scores * scale_log2 - m_new[:, None])
    alpha = tl.exp2(m_i - m_new)
    v = _load(values_ptr, start, stride, L, WIDTH, BLOCK_N, BLOCK_W, True)  # [n, w]
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee")
    return acc, m_new, l_i * alpha + tl.sum(p, axis=1)


@triton.jit
def _forward_kernel(
    qkv_ptr,
    out_ptr,
    lse_ptr,
    L,
    H: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    POLYNOMIAL: tl.constexpr,
):
    """out [n, m, h] and lse [n, h, m] for a tile of queries m of one head.

    Exponentials are of scores less the query's own score with its own key: their sum is about 1 or more, but for the
    rounding of scores of 1e8. Where it is not between 2**-64 and 2**64 (a key 44 above the own one), or no number, the
    tile is computed again with the largest score in that place. Values of 2**64 and more may become infinite.
    """
    tiles = tl.cdiv(L, BLOCK_M)
    head, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    n, h = (head // H).to(tl.int64), head % H
    stride: tl.constexpr = 3 * H * WIDTH
    queries_ptr = qkv_ptr + n * L * stride + h * WIDTH
    keys_ptr, values_ptr = queries_ptr + H * WIDTH, queries_ptr + 2 * H * WIDTH
    scale_log2 = _LOG2_E * (1.0 / tl.sqrt(WIDTH + 0.0))
    q = _load(queries_ptr, tile * BLOCK_M, stride, L, WIDTH, BLOCK_M, BLOCK_W, True)  # [m, w]
    own = _load(keys_ptr, tile * BLOCK_M, stride, L, WIDTH, BLOCK_M, BLOCK_W, True)  # [m, w]
    m_i = tl.sum(q.to(tl.float32) * own.to(tl.float32), axis=1) * scale_log2
    acc = tl.zeros([BLOCK_M, BLOCK_W], dtype=tl.float32)
    sums = tl.zeros([BLOCK_M, 8], dtype=tl.float32)
    full_end = L // BLOCK_N * BLOCK_N
    for start in range(0, full_end, BLOCK_N):
        acc, sums = _attend(
            q, keys_ptr, values_ptr, start, stride, L, acc, sums, m_i, scale_log2, WIDTH, BLOCK_N, BLOCK_W, False,
            POLYNOMIAL,
        )  # fmt: skip
    if full_end < L:
        acc, sums = _attend(
            q, keys_ptr, values_ptr, full_end, stride, L, acc, sums, m_i, scale_log2, WIDTH, BLOCK_N, BLOCK_W, True,
            POLYNOMIAL,
        )  # fmt: skip
    l_i = tl.sum(sums, axis=1)
    if tl.min(((l_i > _LEAST_SUM) & (l_i < _MOST_SUM)).to(tl.int32), axis=0) == 0:
        acc = tl.zeros([BLOCK_M, BLOCK_W], dtype=tl.float32)
        m_i = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
        l_i = tl.zeros([BLOCK_M], dtype=tl.float32)
        for start in tl.range(0, L, BLOCK_N, num_stages=1):
            acc, m_i, l_i = _attend_rescaled(
                q, keys_ptr, values_ptr, start, stride, L, acc, m_i, l_i, scale_log2, WIDTH, BLOCK_N, BLOCK_W
            )
    m, w = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_W)
    at = (n * L + m[:, None]) * (H * WIDTH) + h * WIDTH + w[None, :]
    tl.store(out_ptr + at, acc / l_i[:, None], mask=(m < L)[:, None] & (w < WIDTH)[None, :])
    tl.store(lse_ptr + head.to(tl.int64) * L + m, (m_i + tl.log2(l_i)) * _LN_2, mask=m < L)


@triton.jit
def _from_keys(
    q, g, lse_log2, delta, keys_ptr, values_ptr, start, stride, L, acc, scale_log2, WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """What one tile of keys and values adds to the gradient of a tile of queries."""
    k = _load(keys_ptr, start, stride, L, WIDTH, BLOCK_N, BLOCK_W, TAIL)  # [n, w]
    v = _load(values_ptr, start, stride, L, WIDTH, BLOCK_N, BLOCK_W, TAIL)  # [n, w]
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    grad_p = tl.dot(g, tl.trans(v), input_precision="ieee")  # beside the scores, and not behind the exponentials
    p = tl.exp2(scores - lse_log2[:, None])  # [m, n]
    if TAIL:
        # A key that is not there has score 0, which may be far above all that are: infinity, times a key of 0.
        p = tl.where((start + tl.arange(0, BLOCK_N) < L)[None, :], p, 0.0)
    grad_s = p * (grad_p - delta[:, None])
    return tl.dot(grad_s.to(k.dtype), k, acc, input_precision="ieee")


@triton.jit
def _grad_queries_kernel(
    qkv_ptr,
    out_ptr,
    grad_out_ptr,
    lse_ptr,
    grad_lse_ptr,
    stats_ptr,
    grad_qkv_ptr,
    L,
    H: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Gradient of a tile of queries of one head, and stats [n, h, 2, m] for `_grad_keys_kernel`.

    stats: the log-sum-exp in base 2, and delta: the rows' sums of out * grad_out, less the gradient of the log-sum-exp.
    """
    tiles = tl.cdiv(L, BLOCK_M)
    head, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    n, h = (head // H).to(tl.int64), head % H
    stride: tl.constexpr = 3 * H * WIDTH
    first = n * L * stride + h * WIDTH
    queries_ptr = qkv_ptr + first
    keys_ptr, values_ptr = queries_ptr + H * WIDTH, queries_ptr + 2 * H * WIDTH
    m, w = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_W)
    q = _load(queries_ptr, tile * BLOCK_M, stride, L, WIDTH, BLOCK_M, BLOCK_W, True)  # [m, w]
    results = n * L * (H * WIDTH) + h * WIDTH
    g = _load(grad_out_ptr + results, tile * BLOCK_M, H * WIDTH, L, WIDTH, BLOCK_M, BLOCK_W, True)  # [m, w]
    o = _load(out_ptr + results, tile * BLOCK_M, H * WIDTH, L, WIDTH, BLOCK_M, BLOCK_W, True)  # [m, w]
    at = head.to(tl.int64) * L + m
    lse_log2 = tl.load(lse_ptr + at, mask=m < L, other=float("inf")) * _LOG2_E
    delta = tl.sum(o.to(tl.float32) * g.to(tl.float32), axis=1)
    if grad_lse_ptr is not None:
        delta -= tl.load(grad_lse_ptr + at, mask=m < L, other=0.0).to(tl.float32)
    stats_ptr += head.to(tl.int64) * 2 * L + m
    tl.store(stats_ptr, lse_log2, mask=m < L)
    tl.store(stats_ptr + L, delta, mask=m < L)
    scale = 1.0 / tl.sqrt(WIDTH + 0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_W], dtype=tl.float32)
    full_end = L // BLOCK_N * BLOCK_N
    scale_log2 = scale * _LOG2_E
    for start in range(0, full_end, BLOCK_N):
        acc = _from_keys(
            q, g, lse_log2, delta, keys_ptr, values_ptr, start, stride, L, acc, scale_log2, WIDTH, BLOCK_N, BLOCK_W,
            False,
        )  # fmt: skip
    if full_end < L:
        acc = _from_keys(
            q, g, lse_log2, delta, keys_ptr, values_ptr, full_end, stride, L, acc, scale_log2, WIDTH, BLOCK_N, BLOCK_W,
            True,
        )  # fmt: skip
    to_ptr = grad_qkv_ptr + first + m[:, None] * stride + w[None, :]
    tl.store(to_ptr, acc * scale, mask=(m < L)[:, None] & (w < WIDTH)[None, :])


@triton.jit
def _grad_keys_kernel(
    qkv_ptr,
    grad_out_ptr,
    stats_ptr,
    grad_qkv_ptr,
    L,
    H: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Gradients of a tile of keys and values of one head."""
    tiles = tl.cdiv(L, BLOCK_N)
    head, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    n, h = (head // H).to(tl.int64), head % H
    stride: tl.constexpr = 3 * H * WIDTH
    first = n * L * stride + h * WIDTH
    queries_ptr, grads_ptr = qkv_ptr + first, grad_out_ptr + n * L * (H * WIDTH) + h * WIDTH
    stats_ptr += head.to(tl.int64) * 2 * L
    k = _load(queries_ptr + H * WIDTH, tile * BLOCK_N, stride, L, WIDTH, BLOCK_N, BLOCK_W, True)  # [n, w]
    v = _load(queries_ptr + 2 * H * WIDTH, tile * BLOCK_N, stride, L, WIDTH, BLOCK_N, BLOCK_W, True)  # [n, w]
    scale = 1.0 / tl.sqrt(WIDTH + 0.0)
    grad_k = tl.zeros([BLOCK_N, BLOCK_W], dtype=tl.float32)
    grad_v = tl.zeros([BLOCK_N, BLOCK_W], dtype=tl.float32)
    scale_log2 = scale * _LOG2_E
    for start in range(0, L, BLOCK_M):
        # Queries beyond the last are 0, as are their gradients: whatever their weights are, they add nothing.
        m = start + tl.arange(0, BLOCK_M)
        q = _load(queries_ptr, start, stride, L, WIDTH, BLOCK_M, BLOCK_W, True)  # [m, w]
        g = _load(grads_ptr, start, H * WIDTH, L, WIDTH, BLOCK_M, BLOCK_W, True)  # [m, w]
        lse_log2 = tl.load(stats_ptr + m, mask=m < L, other=0.0)
        delta = tl.load(stats_ptr + L + m, mask=m < L, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision="ieee") * scale_log2  # [n, m]
        # Before the exponentials, which need not be held in float32 while the product runs: 128 keys then do not spill.
        grad_p = tl.dot(v, tl.trans(g), input_precision="ieee")
        p = tl.exp2(scores - lse_log2[None, :])
        grad_s = p * (grad_p - delta[None, :])
        grad_v = tl.dot(p.to(g.dtype), g, grad_v, input_precision="ieee")
        grad_k = tl.dot(grad_s.to(q.dtype), q, grad_k, input_precision="ieee")
    rows, w = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_W)
    inside = (rows < L)[:, None] & (w < WIDTH)[None, :]
    to_ptr = grad_qkv_ptr + first + rows[:, None] * stride + w[None, :]
    tl.store(to_ptr + H * WIDTH, grad_k * scale, mask=inside)
    tl.store(to_ptr + 2 * H * WIDTH, grad_v, mask=inside)


def forward(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Output [N, L, H, d] in the dtype of qkv, and log-sum-exp of the scaled scores, float32 [N, H, L].

    Args:
        qkv: [N, L, 3, H, d], contiguous.
    """
    N, L, _, H, width = qkv.shape
    out = torch.empty(N, L, H, width, dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty(N, H, L, dtype=torch.float32, device=qkv.device)
    block_w = next_power_of_2(width)
    options = configuration("attention", "forward", qkv.device, dtype=dtype_name(qkv.dtype), width=block_w, L=L)
    grid = (cdiv(L, options["BLOCK_M"]) * N * H,)
    launch(_forward_kernel, grid, qkv, out, lse, L, H=H, WIDTH=width, BLOCK_W=block_w, **options)
    return out, lse


def backward(qkv: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None) -> Tensor:
    """Gradient of qkv, [N, L, 3, H, d].

    Args:
        qkv: [N, L, 3, H, d], contiguous, as are all others.
        out: [N, L, H, d], from `forward`.
        lse: float32 [N, H, L], from `forward`.
        grad_out: [N, L, H, d].
        grad_lse: [N, H, L], or None.
    """
    N, L, _, H, width = qkv.shape
    device, block_w = qkv.device, next_power_of_2(width)
    facts = {"dtype": dtype_name(qkv.dtype), "width": block_w, "L": L}
    sizes = {"H": H, "WIDTH": width, "BLOCK_W": block_w}
    stats = torch.empty(N, H, 2, L, dtype=torch.float32, device=device)
    grad_qkv = torch.empty_like(qkv)
    arguments = (qkv, out, grad_out, lse, grad_lse, stats, grad_qkv, L)
    options = configuration("attention", "grad_queries", device, **facts)
    launch(_grad_queries_kernel, (cdiv(L, options["BLOCK_M"]) * N * H,), *arguments, **sizes, **options)
    arguments = (qkv, grad_out, stats, grad_qkv, L)
    options = configuration("attention", "grad_keys", device, **facts)
    launch(_grad_keys_kernel, (cdiv(L, options["BLOCK_N"]) * N * H,), *arguments, **sizes, **options)
    return grad_qkv
