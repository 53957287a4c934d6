"""Layer norm and the linear map after it. Contract: `s2vfast.reference.norm_linear`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops import _triton
from s2vfast.ops._custom import contiguous, differentiate, fake, like, one_each, operator, present
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


_PARAMETERS = "Tensor norm_weight, Tensor norm_bias, Tensor weight, Tensor? bias"


@operator(f"norm_linear_triton(Tensor x, {_PARAMETERS}, float eps, bool keep) -> (Tensor, Tensor, Tensor, Tensor)")
def _forward(x, norm_weight, norm_bias, weight, bias, eps, keep):
    rows = x.contiguous().view(-1, x.shape[-1])  # [N * L, D]
    parameters = contiguous((norm_weight, norm_bias, weight, bias))
    out, *left = _triton.kernels("norm_linear").forward(rows, *parameters, eps, keep)
    return out.view(*x.shape[:-1], weight.shape[0]), *left


@fake(_forward)
def _(x, norm_weight, norm_bias, weight, bias, eps, keep):
    out = x.new_empty(*x.shape[:-1], weight.shape[0], dtype=weight.dtype)
    count = x.shape[:-1].numel()
    mean, rstd = (x.new_empty(count, dtype=torch.float32) for _ in range(2))
    return out, mean, rstd, weight.new_empty(count if keep else 0, x.shape[-1])


_LEFT = "Tensor mean, Tensor rstd, Tensor rows"  # what the forward pass leaves for the backward pass


@operator(f"norm_linear_triton_backward(Tensor grad_out, Tensor x, {_LEFT}, {_PARAMETERS}) -> Tensor[]")
def _backward(grad, x, mean, rstd, rows, *parameters):
    streams = (t.contiguous().view(-1, t.shape[-1]) for t in (grad, x))
    kernels, left = _triton.kernels("norm_linear"), (mean, rstd, rows)
    grad_x, *parameter_grads = kernels.backward(*streams, *left, *contiguous(parameters))
    return [grad_x.view(x.shape), *present(parameter_grads)]


@fake(_backward)
def _(grad, x, mean, rstd, rows, *parameters):
    return like((x, *parameters))


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, *parameters, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *output[1:], *parameters)


def _gradients(ctx: Any, grad_out: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    x, mean, rstd, rows, *parameters = ctx.saved_tensors
    return *one_each(_backward(grad_out, x, mean, rstd, rows, *parameters), (x, *parameters)), None, None


differentiate(_forward, _gradients, _save)


def _run_triton(*args: Any) -> Tensor:
    keep = torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in args)
    return _forward(*args, keep)[0]


_op = register(
    "norm_linear",
    reference=_reference,
    torch=_torch,
    triton=_run_triton,
    reasons={"triton": _triton.reasons()},
)
