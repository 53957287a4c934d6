"""What parameters get in a stack of blocks: matrices in one launch, all others in another.

The gradient of a matrix is left^T @ right over the rows of all tracks. A program owns a tile of one matrix of one block
and goes through all rows; there are enough tiles for a GPU, so that no row is anybody else's, the result is final, and
nothing is read twice but from the second-level cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._block_stack_rows import within
from s2vfast.kernels._finish import away_from_zero
from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch


@triton.jit
def _tile(
    tile, left, right, target, weight, dots, M, R: tl.constexpr, C: tl.constexpr, DOTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of target [R, C] = left [M, R]^T @ right [M, C]; DOTS: its share of the rows' products with weight."""
    tiles: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    r0, c0 = tile // tiles * BLOCK_R, tile % tiles * BLOCK_C
    r, c = r0 + tl.arange(0, BLOCK_R), c0 + tl.arange(0, BLOCK_C)
    in_r, in_c = within(r0, R, BLOCK_R), within(c0, C, BLOCK_C)
    acc = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
    for start in range(0, M, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        row, in_m = m.to(tl.int64)[:, None], (m < M)[:, None]
        a = tl.load(left + row * R + r[None, :], mask=in_m & in_r[None, :], other=0.0)  # [m, r]
        b = tl.load(right + row * C + c[None, :], mask=in_m & in_c[None, :], other=0.0)  # [m, c]
        acc = tl.dot(tl.trans(a), b, acc, input_precision="ieee")
    at, inside = r[:, None] * C + c[None, :], in_r[:, None] & in_c[None, :]
    tl.store(target + at, acc, mask=inside)
    if DOTS:
        w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dots + tile % tiles * R + r, tl.sum(acc * w, axis=1), mask=in_r)


