"""InfoGCN's attention graph convolution (Chi et al., CVPR 2022, section 4.2), maps and mixed channels never written.

A program makes the maps of a frame from its queries and keys, joint by joint in registers, wherever it wants them. What
a head's map mixes goes straight into the head's linear map. Backward: maps' gradients frame after frame, with sums of
the topology's; x's gradient; the linear maps', as partial sums over frames that `_finish` adds up in a fixed order.
Products are of float32 numbers: a frame has fewer joints than a tile of the matrix units has rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._finish import Sum, finish
from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch, next_power_of_2


@triton.jit
def _tile(ptr, rows, row, columns, in_rows, in_columns):
    """[rows, columns] in float32, zeros outside; rows lie `row` numbers apart."""
    inside = in_rows[:, None] & in_columns[None, :]
    return tl.load(ptr + rows[:, None] * row + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _product(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _maps(qk_ptr, f, h, V, H, d, scale, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr):
    """Queries and keys of a frame and head, [V, d], and their softmax [V, V], without the topology."""
    v, e = tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_D)
    row = 2 * H * d
    q = _tile(qk_ptr + f * V * row + h * d, v, row, e, v < V, e < d)
    k = _tile(qk_ptr + f * V * row + (H + h) * d, v, row, e, v < V, e < d)
    scores = tl.where((v < V)[None, :], _product(q, tl.trans(k)) * scale, float("-inf"))
    powers = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    sums = tl.broadcast_to(tl.sum(powers, axis=1)[:, None], [BLOCK_V, BLOCK_V])
    return q, k, tl.div_rn(powers, sums)  # a single joint has all of the weight, to the last bit


@triton.jit
def _topology(topology_ptr, h, V, BLOCK_V: tl.constexpr):
    """[V, V] of a head, zeros outside."""
    v = tl.arange(0, BLOCK_V)
    return _tile(topology_ptr + h * V * V, v, V, v, v < V, v < V)


@triton.jit
def _grad_mixed(
    grad_ptr, weight_ptr, f, h, c, V, C, E, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    """What a head's mixed channels c get of the gradient, [V, BLOCK_C]."""
    v = tl.arange(0, BLOCK_V)
    acc = tl.zeros([BLOCK_V, BLOCK_C], dtype=tl.float32)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        grad = _tile(grad_ptr + f * V * E, v, E, e, v < V, e < E)
        acc += _product(grad, _tile(weight_ptr + h * E * C, e, C, c, e < E, c < C))
    return acc


@triton.jit
def _forward_kernel(
    x_ptr, qk_ptr, topology_ptr, weight_ptr, bias_ptr, out_ptr, V, C, H, d, E, scale,
    BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A frame's out, [V, BLOCK_E]."""
    f, v = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_V)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    acc = tl.zeros([BLOCK_V, BLOCK_E], dtype=tl.float32)
    for h in range(H):
        _, _, maps = _maps(qk_ptr, f, h, V, H, d, scale, BLOCK_V, BLOCK_D)
        maps *= _topology(topology_ptr, h, V, BLOCK_V)
        for start in range(0, C, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            mixed = _product(maps, _tile(x_ptr + f * V * C, v, C, c, v < V, c < C))
            acc += _product(mixed, tl.trans(_tile(weight_ptr + h * E * C, e, C, c, e < E, c < C)))
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + e, mask=e < E, other=0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + f * V * E + v[:, None] * E + e[None, :], acc, mask=(v < V)[:, None] & (e < E)[None, :])


@triton.jit
def _maps_kernel(
    grad_ptr, x_ptr, qk_ptr, topology_ptr, weight_ptr, d_qk_ptr, partial_ptr, F, V, C, H, d, E, scale, frames_a_split,
    BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Gradients of a head's queries and keys, frame after frame of a split, and partial[split, h], the topology's."""
    h, split = tl.program_id(0), tl.program_id(1)
    v, a = tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_D)
    topology = _topology(topology_ptr, h, V, BLOCK_V)
    acc = tl.zeros([BLOCK_V, BLOCK_V], dtype=tl.float32)
    first, row = tl.cast(split, tl.int64) * frames_a_split, 2 * H * d
    for f in range(first, tl.minimum(first + frames_a_split, F)):
        q, k, maps = _maps(qk_ptr, f, h, V, H, d, scale, BLOCK_V, BLOCK_D)
        through = tl.zeros([BLOCK_V, BLOCK_V], dtype=tl.float32)
        for start in range(0, C, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            mixed = _grad_mixed(grad_ptr, weight_ptr, f, h, c, V, C, E, BLOCK_V, BLOCK_C, BLOCK_E)
            through += _product(mixed, tl.trans(_tile(x_ptr + f * V * C, v, C, c, v < V, c < C)))
        acc += through * maps
        through *= topology
        # Both terms as products with maps: of a single joint they are the same number, however products are fused.
        scores = (maps * through - maps * tl.sum(maps * through, axis=1)[:, None]) * scale
        to = d_qk_ptr + f * V * row + h * d + v[:, None] * row + a[None, :]
        inside = (v < V)[:, None] & (a < d)[None, :]
        tl.store(to, _product(scores, k), mask=inside)
        tl.store(to + H * d, _product(tl.trans(scores), q), mask=inside)
    to = partial_ptr + (split * H + h) * V * V + v[:, None] * V + v[None, :]
    tl.store(to, acc, mask=(v < V)[:, None] & (v < V)[None, :])


@triton.jit
def _x_kernel(
    grad_ptr, qk_ptr, topology_ptr, weight_ptr, d_x_ptr, V, C, H, d, E, scale,
    BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A frame's gradient of x, [V, BLOCK_C]."""
    f, v = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_V)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_V, BLOCK_C], dtype=tl.float32)
    for h in range(H):
        _, _, maps = _maps(qk_ptr, f, h, V, H, d, scale, BLOCK_V, BLOCK_D)
        maps *= _topology(topology_ptr, h, V, BLOCK_V)
        mixed = _grad_mixed(grad_ptr, weight_ptr, f, h, c, V, C, E, BLOCK_V, BLOCK_C, BLOCK_E)
        acc += _product(tl.trans(maps), mixed)
    tl.store(d_x_ptr + f * V * C + v[:, None] * C + c[None, :], acc, mask=(v < V)[:, None] & (c < C)[None, :])


