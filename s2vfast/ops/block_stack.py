"""All transformer blocks of a stack over short sequences. Contract: `s2vfast.reference.block_stack`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s2vfast.ops import _triton
from s2vfast.ops._dispatch import register, require
from s2vfast.ops.add_norm import _torch as add_norm
from s2vfast.ops.attention import _torch as attention
from s2vfast.ops.mlp import _torch as mlp
from s2vfast.ops.norm_linear import _torch as norm_linear
from s2vfast.reference.block_stack import PARAMETERS
from s2vfast.reference.block_stack import block_stack as _reference


def block_stack(
    x: Tensor, parameters: list[Tensor], heads: int, eps: float = 1e-6, *, impl: str | None = None
) -> Tensor:
    """x += gamma1 * proj(attention(norm1(x))); x += gamma2 * fc2(gelu(fc1(norm2(x)))), for each block.

    Args:
        x: [N, L, D], the residual stream, float32 whatever the operands are.
        parameters: the tensors of `PARAMETERS` for each block, block after block. Matrices [3 D, D], [D, D], [E, D]
            and [D, E] in the dtype of the matrix operands, all others ([3 D], [E] and [D]) float32. Those of one kind
            that lie in one buffer at equal distances, multiples of 16, are read where they are; others are copied.
        heads: of attention; a divisor of D.
        eps: added to variances.
        impl: implementation; None: see `use_impl`.

    Returns:
        [N, L, D] in the dtype of x: the stream after the last block.

    Raises:
        ShapeError: an argument of another shape, named by block and parameter.
    """
    require(x.ndim == 3, "block_stack", "x", "[N, L, D]", x)
    D, count = x.shape[-1], len(PARAMETERS)
    require(heads > 0 and D % heads == 0, "block_stack", "heads", f"a divisor of {D}", heads)
    found = len(parameters)
    require(found > 0 and found % count == 0, "block_stack", "parameters", f"{count} tensors a block", found)
    E = parameters[9].shape[0]
    shapes = ([D], [D], [3 * D, D], [3 * D], [D, D], [D], [D], [D], [D], [E, D], [E], [D, E], [D], [D])
    for i, parameter in enumerate(parameters):
        shape, name = shapes[i % count], f"blocks.{i // count}.{PARAMETERS[i % count]}"
        require(list(parameter.shape) == shape, "block_stack", name, str(shape), parameter)
    return _op(impl, x.device, x, parameters, heads, eps)


def _torch(x: Tensor, parameters: list[Tensor], heads: int, eps: float) -> Tensor:
    N, L, D = x.shape
    for start in range(0, len(parameters), len(PARAMETERS)):
        norm1, norm1_bias, qkv, qkv_bias, proj, proj_bias, gamma1, *second = parameters[start : start + len(PARAMETERS)]
        norm2, norm2_bias, fc1, fc1_bias, fc2, fc2_bias, gamma2 = second
        packed = norm_linear(x, norm1, norm1_bias, qkv, qkv_bias, eps).view(N, L, 3, heads, D // heads)
        mixed = attention(packed, False)[0].reshape(N, L, D)
        x, _ = add_norm(x, mixed, gamma1, None, None, eps, proj, proj_bias)
        x = mlp(x, fc1, fc1_bias, fc2, fc2_bias, norm2, norm2_bias, gamma2, eps)
    return x


@torch.library.custom_op("s2vfast::block_stack_triton", mutates_args=())
def _forward(x: Tensor, parameters: list[Tensor], heads: int, eps: float, save: bool) -> list[Tensor]:
    out, saved = _triton.kernels("block_stack").forward(x.contiguous(), parameters, heads, eps, save)
    return [out, *saved]


@_forward.register_fake
def _(x: Tensor, parameters: list[Tensor], heads: int, eps: float, save: bool) -> list[Tensor]:
    N, L, D = x.shape
    n, operand = len(parameters) // len(PARAMETERS), parameters[2].dtype
    out = x.new_empty(x.shape)
    if not save:
        return [out]
    low = [x.new_empty(n, N, L, width, dtype=operand) for width in (D, D, 3 * D, D)]
    saved = [x.new_empty(n - 1, N, L, D), x.new_empty(n, N, L, D), *low]
    return [out, *saved, x.new_empty(n, N, heads, L), x.new_empty(n, 4, N, L)]


@torch.library.custom_op("s2vfast::block_stack_triton_backward", mutates_args=())
def _backward(grad_out: Tensor, x: Tensor, parameters: list[Tensor], saved: list[Tensor], heads: int) -> list[Tensor]:
    return list(
        _triton.kernels("block_stack").backward(grad_out.contiguous(), x.contiguous(), parameters, saved, heads)
    )


@_backward.register_fake
def _(grad_out: Tensor, x: Tensor, parameters: list[Tensor], saved: list[Tensor], heads: int) -> list[Tensor]:
    n, D, E = len(parameters) // len(PARAMETERS), x.shape[-1], parameters[9].shape[0]
    matrices = [parameters[kind].new_empty(n, *parameters[kind].shape) for kind in (2, 4, 9, 11)]
    return [x.new_empty(x.shape), *matrices, x.new_empty(n, 11 * D + E)]


def _save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    x, parameters, ctx.heads, *_ = inputs
    ctx.count = len(parameters)
    ctx.set_materialize_grads(False)  # of what is saved for the backward pass nobody asks a gradient
    ctx.save_for_backward(x, *parameters, *output[1:])


def _gradients(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    x, *rest = ctx.saved_tensors
    parameters, saved = rest[: ctx.count], rest[ctx.count :]
    by_x, qkv, proj, fc1, fc2, others = _backward(grads[0], x, parameters, saved, ctx.heads)
    D, E = x.shape[-1], fc1.shape[1]
    parts = others.split([D, D, 3 * D, D, D, D, E, D, D, D], dim=1)
    norm1, norm1_bias, qkv_bias, proj_bias, norm2, norm2_bias, fc1_bias, fc2_bias, gamma1, gamma2 = parts
    kinds = [norm1, norm1_bias, qkv, qkv_bias, proj, proj_bias, gamma1]
    kinds += [norm2, norm2_bias, fc1, fc1_bias, fc2, fc2_bias, gamma2]
    # [blocks, ...] each: views of one block after the other.
    return by_x, [gradient for block in zip(*map(torch.unbind, kinds), strict=True) for gradient in block], *[None] * 3


_forward.register_autograd(_gradients, setup_context=_save)


def _run_triton(x: Tensor, parameters: list[Tensor], heads: int, eps: float) -> Tensor:
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *parameters))
    return _forward(x, parameters, heads, eps, save)[0]


def short_enough(x: Tensor, heads: int) -> bool:
    """Whether every implementation of `block_stack` takes tracks and rows of this size."""
    return not _too_large(x, heads)


def _too_large(x: Tensor, heads: int) -> list[str]:
    _, L, D = x.shape
    found = []
    if L > 64:
        found.append(f"it takes tracks of at most 64 tokens, a tile; these have {L}")
    if D > 256 or D // heads > 64:
        found.append(f"it takes rows of at most 256 and heads of at most 64; these are {D} and {D // heads} wide")
    return found


def _misfits(x: Tensor, parameters: list[Tensor], heads: int, eps: float = 1e-6) -> list[str]:
    count, found = len(PARAMETERS), _too_large(x, heads)
    matrices = {parameters[i].dtype for i in range(len(parameters)) if i % count in (2, 4, 9, 11)}
    others = {parameters[i].dtype for i in range(len(parameters)) if i % count not in (2, 4, 9, 11)}
    if len(matrices) > 1:
        found.append("matrices are of several dtypes")
    if others | {x.dtype} != {torch.float32}:
        found.append("the stream, norms, biases and LayerScale have to be float32")
    return found


_op = register(
    "block_stack",
    reference=_reference,
    torch=_torch,
    triton=_run_triton,
    reasons={"triton": _triton.reasons(_misfits)},
)
