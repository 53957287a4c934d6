"""The teacher's contextual features: every hidden state normalised, their mean, its layer norm; masked tokens alone.

``instance`` normalises over the tokens of a track. Where a program has room for all of them, it reads each state once,
a few channels of a track, and writes their mean; a second kernel normalises its masked rows. Longer tracks, and one or
two states, are read twice: for mean and deviation of every channel, and, masked rows alone, for the target. ``layer``
needs the second kernel alone. Bound by bandwidth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch, next_power_of_2

# As many tokens of a few channels fit into the registers of a program.
_MOST_TOKENS = 1024


@triton.jit
def _state(state_ptrs, which, COUNT: tl.constexpr):
    """The pointer of a state whose number is known when the kernel runs."""
    state_ptr = state_ptrs[0]
    for i in tl.static_range(1, COUNT):
        if which == i:
            state_ptr = state_ptrs[i]
    return state_ptr


@triton.jit
def _statistics_kernel(
    state_ptrs,
    mean_ptr,
    rstd_ptr,
    L,
    eps,
    COUNT: tl.constexpr,
    D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Mean and reciprocal deviation over the tokens of a track, of one state, for a tile of channels: [state, n, d].

    Tiles are joined by the formula of Chan et al. (1979), which stays exact where the mean is large.
    """
    which = tl.program_id(2)
    state_ptr = _state(state_ptrs, which, COUNT)
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = d < D
    mean = tl.zeros([BLOCK_D], dtype=tl.float32)
    squares = tl.zeros([BLOCK_D], dtype=tl.float32)
    for start in range(0, L, BLOCK_L):
        token = start + tl.arange(0, BLOCK_L)
        inside = (token < L)[:, None] & in_d[None, :]
        x = tl.load(state_ptr + (n * L + token[:, None]) * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        count = tl.minimum(L - start, BLOCK_L).to(tl.float32)
        tile_mean = tl.sum(x, axis=0) / count
        centred = tl.where(inside, x - tile_mean[None, :], 0.0)
        count_so_far = start + count
        difference = tile_mean - mean
        mean += difference * (count / count_so_far)
        squares += tl.sum(centred * centred, axis=0) + difference * difference * (start * count / count_so_far)
    to = (which * tl.num_programs(0) + n) * D + d
    tl.store(mean_ptr + to, mean, mask=in_d)
    tl.store(rstd_ptr + to, 1.0 / tl.sqrt(squares / L + eps), mask=in_d)


@triton.jit
def _average_kernel(
    state_ptrs, out_ptr, L, eps, COUNT: tl.constexpr, D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The mean over states, each normalised over the tokens of a track: a tile of channels of one track."""
    tiles: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    n = (tl.program_id(0) // tiles).to(tl.int64)
    token, d = tl.arange(0, BLOCK_L), tl.program_id(0) % tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (token < L)[:, None] & (d < D)[None, :]
    at = (n * L + token[:, None]) * D + d[None, :]
    total = tl.zeros([BLOCK_L, BLOCK_D], dtype=tl.float32)
    for i in tl.range(0, COUNT, num_stages=2):
        x = tl.load(_state(state_ptrs, i, COUNT) + at, mask=inside, other=0.0).to(tl.float32)
        centred = tl.where(inside, x - (tl.sum(x, axis=0) / L)[None, :], 0.0)
        total += centred * (1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / L + eps))[None, :]
    tl.store(out_ptr + at, total / COUNT, mask=inside)


@triton.jit
def _standardised(x, inside, eps, D: tl.constexpr):
    """Rows [m, d] less their mean, over their deviation."""
    mean = tl.sum(x, axis=1) / D
    centred = tl.where(inside, x - mean[:, None], 0.0)
    return centred * (1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / D + eps))[:, None]


@triton.jit
def _target_kernel(
    state_ptrs,
    masked_ptr,
    mean_ptr,
    rstd_ptr,
    out_ptr,
    N,
    L,
    U,
    eps,
    COUNT: tl.constexpr,
    D: tl.constexpr,
    LAYER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[n, m] for a tile of wanted tokens of one track.

    States are normalised by mean and rstd [states, n, d], or where LAYER over their channels; else they are so already.
    """
    tiles = tl.cdiv(U, BLOCK_M)
    n, m = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_m, in_d = m < U, d < D
    inside = in_m[:, None] & in_d[None, :]
    token = m
    if masked_ptr is not None:
        token = tl.load(masked_ptr + n * U + m, mask=in_m, other=0)
    at = (n * L + token[:, None]) * D + d[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    for i in tl.static_range(COUNT):
        x = tl.load(state_ptrs[i] + at, mask=inside, other=0.0).to(tl.float32)
        if mean_ptr is not None:
            row = (i * N + n) * D + d
            mu = tl.load(mean_ptr + row, mask=in_d, other=0.0)
            total += tl.where(inside, (x - mu[None, :]) * tl.load(rstd_ptr + row, mask=in_d, other=0.0)[None, :], 0.0)
        elif LAYER:
            total += _standardised(x, inside, eps, D)
        else:
            total += x
    target = _standardised(total / COUNT, inside, eps, D)
    tl.store(out_ptr + (n * U + m[:, None]) * D + d[None, :], target, mask=inside)


def forward(states: list[Tensor], masked: Tensor | None, norm: str, eps: float) -> Tensor:
    """[N, U, D] in the states' dtype.

    Args:
        states: k tensors [N, L, D], contiguous, of one dtype.
        masked: int32 [N, U], or None for all L.
        norm: ``instance`` or ``layer``.
        eps: added to variances.
    """
    N, L, D = states[0].shape
    dtype, device = states[0].dtype, states[0].device
    U = L if masked is None else masked.shape[1]
    out = torch.empty(N, U, D, dtype=dtype, device=device)
    mean = rstd = None
    if norm == "instance" and L <= _MOST_TOKENS and len(states) > 2:  # one or two are read twice in less
        options = configuration("teacher_target", "average", device, dtype=dtype_name(dtype), D=D, L=L)
        average = torch.empty(N, L, D, dtype=torch.float32, device=device)
        sizes = {"COUNT": len(states), "D": D, "BLOCK_L": next_power_of_2(L)}
        grid = (cdiv(D, options["BLOCK_D"]) * N,)
        launch(_average_kernel, grid, tuple(states), average, L, eps, **sizes, **options)
        states = [average]
    elif norm == "instance":
        mean, rstd = (torch.empty(len(states), N, D, dtype=torch.float32, device=device) for _ in range(2))
        options = configuration("teacher_target", "statistics", device, dtype=dtype_name(dtype), D=D, L=L)
        grid = (N, cdiv(D, options["BLOCK_D"]), len(states))
        launch(_statistics_kernel, grid, tuple(states), mean, rstd, L, eps, COUNT=len(states), D=D, **options)
    options = configuration("teacher_target", "target", device, dtype=dtype_name(dtype), D=D, L=L)
    grid = (cdiv(U, options["BLOCK_M"]) * N,)
    sizes = {"COUNT": len(states), "D": D, "LAYER": norm == "layer", "BLOCK_D": next_power_of_2(D)}
    launch(_target_kernel, grid, tuple(states), masked, mean, rstd, out, N, L, U, eps, **sizes, **options)
    return out
