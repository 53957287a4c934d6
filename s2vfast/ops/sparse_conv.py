"""A convolution over cells, whose neighbours a table names. Contract: `s2vfast.reference.sparse_conv`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from s2vfast import _extension
from s2vfast.errors import ShapeError
from s2vfast.ops import _native, _triton
from s2vfast.ops._custom import contiguous, differentiate, fake, operator, present
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


def _sizes(x: Tensor, weight: Tensor, table: Tensor) -> dict[str, int]:
    counts = dict(zip(("offsets", "channels", "channels_out"), weight.shape, strict=True))
    return {"rows": len(x), "rows_out": table.shape[1], **counts}


def _compiled(name: str, tensors: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    sizes = _sizes(*(tensors[argument] for argument in ("x", "weight", "table")))
    try:
        function = getattr(_extension.load(), name)
        function(**sizes, **_native.addresses(**tensors, **outputs), **_native.place(tensors["x"]))
    except ValueError as error:  # a table that would lead out of x
        raise ShapeError(str(error)) from None


@operator("sparse_conv_native(Tensor x, Tensor weight, Tensor table) -> Tensor")
def _native_op(x, weight, table):
    x, weight, table = contiguous((x, weight, table))
    out = x.new_empty((table.shape[1], weight.shape[2]))
    _compiled("sparse_conv", {"x": x, "weight": weight, "table": table}, {"out": out})
    return out


@operator("sparse_conv_triton(Tensor x, Tensor weight, Tensor table) -> Tensor")
def _triton_op(*tensors):
    return _triton.kernels("sparse_conv").forward(*contiguous(tensors))


@fake(_native_op)
@fake(_triton_op)
def _(x, weight, table):
    return x.new_empty((table.shape[1], weight.shape[2]))


_BACKWARD = "(Tensor grad, Tensor x, Tensor weight, Tensor table, bool need_x, bool need_weight) -> Tensor[]"


@operator(f"sparse_conv_native_backward{_BACKWARD}")
def _native_backward(grad, x, weight, table, need_x, need_weight):
    grad, x, weight, table = contiguous((grad, x, weight, table))
    outputs = {"d_x": torch.empty_like(x)} if need_x else {}
    outputs |= {"d_weight": torch.empty_like(weight)} if need_weight else {}
    _compiled("sparse_conv_backward", {"x": x, "weight": weight, "table": table, "grad": grad}, outputs)
    return list(outputs.values())


@operator(f"sparse_conv_triton_backward{_BACKWARD}")
def _triton_backward(grad, x, weight, table, *needs):
    return present(_triton.kernels("sparse_conv").backward(*contiguous((grad, x, weight, table)), *needs))


@fake(_native_backward)
@fake(_triton_backward)
def _(grad, x, weight, table, need_x, need_weight):
    return [tensor.new_empty(tensor.shape) for tensor, need in ((x, need_x), (weight, need_weight)) if need]


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, upstream: Tensor, backward: Any) -> tuple[Tensor | None, ...]:
    need_x, need_weight, _ = ctx.needs_input_grad
    gradients = backward(upstream, *ctx.saved_tensors, need_x, need_weight)
    return gradients[0] if need_x else None, gradients[-1] if need_weight else None, None


differentiate(_native_op, partial(_gradients, backward=_native_backward), _save)
differentiate(_triton_op, partial(_gradients, backward=_triton_backward), _save)


_op = register(
    "sparse_conv",
    reference=_reference,
    torch=_torch,
    triton=_triton_op,
    native=_native_op,
    reasons={"triton": _triton.reasons(), "native": _native.reasons(floats=(torch.float32,), cuda=False)},
)
