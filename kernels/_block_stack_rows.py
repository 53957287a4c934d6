"""What the kernels of block_stack share: normed rows, products with rows in pieces, parameters, configurations."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import configuration, dtype_name, next_power_of_2

KINDS = 14  # tensors a block


@triton.jit
def within(start, END: tl.constexpr, BLOCK: tl.constexpr):
    """[BLOCK], which of the places from ``start`` on are before END: all, known when compiled, where tiles come out."""
    if END % BLOCK == 0:
        return tl.full([BLOCK], True, tl.int1)
    else:
        return start + tl.arange(0, BLOCK) < END


@triton.jit
def times_rows(
    rows, source, weight, e_stride, d_stride, m, in_m, e, in_e, d, in_d, D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """weight [e, d] @ rows [d, m] in float32; if not BLOCK_K == BLOCK_D, rows are read from ``source`` in pieces.

    What all products have in common whose inner dimension is the stream's: whole rows stay on the chip for all slices
    of the weight, except in float32, where products with whole rows take too many registers.
    """
    if BLOCK_K == BLOCK_D:
        at = e[:, None] * e_stride + d[None, :] * d_stride
        w = tl.load(weight + at, mask=in_e[:, None] & in_d[None, :], other=0.0)  # [e, d]
        return tl.dot(w, rows, input_precision="ieee")
    else:
        acc = tl.zeros([BLOCK_E, BLOCK_M], dtype=tl.float32)
        for start in range(0, D, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            in_k = within(start, D, BLOCK_K)
            piece = tl.load(source + m[None, :] * D + k[:, None], mask=in_m[None, :] & in_k[:, None], other=0.0)
            at = e[:, None] * e_stride + k[None, :] * d_stride
            w = tl.load(weight + at, mask=in_e[:, None] & in_k[None, :], other=0.0)
            acc = tl.dot(w, piece, acc, input_precision="ieee")  # [e, m]
        return acc


def stacked(tensors: list[Tensor]) -> tuple[Tensor, int]:
    """The first of tensors that lie at equal distances, and their distance in elements.

    Args:
        tensors: of one shape and dtype. Where they do not lie so, they are copied.
    """
    step = _distance(tensors)
    if step is not None:
        return tensors[0], step
    together = torch.stack(tensors)
    return together, together[0].numel()


def _distance(tensors: list[Tensor]) -> int | None:
    """How many elements tensors lie apart; None unless a kernel, compiled for multiples of 16, can go by that."""
    if not all(tensor.is_contiguous() for tensor in tensors) or tensors[0].data_ptr() % 16:
        return None
    if len(tensors) == 1:
        return 0
    memory = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    offsets = [tensor.storage_offset() for tensor in tensors]
    steps = {after - before for before, after in itertools.pairwise(offsets)}
    if len(memory) > 1 or len(steps) > 1 or (step := steps.pop()) % 16:
        return None
    return step


def by_kind(parameters: list[Tensor]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """For each of the 14 kinds, in order, its first tensor and how far it is from one block's to the next's."""
    found = [stacked(list(parameters[kind::KINDS])) for kind in range(KINDS)]
    return tuple(base for base, _ in found), tuple(step for _, step in found)


def options_of(kernel: str, x: Tensor, parameters: list[Tensor], heads: int) -> dict[str, Any]:
    """Sizes and configuration of a kernel that walks through the blocks of a track."""
    (_, L, D), E = x.shape, parameters[9].shape[0]
    block_l, block_d, width = next_power_of_2(L), next_power_of_2(D), D // heads
    options = configuration("block_stack", kernel, x.device, dtype=dtype_name(parameters[2].dtype), L=L, D=D, E=E)
    for name, most in (("BLOCK_M", block_l), ("BLOCK_Q", block_l), ("BLOCK_K", block_d)):
        options[name] = min(options[name], most)
    sizes = {"D": D, "E": E, "WIDTH": width, "BLOCK_L": block_l, "BLOCK_D": block_d}
    return {**sizes, "BLOCK_W": next_power_of_2(width), **options}
