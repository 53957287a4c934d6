"""Joints mixed by maps of their channels: FreqMixFormer's spatial part (Wu et al., ACM MM 2024).

A channel's map is its track's own map of its unit plus the constant map of its group; it is added up on the way and
never written. Forward: one pass that reads x once and writes out once, sums of frames and joints in registers, channels
side by side. Backward: the same kernel with maps turned round, for x; products over frames and channels for either kind
of maps, of which the constant ones are partial sums over tracks that `_finish` adds up in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._finish import Sum, finish
from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch, next_power_of_2


@triton.jit
def _mix_kernel(
    x_ptr,
    dynamic_ptr,
    static_ptr,
    out_ptr,
    T,
    V,
    C,
    units,
    groups,
    subsets,
    x_row,
    out_row,
    sums,
    BACKWARD: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[b, t, w, c] = sum over subsets i < sums, v of x[b, t, v, i * C + c] * map[i, c][v, w], for a tile of t and c.

    BACKWARD: the program's third index is the one subset, out has all of them, and maps are read as map[w, v].
    x_row, out_row: numbers of a joint of x and out.
    """
    tiles = tl.cdiv(T, BLOCK_T)
    b, t = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    c, w = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_V)
    first, square = tl.program_id(2), V * V
    in_t, in_w, in_c = t < T, w < V, c < C
    in_map, in_x = in_w[:, None] & in_c[None, :], in_t[:, None] & in_c[None, :]
    unit, group = c // (C // units), c % groups
    acc = tl.zeros([BLOCK_T, BLOCK_V, BLOCK_C], dtype=tl.float32)
    for i in range(first, first + sums):
        own = dynamic_ptr + ((b * subsets + i) * units + unit[None, :]) * square
        common = static_ptr + (i * groups + group[None, :]) * square
        for v in range(V):
            at = w[:, None] * V + v if BACKWARD else v * V + w[:, None]
            map = tl.load(own + at, mask=in_map, other=0.0) + tl.load(common + at, mask=in_map, other=0.0)
            channel = c[None, :] if BACKWARD else i * C + c[None, :]
            row = tl.load(x_ptr + ((b * T + t[:, None]) * V + v) * x_row + channel, mask=in_x, other=0.0)
            acc += row.to(tl.float32)[:, None, :] * map[None, :, :]
    rows = (b * T + t[:, None, None]) * V + w[None, :, None]
    to = out_ptr + rows * out_row + first * C + c[None, None, :]
    tl.store(to, acc, mask=in_t[:, None, None] & in_map[None, :, :])