@triton.jit
def _grad_weight_kernel(
    grad_packed,
    normed1,
    upstream1,
    mixed,
    grad_hidden,
    normed2,
    upstream2,
    activations,
    by_qkv,
    by_proj,
    by_fc1,
    by_fc2,
    proj,
    proj_stride,
    fc2,
    fc2_stride,
    dots_proj,
    dots_fc2,
    M,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile of one of the four matrices of one block; dots_proj, dots_fc2 [blocks, tiles along a row, D]."""
    over_d: tl.constexpr = (D + BLOCK_C - 1) // BLOCK_C
    over_e: tl.constexpr = (E + BLOCK_C - 1) // BLOCK_C
    end_qkv: tl.constexpr = (3 * D + BLOCK_R - 1) // BLOCK_R * over_d
    end_proj: tl.constexpr = end_qkv + (D + BLOCK_R - 1) // BLOCK_R * over_d
    end_fc1: tl.constexpr = end_proj + (E + BLOCK_R - 1) // BLOCK_R * over_d
    tile, i = tl.program_id(0), tl.program_id(1)
    first = i.to(tl.int64) * M
    if tile < end_qkv:
        _tile(
            tile, grad_packed + first * (3 * D), normed1 + first * D, by_qkv + i * (3 * D * D), proj, dots_proj, M,
            3 * D, D, False, BLOCK_M, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    elif tile < end_proj:
        _tile(
            tile - end_qkv, upstream1 + first * D, mixed + first * D, by_proj + i * (D * D), proj + i * proj_stride,
            dots_proj + i * (over_d * D), M, D, D, True, BLOCK_M, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    elif tile < end_fc1:
        _tile(
            tile - end_proj, grad_hidden + first * E, normed2 + first * D, by_fc1 + i * (E * D), proj, dots_proj, M, E,
            D, False, BLOCK_M, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    else:
        _tile(
            tile - end_fc1, upstream2 + first * D, activations + first * E, by_fc2 + i * (D * E), fc2 + i * fc2_stride,
            dots_fc2 + i * (over_e * D), M, D, E, True, BLOCK_M, BLOCK_R, BLOCK_C,
        )  # fmt: skip


@triton.jit
def _scaled(
    c, total, first, bias, gamma, dots, out, out_gamma, TILES: tl.constexpr, D: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Where columns c are those of a bias under LayerScale: its gradient and LayerScale's."""
    d, inside = c - first, (c >= first) & (c < first + D)
    g = tl.load(gamma + d, mask=inside, other=1.0)
    along = tl.zeros([BLOCK_C], dtype=tl.float32)
    for tile in range(TILES):
        along += tl.load(dots + tile * D + d, mask=inside, other=0.0)
    b = tl.load(bias + d, mask=inside, other=0.0)
    tl.store(out + c, total * g, mask=inside)
    tl.store(out_gamma + d, along / away_from_zero(g) + b * total, mask=inside)


@triton.jit
def _finish_kernel(
    partial,
    dots_proj,
    dots_fc2,
    proj_bias,
    proj_bias_stride,
    gamma1,
    gamma1_stride,
    fc2_bias,
    fc2_bias_stride,
    gamma2,
    gamma2_stride,
    out,
    tracks,
    D: tl.constexpr,
    E: tl.constexpr,
    OVER_D: tl.constexpr,
    OVER_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out [blocks, 11 D + E] from partial [blocks, tracks, 9 D + E]: columns of one block."""
    i = tl.program_id(1)
    columns: tl.constexpr = 9 * D + E
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < columns
    partial += i.to(tl.int64) * tracks * columns
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    for start in range(0, tracks, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        at = n[:, None] * columns + c[None, :]
        total += tl.sum(tl.load(partial + at, mask=(n < tracks)[:, None] & in_c[None, :], other=0.0), axis=0)
    out += i * (11 * D + E)
    scaled = ((c >= 5 * D) & (c < 6 * D)) | (c >= 8 * D + E)
    tl.store(out + c, total, mask=in_c & (scaled == 0))
    _scaled(
        c, total, 5 * D, proj_bias + i * proj_bias_stride, gamma1 + i * gamma1_stride, dots_proj + i * (OVER_D * D),
        out, out + columns, OVER_D, D, BLOCK_C,
    )  # fmt: skip
    _scaled(
        c, total, 8 * D + E, fc2_bias + i * fc2_bias_stride, gamma2 + i * gamma2_stride,
        dots_fc2 + i * (OVER_E * D), out, out + columns + D, OVER_E, D, BLOCK_C,
    )  # fmt: skip


def weight_grads(
    pairs: tuple[tuple[Tensor, Tensor], ...], bases: tuple[Tensor, ...], strides: tuple[int, ...]
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """left^T @ right for qkv, proj, fc1 and fc2 of all n blocks, and the rows' products with proj and fc2.

    Args:
        pairs: left [n, N, L, R] and right [n, N, L, C] of each of the four.
        bases: of all kinds, from `by_kind`.
        strides: of all kinds, from `by_kind`.

    Returns:
        [n, R, C] for each in its dtype; for proj and fc2 float32 [n, tiles, D], sums over tiles of their columns.
    """
    left, right = pairs[2]
    (blocks, N, L, E), D = left.shape, right.shape[-1]
    options = configuration("block_stack", "grad_weight", left.device, dtype=dtype_name(left.dtype), rows=N * L, D=D)
    block_r, block_c = options["BLOCK_R"], options["BLOCK_C"]
    over_d, over_e = cdiv(D, block_c), cdiv(E, block_c)
    tiles = (cdiv(3 * D, block_r) + cdiv(D, block_r) + cdiv(E, block_r)) * over_d + cdiv(D, block_r) * over_e
    outs = [torch.empty(blocks, a.shape[-1], b.shape[-1], dtype=a.dtype, device=a.device) for a, b in pairs]
    dots = [torch.empty(blocks, over, D, dtype=torch.float32, device=left.device) for over in (over_d, over_e)]
    launch(
        _grad_weight_kernel,
        (tiles, blocks),
        *(tensor for pair in pairs for tensor in pair),
        *outs,
        bases[4],
        strides[4],
        bases[11],
        strides[11],
        *dots,
        N * L,
        D=D,
        E=E,
        **options,
    )
    return outs, tuple(dots)


def finish(partial: Tensor, dots: tuple[Tensor, Tensor], bases: tuple[Tensor, ...], strides: tuple[int, ...]) -> Tensor:
    """Gradients of all parameters that are no matrices, float32 [n, 11 D + E]; see `_block_stack_backward.backward`.

    Args:
        partial: [n, N, 9 D + E], each track's share.
        dots: from `weight_grads`.
        bases: of all kinds, from `by_kind`.
        strides: of all kinds, from `by_kind`.
    """
    (blocks, N, columns), D = partial.shape, dots[0].shape[-1]
    E = columns - 9 * D
    options = configuration("block_stack", "finish", partial.device, tracks=N, columns=columns)
    out = torch.empty(blocks, 11 * D + E, dtype=torch.float32, device=partial.device)
    given = (x for kind in (5, 6, 12, 13) for x in (bases[kind], strides[kind]))
    launch(
        _finish_kernel,
        (cdiv(columns, options["BLOCK_C"]), blocks),
        partial,
        *dots,
        *given,
        out,
        N,
        D=D,
        E=E,
        OVER_D=dots[0].shape[1],
        OVER_E=dots[1].shape[1],
        **options,
    )
    return out
