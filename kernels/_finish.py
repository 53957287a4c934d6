"""The last launch of a backward pass: every sum over splits, in a fixed order, in the dtype of its gradient.

What the other kernels leave are float32 partial sums, one for each split of the rows. One kernel adds them all up, of
all outputs: a program finds its job from its number. Reads the partial sums once, writes the gradients; bound by
bandwidth, and by latency where splits are many, so that a program loads a tile of them at once.

LayerScale costs no launch of its own. The kernels before take the incoming gradient times s, which is gamma, but never
nearer to zero than 1e-18: what they make of it is the gradient of a linear map under LayerScale as it is wanted, and
divided by s what gamma's gradient needs: of gamma * (a @ W^T + b) by gamma it is the sum over columns of
(gradient^T @ a) * W, plus b times the sum of the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import cdiv, configuration, launch

# Sums of more splits than this are done in tiles of few columns, so that many programs share the work.
_FEW = 48


@triton.jit
def away_from_zero(gamma):
    """LayerScale's gamma, float32, its magnitude at least 1e-18, so that what was multiplied by it can be divided."""
    return tl.where(tl.abs(gamma) < 1e-18, tl.where(gamma < 0, -1e-18, 1e-18), gamma)


@triton.jit
def _added(partial_ptr, at, inside, stride, splits, BLOCK_SPLITS: tl.constexpr, WIDTH: tl.constexpr):
    """The sums over splits of partial[split * stride + at], [WIDTH]."""
    acc = tl.zeros([BLOCK_SPLITS, WIDTH], dtype=tl.float32)
    for start in range(0, splits, BLOCK_SPLITS):
        split = start + tl.arange(0, BLOCK_SPLITS)
        pointers = partial_ptr + split.to(tl.int64)[:, None] * stride + at[None, :]
        acc += tl.load(pointers, mask=(split < splits)[:, None] & inside[None, :], other=0.0)
    return tl.sum(acc, axis=0)


