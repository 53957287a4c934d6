"""A convolution over cells, whose neighbours a table names. Contract: `s2vfast.reference.sparse_conv`."""

from __future__ import annotations

import torch
from torch import Tensor

from s2vfast.ops._dispatch import register, require
from s2vfast.reference.sparse_conv import sparse_conv as _reference


def sparse_conv(x: Tensor, weight: Tensor, table: Tensor, *, impl: str | None = None) -> Tensor:
    """out[r] = sum over o of x[table[o, r]] @ weight[o], without those where the table says -1.

    With ``neighbors`` of a level of `voxelize` it is a submanifold convolution (Graham et al., CVPR 2018), which
    computes what a dense one does at the cells that hold points; with ``children`` a strided one to the next level.
    Rows that no table entry names get the gradient 0; rows of a table that are all -1 become 0.

    Args:
        x: [R, Cin].
        weight: [O, Cin, Cout], dtype of x.
        table: int32 [O, R'], row of x at each offset from a row of the result, -1: none. For one offset no two rows
            of the result have the same row of x.
        impl: implementation; None: see `use_impl`.

    Returns:
        [R', Cout] in the dtype of ``x``. Sums are made in one order, so that two calls give the same bits.
    """
    require(x.ndim == 2, "sparse_conv", "x", "[R, Cin]", x)
    good = weight.ndim == 3 and weight.shape[1] == x.shape[1] and weight.dtype == x.dtype
    require(good, "sparse_conv", "weight", f"{str(x.dtype)[6:]} [O, {x.shape[1]}, Cout]", weight)
    good = table.ndim == 2 and table.shape[0] == weight.shape[0] and table.dtype == torch.int32
    require(good, "sparse_conv", "table", f"int32 [{weight.shape[0]}, R']", table)
    return _op(impl, x.device, x, weight, table)


def _torch(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Gather, matrix product, scatter for each offset; on a GPU, where nobody may wait, of all rows."""
    out = x.new_zeros(table.shape[1], weight.shape[2])
    if x.is_cuda or torch.compiler.is_compiling():
        padded = torch.cat([x, x.new_zeros(1, x.shape[1])])
        rows = torch.where(table < 0, x.shape[0], table)
        for o in range(len(weight)):
            out = out + padded[rows[o]] @ weight[o]
        return out
    for o in range(len(weight)):
        to = torch.nonzero(table[o] >= 0)[:, 0]
        out = out.index_add(0, to, x.index_select(0, table[o, to]) @ weight[o])
    return out


_op = register("sparse_conv", reference=_reference, torch=_torch)
