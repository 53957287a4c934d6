"""The decoder's input: latents at their places, the mask token elsewhere, plus positions.

Forward: one pass that writes every row once and reads every latent once; where a latent belongs is found by comparison
with the track's list of visible tokens. Backward: one pass over the gradient for the positions' and the mask token's,
whose sums over tracks go through partial sums in a fixed order, and one over the visible rows. Bound by bandwidth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch, next_power_of_2
from s2vfast.kernels._place import places


@triton.jit
def _forward_kernel(
    latents,
    mask_token,
    positions,
    visible,
    out,
    L,
    K,
    D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[n, l] for a tile of tokens of one track."""
    tiles = tl.cdiv(L, BLOCK_L)
    n, start = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * BLOCK_L
    token, d = start + tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_D)
    in_l, in_d = token < L, d < D
    place = places(visible + n * K, K, token, BLOCK_K)
    there = (place >= 0) & in_l
    latent = tl.load(
        latents + (n * K + place[:, None]) * D + d[None, :], mask=there[:, None] & in_d[None, :], other=0.0
    ).to(tl.float32)
    inside = in_l[:, None] & in_d[None, :]
    fill = tl.load(mask_token + d, mask=in_d, other=0.0).to(tl.float32)
    position = tl.load(positions + token[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    result = tl.where(there[:, None], latent, fill[None, :]) + position
    tl.store(out + (n * L + token[:, None]) * D + d[None, :], result, mask=inside)


@triton.jit
def _grad_latents_kernel(
    grad_out, visible, grad_latents, rows, L, K, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr
):
    """grad_latents[n, k] = grad_out[n, visible[n, k]] for a tile of rows n * K + k."""
    m, d = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    in_m = m < rows
    inside = in_m[:, None] & (d < D)[None, :]
    token = tl.load(visible + m, mask=in_m, other=0)
    found = tl.load(grad_out + ((m // K) * L + token)[:, None] * D + d[None, :], mask=inside, other=0.0)
    tl.store(grad_latents + m[:, None] * D + d[None, :], found, mask=inside)


@triton.jit
def _grad_shared_kernel(
    grad_out,
    visible,
    partial,
    partial_token,
    N,
    L,
    K,
    tracks_a_split,
    D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sums of grad_out over a share of the tracks: partial [split, l, d]; partial_token, over masked tokens alone."""
    tile, split = tl.program_id(0), tl.program_id(1)
    token, d = tile * BLOCK_L + tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_D)
    in_l, in_d = token < L, d < D
    inside = in_l[:, None] & in_d[None, :]
    total = tl.zeros([BLOCK_L, BLOCK_D], dtype=tl.float32)
    masked = tl.zeros([BLOCK_L, BLOCK_D], dtype=tl.float32)
    for track in range(split * tracks_a_split, tl.minimum((split + 1) * tracks_a_split, N)):
        n = tl.cast(track, tl.int64)
        place = places(visible + n * K, K, token, BLOCK_K)
        grad = tl.load(grad_out + (n * L + token[:, None]) * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        total += grad
        masked += tl.where((place >= 0)[:, None], 0.0, grad)
    tl.store(partial + (split * L + token[:, None]) * D + d[None, :], total, mask=inside)
    tl.store(partial_token + (split * tl.num_programs(0) + tile) * D + d, tl.sum(masked, axis=0), mask=in_d)


def forward(latents: Tensor, mask_token: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
    """[N, L, D] in the latents' dtype.

    Args:
        latents: [N, K, D].
        mask_token: [D].
        positions: [L, D].
        visible: int32 [N, K], each token at most once.
    """
    (N, K, D), L = latents.shape, positions.shape[0]
    options = configuration("mask_fill", "forward", latents.device, dtype=dtype_name(latents.dtype), D=D)
    out = torch.empty(N, L, D, dtype=latents.dtype, device=latents.device)
    grid = (cdiv(L, options["BLOCK_L"]) * N,)
    block_d = next_power_of_2(D)
    launch(_forward_kernel, grid, latents, mask_token, positions, visible, out, L, K, D=D, BLOCK_D=block_d, **options)
    return out


def backward(grad_out: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of latents [N, K, D] (dtype of grad_out), mask_token float32 [D] and positions float32 [L, D].

    Args:
        grad_out: [N, L, D].
        visible: int32 [N, K].
    """
    (N, L, D), K = grad_out.shape, visible.shape[1]
    device, facts, block_d = grad_out.device, {"dtype": dtype_name(grad_out.dtype), "D": D}, next_power_of_2(D)
    by_latents = torch.empty(N, K, D, dtype=grad_out.dtype, device=device)
    options = configuration("mask_fill", "grad_latents", device, **facts)
    grid = (cdiv(N * K, options["BLOCK_M"]),)
    launch(_grad_latents_kernel, grid, grad_out, visible, by_latents, N * K, L, K, D=D, BLOCK_D=block_d, **options)
    options = configuration("mask_fill", "grad_shared", device, **facts)
    splits = max(min(options.pop("SPLITS"), N), 1)
    tiles = cdiv(L, options["BLOCK_L"])
    partial = torch.empty(splits, L, D, dtype=torch.float32, device=device)
    partial_token = torch.empty(splits * tiles, D, dtype=torch.float32, device=device)
    launch(
        _grad_shared_kernel,
        (tiles, splits),
        grad_out,
        visible,
        partial,
        partial_token,
        N,
        L,
        K,
        cdiv(N, splits),
        D=D,
        BLOCK_D=block_d,
        **options,
    )
    return by_latents, partial_token.sum(0), partial.sum(0)