@triton.jit
def _sum_tile(tile, partial_ptr, out_ptr, size, stride, splits, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """One tile of a sum, if this number is one of its tiles; the number among the tiles that follow."""
    tiles = tl.cdiv(size, WIDTH)
    if (tile >= 0) & (tile < tiles):
        at = tile * WIDTH + tl.arange(0, WIDTH)
        inside = at < size
        tl.store(out_ptr + at, _added(partial_ptr, at, inside, stride, splits, BLOCK // WIDTH, WIDTH), mask=inside)
    return tile - tiles


@triton.jit
def _scaled_row(
    row, partial_ptr, sums_ptr, weight_ptr, bias_ptr, gamma_ptr, grad_weight_ptr, grad_bias_ptr, grad_gamma_ptr, C,
    stride, splits, sums_stride, sums_splits, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One row of the map under LayerScale: its gradient, and the elements of the bias's and gamma's."""
    element = row + tl.arange(0, 1)
    scale = tl.load(gamma_ptr + element).to(tl.float32)
    clamped = away_from_zero(scale)
    correction = tl.where(scale == clamped, 1.0, scale / clamped)
    along = tl.zeros([WIDTH], dtype=tl.float32)
    for start in range(0, C, WIDTH):
        c = start + tl.arange(0, WIDTH)
        at, inside = row * C + c, c < C
        total = _added(partial_ptr, at, inside, stride, splits, BLOCK // WIDTH, WIDTH)
        along += total * tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_weight_ptr + at, total * correction, mask=inside)
    grad_gamma = tl.sum(along, axis=0) / clamped
    if bias_ptr is not None:
        total = _added(sums_ptr, element, element >= 0, sums_stride, sums_splits, BLOCK, 1)
        grad_gamma += tl.load(bias_ptr + element).to(tl.float32) * total
        tl.store(grad_bias_ptr + element, total * scale)
    tl.store(grad_gamma_ptr + element, grad_gamma)


@triton.jit
def _finish_kernel(
    partial_ptrs,
    out_ptrs,
    sizes,
    strides,
    splits,
    scaled_ptr,
    sums_ptr,
    weight_ptr,
    bias_ptr,
    gamma_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    grad_gamma_ptr,
    R,
    C,
    scaled_splits,
    sums_stride,
    sums_splits,
    COUNT: tl.constexpr,
    FEW: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Output i is the sum of partial sums i, the first FEW of few splits; the rows of `LayerScale` before them."""
    tile = tl.program_id(0)
    if scaled_ptr is not None:
        if tile < R:
            _scaled_row(
                tile, scaled_ptr, sums_ptr, weight_ptr, bias_ptr, gamma_ptr, grad_weight_ptr, grad_bias_ptr,
                grad_gamma_ptr, C, R * C, scaled_splits, sums_stride, sums_splits, BLOCK, BLOCK_C,
            )  # fmt: skip
        tile -= R
    for i in tl.static_range(COUNT):
        if i < FEW:
            tile = _sum_tile(tile, partial_ptrs[i], out_ptrs[i], sizes[i], strides[i], splits[i], BLOCK, BLOCK_C)
        else:
            tile = _sum_tile(tile, partial_ptrs[i], out_ptrs[i], sizes[i], strides[i], splits[i], BLOCK, BLOCK_N)


class Sum(NamedTuple):
    """A gradient that is the sum of its splits."""

    partial: Tensor  # float32 [splits, ...], each split contiguous
    dtype: torch.dtype  # of the gradient


class LayerScale(NamedTuple):
    """A linear map under LayerScale; what is summed was made of the gradient times `away_from_zero` of gamma."""

    partial: Tensor  # float32 [splits, R, C], of weight
    sums: Tensor  # float32 [splits, R], of the gradient as it was
    weight: Tensor  # [R, C]
    bias: Tensor | None  # [R]
    gamma: Tensor  # [R]


def finish(op: str, partial_sums: list[Sum | None], scaled: LayerScale | None = None) -> list[Tensor | None]:
    """The sums (None where there is None), then, where there is one, the gradients of a map's weight, bias and gamma.

    Args:
        op: whose table names the configuration (``finish``).
        partial_sums: what is to be summed.
        scaled: a linear map under LayerScale, each of whose gradients gets its tensor's dtype.
    """
    outs = [
        None if s is None else torch.empty(s.partial.shape[1:], dtype=s.dtype, device=s.partial.device)
        for s in partial_sums
    ]
    pairs = [(s.partial, out) for s, out in zip(partial_sums, outs, strict=True) if s is not None]
    pairs.sort(key=lambda pair: pair[0].shape[0] > _FEW)
    if not pairs and scaled is None:
        return outs
    device = (pairs[0] if pairs else scaled)[0].device
    options = configuration(op, "finish", device)
    few = sum(partial.shape[0] <= _FEW for partial, _ in pairs)
    programs = sum(cdiv(out.numel(), options["BLOCK_C" if i < few else "BLOCK_N"]) for i, (_, out) in enumerate(pairs))
    rows = (None,) * 8 + (0,) * 5
    grads: list[Tensor | None] = []
    if scaled is not None:
        partial, sums, weight, bias, gamma = scaled
        R, C = weight.shape
        grads = [None if tensor is None else torch.empty_like(tensor) for tensor in (weight, bias, gamma)]
        rows = (*scaled, *grads, R, C, partial.shape[0], sums.stride(0), sums.shape[0])
        programs += R
    launch(
        _finish_kernel,
        (programs,),
        tuple(partial for partial, _ in pairs),
        tuple(out for _, out in pairs),
        tuple(out.numel() for _, out in pairs),
        tuple(partial.stride(0) for partial, _ in pairs),
        tuple(partial.shape[0] for partial, _ in pairs),
        *rows,
        COUNT=len(pairs),
        FEW=few,
        **options,
    )
    return outs + grads
