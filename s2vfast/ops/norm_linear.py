"""Layer norm and the linear map after it. Contract: `s2vfast.reference.norm_linear`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops import _triton
from s2vfast.ops._dispatch import register, require
from s2vfast.ops._linear import linear
from s2vfast.reference.norm_linear import norm_linear as _reference


def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = 1e-6,
    *,
    impl: str | None = None,
) -> Tensor:
    """linear(layer_norm(x)): the queries, keys and values of a block, or the decoder's head.

    Args:
        x: [N, L, D], the residual stream, float32 whatever the operands are.
        norm_weight: [D] of the norm.
        norm_bias: [D] of the norm.
        weight: [E, D]; its dtype is that of the matrix operands and of the result.
        bias: [E], or None.
        eps: added to the variance.
        impl: implementation; None: see `use_impl`.

    Returns:
        [N, L, E] in the dtype of ``weight``.
    """
    D = x.shape[-1]
    require(x.ndim == 3, "norm_linear", "x", "[N, L, D]", x)
    require(norm_weight.shape == (D,), "norm_linear", "norm_weight", f"[{D}]", norm_weight)
    require(norm_bias.shape == (D,), "norm_linear", "norm_bias", f"[{D}]", norm_bias)
    require(weight.ndim == 2 and weight.shape[1] == D, "norm_linear", "weight", f"[E, {D}]", weight)
    E = weight.shape[0]
    require(bias is None or bias.shape == (E,), "norm_linear", "bias", f"[{E}]", bias)
    return _op(impl, x.device, x, norm_weight, norm_bias, weight, bias, eps)


def _torch(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> Tensor:
    normed = F.layer_norm(x, norm_weight.shape, norm_weight, norm_bias, eps).to(weight.dtype)
    return linear(normed, weight, bias)


@torch.library.custom_op("s2vfast::norm_linear_triton", mutates_args=())
def _forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.contiguous().view(-1, x.shape[-1])  # [M, D]
    bias = None if bias is None else bias.contiguous()
    found = _triton.kernels("norm_linear").forward(
        rows, norm_weight.contiguous(), norm_bias.contiguous(), weight.contiguous(), bias, eps
    )
    return found[0].view(*x.shape[:-1], weight.shape[0]), found[1], found[2]


@_forward.register_fake
def _(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    out = x.new_empty(*x.shape[:-1], weight.shape[0], dtype=weight.dtype)
    statistics = [x.new_empty(x.shape[:-1].numel(), dtype=torch.float32) for _ in range(2)]
    return out, *statistics


@torch.library.custom_op("s2vfast::norm_linear_triton_backward", mutates_args=())
def _backward(
    grad_out: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> list[Tensor]:
    E, D = weight.shape
    by_x, *others = _triton.kernels("norm_linear").backward(
        grad_out.contiguous().view(-1, E),
        x.contiguous().view(-1, D),
        mean,
        rstd,
        norm_weight.contiguous(),
        norm_bias.contiguous(),
        weight.contiguous(),
        bias,
    )
    return [by_x.view(x.shape), *(gradient for gradient in others if gradient is not None)]


@_backward.register_fake
def _(
    grad_out: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> list[Tensor]:
    tensors = (x, norm_weight, norm_bias, weight, bias)
    return [tensor.new_empty(tensor.shape) for tensor in tensors if tensor is not None]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, norm_weight, norm_bias, weight, bias, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], output[2], norm_weight, norm_bias, weight, bias)


def _gradients(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    found = _backward(grad_out, *ctx.saved_tensors)
    return (*found, None) if len(found) == 5 else (*found, None, None)


_forward.register_autograd(_gradients, setup_context=_save)


def _run_triton(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> Tensor:
    return _forward(x, norm_weight, norm_bias, weight, bias, eps)[0]


_op = register(
    "norm_linear",
    reference=_reference,
    torch=_torch,
    triton=_run_triton,
    reasons={"triton": _triton.reasons()},
)
