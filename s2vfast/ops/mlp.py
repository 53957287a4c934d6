"""The feed-forward branch. Contract: `s2vfast.reference.mlp`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops import _triton
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
    return _op(impl, x.device, x, weight1, bias1, weight2, bias2, norm_weight, norm_bias, gamma, eps)


def _torch(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
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


@torch.library.custom_op("s2vfast::mlp_triton", mutates_args=())
def _forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    gamma: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.contiguous().view(-1, x.shape[-1])  # [M, D]
    vectors = [v if v is None else v.contiguous() for v in (norm_weight, norm_bias, gamma)]
    matrices = [t.contiguous() for t in (weight1, bias1, weight2, bias2)]
    out, mean, rstd = _triton.kernels("mlp").forward(rows, *matrices, *vectors, eps)
    return out.view(x.shape), mean, rstd


@_forward.register_fake
def _(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    gamma: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = 0 if norm_weight is None else x.shape[:-1].numel()
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


@torch.library.custom_op("s2vfast::mlp_triton_backward", mutates_args=())
def _backward(
    grad_out: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    gamma: Tensor | None,
) -> list[Tensor]:
    D = x.shape[-1]
    vectors = [v if v is None else v.contiguous() for v in (norm_weight, norm_bias, gamma)]
    matrices = [t.contiguous() for t in (weight1, bias1, weight2, bias2)]
    by_x, *others = _triton.kernels("mlp").backward(
        grad_out.contiguous().view(-1, D), x.contiguous().view(-1, D), mean, rstd, *matrices, *vectors
    )
    return [by_x.view(x.shape), *(gradient for gradient in others if gradient is not None)]


@_backward.register_fake
def _(
    grad_out: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    gamma: Tensor | None,
) -> list[Tensor]:
    tensors = (x, weight1, bias1, weight2, bias2, norm_weight, norm_bias, gamma)
    return [tensor.new_empty(tensor.shape) for tensor in tensors if tensor is not None]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, *others, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], output[2], *others)


def _gradients(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, _, _, *others = saved = ctx.saved_tensors
    found = iter(_backward(grad_out, *saved))
    return (*(None if tensor is None else next(found) for tensor in (x, *others)), None)


_forward.register_autograd(_gradients, setup_context=_save)


def _run_triton(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    gamma: Tensor | None,
    eps: float,
) -> Tensor:
    return _forward(x, weight1, bias1, weight2, bias2, norm_weight, norm_bias, gamma, eps)[0]


_op = register("mlp", reference=_reference, torch=_torch, triton=_run_triton, reasons={"triton": _triton.reasons()})
