"""The feed-forward branch. Contract: `s2vfast.reference.mlp`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops import _triton
from s2vfast.ops._custom import contiguous, differentiate, fake, like, one_each, operator, present
from s2vfast.ops._dispatch import register, require
from s2vfast.ops._linear import linear
from s2vfast.reference.mlp import mlp as _reference


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    gamma: Tensor | None = None,
    eps: float = 1e-6,
    impl: str | None = None,
) -> Tensor:
    """fc2(gelu(fc1(x))), exact (erf) GELU.

    Args:
        x: [N, L, D].
        weight1: [E, D].
        bias1: [E].
        weight2: [D, E].
        bias2: [D].
        norm_weight: [D] of a layer norm before fc1: the whole residual branch, x + gamma * mlp(layer_norm(x)), with x
            the residual stream. None: the branch alone, of x as it is.
        norm_bias: [D] of that norm.
        gamma: [D], LayerScale of the branch; None adds it as it is.
        eps: added to the variance.
        impl: implementation; None: see `use_impl`.

    Returns:
        [N, L, D], in the dtype of x.
    """
    E, D = weight1.shape
    require(x.shape[-1] == D, "mlp", "x", f"[N, L, {D}]", x)
    require(bias1.shape == (E,), "mlp", "bias1", f"[{E}]", bias1)
    require(weight2.shape == (D, E), "mlp", "weight2", f"[{D}, {E}]", weight2)
    require(bias2.shape == (D,), "mlp", "bias2", f"[{D}]", bias2)
    for name, vector in (("norm_weight", norm_weight), ("norm_bias", norm_bias), ("gamma", gamma)):
        require(vector is None or vector.shape == (D,), "mlp", name, f"[{D}]", vector)
    require(
        (norm_weight is None) == (norm_bias is None), "mlp", "norm_bias", "one where there is norm_weight", norm_bias
    )
    require(gamma is None or norm_weight is not None, "mlp", "gamma", "None where there is no norm_weight", gamma)
    options = {"norm_weight": norm_weight, "norm_bias": norm_bias, "gamma": gamma, "eps": eps}
    return _op(impl, x.device, x, weight1, bias1, weight2, bias2, **options)


def _torch(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    gamma: Tensor | None,
    eps: float,
) -> Tensor:
    dtype = weight1.dtype
    rows = x if norm_weight is None else F.layer_norm(x, norm_weight.shape, norm_weight, norm_bias, eps).to(dtype)
    branch = linear(linear(rows, weight1, bias1, gelu=True), weight2, bias2)
    if norm_weight is None:
        return branch
    return x + branch if gamma is None else torch.addcmul(x, gamma, branch)


_PARAMETERS = (
    "Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor? norm_weight, Tensor? norm_bias, Tensor? gamma"
)


_LEFT = "Tensor mean, Tensor rstd, Tensor rows, Tensor hidden"  # what the forward pass leaves for the backward pass


@operator(f"mlp_triton(Tensor x, {_PARAMETERS}, float eps, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
def _forward(x, *parameters_and_more):
    *parameters, eps, keep = parameters_and_more
    rows = x.contiguous().view(-1, x.shape[-1])  # [N * L, D]
    out, *left = _triton.kernels("mlp").forward(rows, *contiguous(parameters), eps, keep)
    return out.view(x.shape), *left


@fake(_forward)
def _(x, weight1, bias1, weight2, bias2, norm_weight, norm_bias, gamma, eps, keep):
    count, (E, D) = x.shape[:-1].numel(), weight1.shape
    normed = 0 if norm_weight is None else count
    converted = count if keep and (normed or x.dtype != weight1.dtype) else 0
    mean, rstd = (x.new_empty(normed, dtype=torch.float32) for _ in range(2))
    rows, hidden = weight1.new_empty(converted, D), weight1.new_empty(count if keep else 0, E)
    return x.new_empty(x.shape), mean, rstd, rows, hidden


@operator(f"mlp_triton_backward(Tensor grad_out, Tensor x, {_LEFT}, {_PARAMETERS}) -> Tensor[]")
def _backward(grad_out, x, mean, rstd, rows, hidden, *parameters):
    streams = (t.contiguous().view(-1, x.shape[-1]) for t in (grad_out, x))
    kernels, left = _triton.kernels("mlp"), (mean, rstd, rows, hidden)
    grad_x, *parameter_grads = kernels.backward(*streams, *left, *contiguous(parameters))
    return [grad_x.view(x.shape), *present(parameter_grads)]


@fake(_backward)
def _(grad_out, x, mean, rstd, rows, hidden, *parameters):
    return like((x, *parameters))


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, *parameters, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *output[1:], *parameters)


def _gradients(ctx: Any, grad_out: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    x, mean, rstd, rows, hidden, *parameters = ctx.saved_tensors
    grads = _backward(grad_out, x, mean, rstd, rows, hidden, *parameters)
    return *one_each(grads, (x, *parameters)), None, None


differentiate(_forward, _gradients, _save)


def _run_triton(*args: Any, **options: Any) -> Tensor:
    tensors = (value for value in (*args, *options.values()) if isinstance(value, Tensor))
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return _forward(*args, **options, keep=keep)[0]


_op = register("mlp", reference=_reference, torch=_torch, triton=_run_triton, reasons={"triton": _triton.reasons()})