@triton.jit
def _map_sums(x_ptr, grad_ptr, at, channel, inside, x_row, grad_row, subset, V, BLOCK_V: tl.constexpr):
    """[v, w] sums over k of x[at[k], v, subset + channel[k]] * grad[at[k], w, channel[k]]; at: int64 frames."""
    v = tl.arange(0, BLOCK_V)
    inside = (v < V)[:, None] & inside[None, :]
    rows = at[None, :] * V + v[:, None]
    x = tl.load(x_ptr + rows * x_row + subset + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + rows * grad_row + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    return tl.dot(x, tl.trans(grad), input_precision="ieee")


@triton.jit
def _dynamic_kernel(
    x_ptr,
    grad_ptr,
    out_ptr,
    T,
    V,
    C,
    units,
    subsets,
    WIDTH: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[b, i, u, v, w] = sum over t and the WIDTH channels c of unit u: x[b, t, v, i * C + c] * grad[b, t, w, c]."""
    unit, i = tl.program_id(0) % units, tl.program_id(0) // units % subsets
    b = (tl.program_id(0) // (units * subsets)).to(tl.int64)
    v = tl.arange(0, BLOCK_V)
    acc = tl.zeros([BLOCK_V, BLOCK_V], dtype=tl.float32)
    for start in range(0, T * WIDTH, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        channel = unit * WIDTH + k % WIDTH
        acc += _map_sums(x_ptr, grad_ptr, b * T + k // WIDTH, channel, k < T * WIDTH, subsets * C, C, i * C, V, BLOCK_V)
    inside = (v < V)[:, None] & (v < V)[None, :]
    tl.store(out_ptr + tl.program_id(0).to(tl.int64) * V * V + v[:, None] * V + v[None, :], acc, mask=inside)


@triton.jit
def _static_kernel(
    x_ptr,
    grad_ptr,
    partial_ptr,
    B,
    T,
    V,
    C,
    groups,
    subsets,
    tracks_a_split,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """partial[split, i, r, v, w] = the same sum over the split's tracks, frames and the channels of group r."""
    group, i = tl.program_id(0) % groups, tl.program_id(0) // groups
    split, v = tl.program_id(1), tl.arange(0, BLOCK_V)
    width = tl.cdiv(C - group, groups)  # channels of the group
    first = split * tracks_a_split
    count = (tl.minimum(first + tracks_a_split, B) - first) * T * width
    acc = tl.zeros([BLOCK_V, BLOCK_V], dtype=tl.float32)
    for start in range(0, count, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        at, channel = tl.cast(first, tl.int64) * T + k // width, group + k % width * groups
        acc += _map_sums(x_ptr, grad_ptr, at, channel, k < count, subsets * C, C, i * C, V, BLOCK_V)
    inside = (v < V)[:, None] & (v < V)[None, :]
    to = partial_ptr + ((split * subsets + i) * groups + group) * V * V + v[:, None] * V + v[None, :]
    tl.store(to, acc, mask=inside)


def _mix(x: Tensor, dynamic: Tensor, static: Tensor, out: Tensor, backward: bool) -> None:
    B, T, V, _ = x.shape
    subsets, units = dynamic.shape[1:3]
    C = x.shape[3] // (1 if backward else subsets)
    options = configuration("joint_mix", "mix", x.device, dtype=dtype_name(x.dtype), V=V)
    grid = (B * cdiv(T, options["BLOCK_T"]), cdiv(C, options["BLOCK_C"]), subsets if backward else 1)
    sizes = (T, V, C, units, static.shape[1], subsets, x.shape[3], out.shape[3], 1 if backward else subsets)
    launch(
        _mix_kernel,
        grid,
        *(x, dynamic, static, out),
        *sizes,
        BACKWARD=backward,
        BLOCK_V=next_power_of_2(V),
        **options,
    )


def forward(x: Tensor, dynamic: Tensor, static: Tensor) -> Tensor:
    """[B, T, V, C] in the dtype of x.

    Args:
        x: [B, T, V, I * C].
        dynamic: [B, I, U, V, V].
        static: [I, R, V, V].
    """
    out = x.new_empty((*x.shape[:3], x.shape[3] // dynamic.shape[1]))
    _mix(x, dynamic, static, out, backward=False)
    return out


def backward(
    grad: Tensor, x: Tensor, dynamic: Tensor, static: Tensor, need_x: bool, need_maps: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by x, dynamic and static, where wanted.

    Args:
        grad: [B, T, V, C].
        x: [B, T, V, I * C].
        dynamic: [B, I, U, V, V].
        static: [I, R, V, V].
        need_x: whether the first is wanted.
        need_maps: whether the others are.
    """
    B, T, V, C = grad.shape
    subsets, units, groups = *dynamic.shape[1:3], static.shape[1]
    by_x = torch.empty_like(x) if need_x else None
    if need_x:
        _mix(grad, dynamic, static, by_x, backward=True)
    if not need_maps:
        return by_x, None, None
    block_v = max(next_power_of_2(V), 16)
    by_dynamic = torch.empty_like(dynamic)
    options = configuration("joint_mix", "dynamic", x.device, dtype=dtype_name(x.dtype))
    arguments = (grad, by_dynamic, T, V, C, units, subsets)
    grid = (B * subsets * units,)
    launch(_dynamic_kernel, grid, x, *arguments, WIDTH=C // units, BLOCK_V=block_v, **options)
    options = configuration("joint_mix", "static", x.device, dtype=dtype_name(x.dtype))
    splits = max(min(options.pop("SPLITS"), B), 1)
    partial = torch.empty(splits, *static.shape, dtype=torch.float32, device=x.device)
    arguments = (x, grad, partial, B, T, V, C, groups, subsets, cdiv(B, splits))
    launch(_static_kernel, (subsets * groups, splits), *arguments, BLOCK_V=block_v, **options)
    return by_x, by_dynamic, *finish("joint_mix", [Sum(partial, static.dtype)])