@triton.jit
def _weight_kernel(
    grad_ptr, x_ptr, qk_ptr, topology_ptr, partial_ptr, F, V, C, H, d, E, scale, frames_a_split,
    BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """partial[split, h, e, c] = sum over the split's frames and joints of grad * mixed, a tile of it."""
    tiles, split = tl.cdiv(E, BLOCK_E), tl.program_id(2)
    h, v = tl.program_id(0) // tiles, tl.arange(0, BLOCK_V)
    e = tl.program_id(0) % tiles * BLOCK_E + tl.arange(0, BLOCK_E)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    topology = _topology(topology_ptr, h, V, BLOCK_V)
    acc = tl.zeros([BLOCK_E, BLOCK_C], dtype=tl.float32)
    first = tl.cast(split, tl.int64) * frames_a_split
    for f in range(first, tl.minimum(first + frames_a_split, F)):
        _, _, maps = _maps(qk_ptr, f, h, V, H, d, scale, BLOCK_V, BLOCK_D)
        mixed = _product(maps * topology, _tile(x_ptr + f * V * C, v, C, c, v < V, c < C))
        acc += _product(tl.trans(_tile(grad_ptr + f * V * E, v, E, e, v < V, e < E)), mixed)
    to = partial_ptr + tl.cast(split * H + h, tl.int64) * E * C + e[:, None] * C + c[None, :]
    tl.store(to, acc, mask=(e < E)[:, None] & (c < C)[None, :])


def _blocks(qk: Tensor) -> dict[str, int]:
    return {"BLOCK_V": next_power_of_2(qk.shape[1]), "BLOCK_D": next_power_of_2(qk.shape[4])}


def _options(kernel: str, x: Tensor) -> dict:
    return configuration("graph_attention", kernel, x.device, dtype=dtype_name(x.dtype), V=x.shape[1])


def forward(x: Tensor, qk: Tensor, topology: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[F, V, E] in the dtype of x.

    Args:
        x: [F, V, C].
        qk: [F, V, 2, H, d].
        topology: [H, V, V].
        weight: [H, E, C].
        bias: [E] or None.
    """
    (F, V, C), (H, d), E = x.shape, qk.shape[3:], weight.shape[1]
    out = x.new_empty((F, V, E))
    options = _options("forward", x)
    tensors = (x, qk, topology, weight, bias, out)
    launch(
        _forward_kernel, (F, cdiv(E, options["BLOCK_E"])), *tensors, V, C, H, d, E, d**-0.5, **_blocks(qk), **options
    )
    return out


def backward(
    grad: Tensor, x: Tensor, qk: Tensor, topology: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by x, qk, topology and weight.

    Args:
        grad: [F, V, E].
        x: [F, V, C].
        qk: [F, V, 2, H, d].
        topology: [H, V, V].
        weight: [H, E, C].
    """
    (F, V, C), (H, d), E = x.shape, qk.shape[3:], weight.shape[1]
    if not grad.numel():
        return torch.zeros_like(x), torch.zeros_like(qk), torch.zeros_like(topology), torch.zeros_like(weight)
    d_x, d_qk, blocks, sizes = torch.empty_like(x), torch.empty_like(qk), _blocks(qk), (V, C, H, d, E, d**-0.5)
    partial = []
    for name in ("maps", "weight"):
        options = _options(name, x)
        frames = cdiv(F, min(options.pop("SPLITS"), F))
        splits = cdiv(F, frames)
        shape = topology.shape if name == "maps" else weight.shape
        partial.append(torch.empty(splits, *shape, dtype=torch.float32, device=x.device))
        if name == "maps":
            tensors = (grad, x, qk, topology, weight, d_qk, partial[-1])
            launch(_maps_kernel, (H, splits), *tensors, F, *sizes, frames, **blocks, **options)
        else:
            grid = (H * cdiv(E, options["BLOCK_E"]), cdiv(C, options["BLOCK_C"]), splits)
            tensors = (grad, x, qk, topology, partial[-1])
            launch(_weight_kernel, grid, *tensors, F, *sizes, frames, **blocks, **options)
    options = _options("x", x)
    grid = (F, cdiv(C, options["BLOCK_C"]))
    launch(_x_kernel, grid, grad, qk, topology, weight, d_x, *sizes, **blocks, **options)
    sums = [Sum(of, like.dtype) for of, like in zip(partial, (topology, weight), strict=True)]
    d_topology, d_weight = finish("graph_attention", sums)
    return d_x, d_qk, d_topology, d_weight
