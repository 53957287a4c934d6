"""The loss at the masked tokens. Contract: `s2vfast.reference.masked_mse`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops import _triton
from s2vfast.ops._custom import contiguous, differentiate, fake, operator, present
from s2vfast.ops._dispatch import register, require
from s2vfast.reference.masked_mse import masked_mse as _reference


def masked_mse(prediction: Tensor, target: Tensor, *, impl: str | None = None) -> Tensor:
    """Mean over all numbers of the squared difference.

    Args:
        prediction: [N, U, D], at the masked tokens.
        target: [N, U, D].
        impl: implementation; None: see `use_impl`.

    Returns:
        A scalar.
    """
    require(target.shape == prediction.shape, "masked_mse", "target", str(list(prediction.shape)), target)
    return _op(impl, prediction.device, prediction, target)


def _torch(prediction: Tensor, target: Tensor) -> Tensor:
    # Its backward pass wants both in one dtype.
    return F.mse_loss(prediction.to(target.dtype), target)


@operator("masked_mse_triton(Tensor prediction, Tensor target) -> (Tensor, Tensor)")
def _forward(*tensors):
    return _triton.kernels("masked_mse").forward(*contiguous(tensors))


@fake(_forward)
def _(prediction, target):
    return prediction.new_empty((), dtype=torch.float32), prediction.new_empty(prediction.shape)


@operator(
    "masked_mse_triton_backward(Tensor grad, Tensor upstream, bool need_prediction, bool need_target) -> Tensor[]"
)
def _backward(*args):
    return present(_triton.kernels("masked_mse").backward(*args))


@fake(_backward)
def _(grad, upstream, *needs):
    return [torch.empty_like(grad) for need in needs if need]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, upstream: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = iter(_backward(*ctx.saved_tensors, upstream, *ctx.needs_input_grad))
    return tuple(next(gradients) if need else None for need in ctx.needs_input_grad)


differentiate(_forward, _gradients, _save)


def _run_triton(prediction: Tensor, target: Tensor) -> Tensor:
    return _forward(prediction, target)[0]


_op = register(
    "masked_mse",
    reference=_reference,
    torch=_torch,
    triton=_run_triton,
    reasons={"triton": _triton.reasons()},
)
