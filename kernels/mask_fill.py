"""The decoder's input: latents at their places, the mask token elsewhere, plus positions.

Forward: one pass that writes every row once and reads every latent once; where a latent belongs is found by comparison
with the track's list of visible tokens. Backward: one pass over the gradient, which is read once. Visible rows become
the latents' gradient; the positions' and the mask token's are partial sums over tracks, which `_finish` adds up in a
fixed order. Bound by bandwidth.
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
def _forward_kernel(
    latents_ptr,
    mask_token_ptr,
    positions_ptr,
    visible_ptr,
    out_ptr,
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
    index = visible_index(visible_ptr + n * K, K, token, BLOCK_K)
    is_visible = (index >= 0) & in_l
    latent = tl.load(
        latents_ptr + (n * K + index[:, None]) * D + d[None, :], mask=is_visible[:, None] & in_d[None, :], other=0.0
    ).to(tl.float32)
    inside = in_l[:, None] & in_d[None, :]
    fill = tl.load(mask_token_ptr + d, mask=in_d, other=0.0).to(tl.float32)
    position = tl.load(positions_ptr + token[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    result = tl.where(is_visible[:, None], latent, fill[None, :]) + position
    tl.store(out_ptr + (n * L + token[:, None]) * D + d[None, :], result, mask=inside)


@triton.jit
def _backward_kernel(
    grad_out_ptr,
    visible_ptr,
    grad_latents_ptr,
    partial_ptr,
    partial_token_ptr,
    N,
    L,
    K,
    tracks_a_split,
    D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """For a tile of tokens of a split of the tracks: grad_latents [n, k, d], and sums of grad_out.

    partial [split, l, d]: over the tracks; partial_token [split, tile, d]: over tracks and masked tokens.
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    token, d = tile * BLOCK_L + tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_D)
    in_l, in_d = token < L, d < D
    inside = in_l[:, None] & in_d[None, :]
    total = tl.zeros([BLOCK_L, BLOCK_D], dtype=tl.float32)
    masked = tl.zeros([BLOCK_L, BLOCK_D], dtype=tl.float32)
    for track in range(split * tracks_a_split, tl.minimum((split + 1) * tracks_a_split, N)):
        n = tl.cast(track, tl.int64)
        index = visible_index(visible_ptr + n * K, K, token, BLOCK_K)
        grad = tl.load(grad_out_ptr + (n * L + token[:, None]) * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        is_visible = index >= 0
        to = grad_latents_ptr + (n * K + index[:, None]) * D + d[None, :]
        tl.store(to, grad, mask=is_visible[:, None] & inside)
        total += grad
        masked += tl.where(is_visible[:, None], 0.0, grad)
    tl.store(partial_ptr + (split * L + token[:, None]) * D + d[None, :], total, mask=inside)
    tl.store(partial_token_ptr + (split * tl.num_programs(0) + tile) * D + d, tl.sum(masked, axis=0), mask=in_d)


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


def backward(
    grad_out: Tensor, visible: Tensor, mask_token: torch.dtype, positions: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of latents [N, K, D] (dtype of grad_out), mask_token [D] and positions [L, D].

    Args:
        grad_out: [N, L, D].
        visible: int32 [N, K].
        mask_token: dtype of the second.
        positions: dtype of the third.
    """
    (N, L, D), K = grad_out.shape, visible.shape[1]
    device, dtype = grad_out.device, dtype_name(grad_out.dtype)
    by_latents = torch.empty(N, K, D, dtype=grad_out.dtype, device=device)
    options = configuration("mask_fill", "backward", device, dtype=dtype, D=D)
    splits = max(min(options.pop("SPLITS"), N), 1)
    tiles = cdiv(L, options["BLOCK_L"])
    partial = torch.empty(splits, L, D, dtype=torch.float32, device=device)
    partial_token = torch.empty(splits * tiles, D, dtype=torch.float32, device=device)
    arguments = (grad_out, visible, by_latents, partial, partial_token, N, L, K, cdiv(N, splits))
    launch(_backward_kernel, (tiles, splits), *arguments, D=D, BLOCK_D=next_power_of_2(D), **options)
    return (by_latents, *finish("mask_fill", [Sum(partial_token, mask_token), Sum(partial, positions)]))
