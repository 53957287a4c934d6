"""Token embedding of the visible tokens alone: gather, projection, bias and position in one kernel.

Forward: a program reads the s * C numbers of each of its tokens straight from the clips, multiplies them with the
weight and adds bias and positions; bound by the bandwidth of the result. Backward: a kernel for weight and bias, one
for the positions, which looks up every token in every track's list, and one for the clips where somebody wants that.
All sums go through partial sums, which `_finish` adds up in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._finish import Sum, finish
from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch, next_power_of_2
from s2vfast.kernels._visible_index import visible_index


@triton.jit
def _pieces(clips_ptr, n, token, in_k, V, S: tl.constexpr, C: tl.constexpr, BLOCK_W: tl.constexpr):
    """Numbers of tokens [k] of tracks n [k] in (frame, channel) order: [k, w], 0 beyond S * C."""
    w = tl.arange(0, BLOCK_W)
    frame = (token // V)[:, None] * S + (w // C)[None, :]
    segments_frames = frame * V * C + (token % V)[:, None] * C + (w % C)[None, :]
    return tl.load(clips_ptr + n[:, None] + segments_frames, mask=in_k[:, None] & (w < S * C)[None, :], other=0.0)


@triton.jit
def _forward_kernel(
    clips_ptr,
    weight_ptr,
    bias_ptr,
    positions_ptr,
    visible_ptr,
    out_ptr,
    rows,
    K,
    L,
    V,
    D: tl.constexpr,
    S: tl.constexpr,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """out[m] for a tile of rows m = n * K + k and of channels; S is the frames of a segment."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d, w = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_W)
    in_m, in_d = m < rows, d < D
    n, token = m // K, (m % K).to(tl.int32)
    if visible_ptr is not None:
        token = tl.load(visible_ptr + m, mask=in_m, other=0)
    piece = _pieces(clips_ptr, n * L * (S * C), token, in_m, V, S, C, BLOCK_W)
    matrix = tl.load(
        weight_ptr + d[None, :] * (S * C) + w[:, None], mask=in_d[None, :] & (w < S * C)[:, None], other=0.0
    )  # [w, d]
    acc = tl.dot(piece.to(matrix.dtype), matrix, input_precision="ieee")
    inside = in_m[:, None] & in_d[None, :]
    acc += tl.load(bias_ptr + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
    acc += tl.load(positions_ptr + token[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + m[:, None] * D + d[None, :], acc, mask=inside)


@triton.jit
def _grad_weight_kernel(
    grad_out_ptr,
    clips_ptr,
    visible_ptr,
    partial_ptr,
    partial_bias_ptr,
    rows,
    rows_a_split,
    K,
    L,
    V,
    OPERAND: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """partial [split, d, w] = grad_out[rows]^T @ pieces[rows]; partial_bias [split, d] = the sum of grad_out[rows]."""
    d, w = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_W)
    split = tl.program_id(1)
    in_d = d < D
    acc = tl.zeros([BLOCK_D, BLOCK_W], dtype=tl.float32)
    total = tl.zeros([BLOCK_D], dtype=tl.float32)
    begin = tl.cast(split, tl.int64) * rows_a_split
    end = tl.minimum(begin + rows_a_split, rows)
    for start in range(begin, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        in_m = m < end
        token = (m % K).to(tl.int32)
        if visible_ptr is not None:
            token = tl.load(visible_ptr + m, mask=in_m, other=0)
        piece = _pieces(clips_ptr, m // K * L * (S * C), token, in_m, V, S, C, BLOCK_W)
        grad = tl.load(grad_out_ptr + m[:, None] * D + d[None, :], mask=in_m[:, None] & in_d[None, :], other=0.0)
        total += tl.sum(grad.to(tl.float32), axis=0)
        acc = tl.dot(tl.trans(grad.to(OPERAND)), piece.to(OPERAND), acc, input_precision="ieee")
    to = (split * D + d[:, None]) * (S * C) + w[None, :]
    tl.store(partial_ptr + to, acc, mask=in_d[:, None] & (w < S * C)[None, :])
    tl.store(partial_bias_ptr + split * D + d, total, mask=in_d)


@triton.jit
def _grad_positions_kernel(
    grad_out_ptr,
    visible_ptr,
    partial_ptr,
    N,
    L,
    K,
    tracks_a_split,
    D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """partial [split, l, d]: the sum of grad_out at token l over a split of the tracks."""
    split = tl.program_id(1)
    token, d = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_D)
    in_l, in_d = token < L, d < D
    total = tl.zeros([BLOCK_L, BLOCK_D], dtype=tl.float32)
    for track in range(split * tracks_a_split, tl.minimum((split + 1) * tracks_a_split, N)):
        n = tl.cast(track, tl.int64)
        index = token
        if visible_ptr is not None:
            index = visible_index(visible_ptr + n * K, K, token, BLOCK_K)
        is_visible = (index >= 0) & in_l
        at = grad_out_ptr + (n * K + index[:, None]) * D + d[None, :]
        total += tl.load(at, mask=is_visible[:, None] & in_d[None, :], other=0.0).to(tl.float32)
    to = partial_ptr + (split * L + token[:, None]) * D + d[None, :]
    tl.store(to, total, mask=in_l[:, None] & in_d[None, :])


@triton.jit
def _grad_clips_kernel(
    grad_out_ptr,
    weight_ptr,
    visible_ptr,
    grad_clips_ptr,
    L,
    K,
    V,
    D: tl.constexpr,
    S: tl.constexpr,
    C: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """grad_clips of a tile of tokens of one track; zeros for those that are not visible."""
    tiles = tl.cdiv(L, BLOCK_L)
    n, first = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * BLOCK_L
    token, w = first + tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_W)
    in_l, in_w = token < L, w < S * C
    index = token
    if visible_ptr is not None:
        index = visible_index(visible_ptr + n * K, K, token, BLOCK_K)
    is_visible = (index >= 0) & in_l
    acc = tl.zeros([BLOCK_L, BLOCK_W], dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        in_d = d < D
        at = grad_out_ptr + (n * K + index[:, None]) * D + d[None, :]
        grad = tl.load(at, mask=is_visible[:, None] & in_d[None, :], other=0.0)
        matrix = tl.load(weight_ptr + d[:, None] * (S * C) + w[None, :], mask=in_d[:, None] & in_w[None, :], other=0.0)
        acc = tl.dot(grad.to(matrix.dtype), matrix, acc, input_precision="ieee")
    frame = (token // V)[:, None] * S + (w // C)[None, :]
    to = n * L * (S * C) + frame * V * C + (token % V)[:, None] * C + (w % C)[None, :]
    tl.store(grad_clips_ptr + to, acc, mask=in_l[:, None] & in_w[None, :])


def forward(clips: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, visible: Tensor | None) -> Tensor:
    """[N, K, D] in the weight's dtype, or [N, L, D].

    Args:
        clips: [N, T, V, C].
        weight: [D, s * C].
        bias: [D].
        positions: [L, D].
        visible: int32 [N, K], each token at most once; None for all.
    """
    (N, _, V, C), (D, width), L = clips.shape, weight.shape, positions.shape[0]
    K = L if visible is None else visible.shape[1]
    options = configuration("embed_gather", "forward", clips.device, dtype=dtype_name(weight.dtype), D=D)
    out = torch.empty(N, K, D, dtype=weight.dtype, device=clips.device)
    grid = (cdiv(N * K, options["BLOCK_M"]), cdiv(D, options["BLOCK_D"]))
    sizes = {"D": D, "S": width // C, "C": C, "BLOCK_W": next_power_of_2(width)}
    launch(_forward_kernel, grid, clips, weight, bias, positions, visible, out, N * K, K, L, V, **sizes, **options)
    return out


def backward(
    grad_out: Tensor,
    clips: Tensor,
    weight: Tensor,
    visible: Tensor | None,
    tokens: int,
    bias: torch.dtype,
    positions: torch.dtype,
    need_clips: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Gradients of clips (None if not needed), weight, bias and positions, each in its tensor's dtype.

    Args:
        grad_out: [N, K, D].
        clips: [N, T, V, C].
        weight: [D, s * C].
        visible: int32 [N, K], or None.
        tokens: L.
        bias: dtype of the bias.
        positions: dtype of the positions.
        need_clips: whether the first is wanted.
    """
    (N, K, D), (_, _, V, C), width, L = grad_out.shape, clips.shape, weight.shape[1], tokens
    device, facts = clips.device, {"dtype": dtype_name(weight.dtype), "D": D}
    sizes = {"D": D, "S": width // C, "C": C, "BLOCK_W": next_power_of_2(width)}

    options = configuration("embed_gather", "grad_weight", device, **facts)
    splits = max(min(options.pop("SPLITS"), cdiv(N * K, options["BLOCK_M"])), 1)
    rows = cdiv(cdiv(N * K, splits), options["BLOCK_M"]) * options["BLOCK_M"]
    partial = torch.empty(splits, D, width, dtype=torch.float32, device=device)
    partial_bias = torch.empty(splits, D, dtype=torch.float32, device=device)
    operand = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}[weight.dtype]
    grid = (cdiv(D, options["BLOCK_D"]), splits)
    arguments = (grad_out, clips, visible, partial, partial_bias, N * K, rows, K, L, V)
    launch(_grad_weight_kernel, grid, *arguments, OPERAND=operand, **sizes, **options)

    options = configuration("embed_gather", "grad_positions", device, **facts)
    splits = max(min(options.pop("SPLITS"), N), 1)
    by_positions = torch.empty(splits, L, D, dtype=torch.float32, device=device)
    arguments = (grad_out, visible, by_positions, N, L, K, cdiv(N, splits))
    grid = (cdiv(L, options["BLOCK_L"]), splits)
    launch(_grad_positions_kernel, grid, *arguments, D=D, BLOCK_D=next_power_of_2(D), **options)

    by_clips = None
    if need_clips:
        options = configuration("embed_gather", "grad_clips", device, **facts)
        by_clips = torch.empty_like(clips)
        grid = (cdiv(L, options["BLOCK_L"]) * N,)
        launch(_grad_clips_kernel, grid, grad_out, weight, visible, by_clips, L, K, V, **sizes, **options)
    sums = [Sum(partial, weight.dtype), Sum(partial_bias, bias), Sum(by_positions, positions)]
    return (by_clips, *finish("embed_gather", sums))
