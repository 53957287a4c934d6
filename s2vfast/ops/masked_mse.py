"""The loss at the masked tokens. Contract: `s2vfast.reference.masked_mse`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops import _triton
from s2vfast.ops._dispatch import register, require
from s2vfast.reference.masked_mse import masked_mse as _reference


def masked_mse(prediction: Tensor, target: Tensor, *, impl: str | None = None) -> Tensor:
    """Mean over all numbers of the squared difference.

    Args:
        prediction: [N, M, D], at the masked tokens.
        target: [N, M, D].
        impl: implementation; None: see `use_impl`.

    Returns:
        A scalar.
    """
    require(target.shape == prediction.shape, "masked_mse", "target", str(list(prediction.shape)), target)
    return _op(impl, prediction.device, prediction, target)


def _torch(prediction: Tensor, target: Tensor) -> Tensor:
    # Its backward pass wants both in one dtype.
    return F.mse_loss(prediction.to(target.dtype), target)


@torch.library.custom_op("s2vfast::masked_mse_triton", mutates_args=())
def _forward(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return _triton.kernels("masked_mse").forward(prediction.contiguous(), target.contiguous())


@_forward.register_fake
def _(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return prediction.new_empty((), dtype=torch.float32), prediction.new_empty(prediction.shape)


@torch.library.custom_op("s2vfast::masked_mse_triton_backward", mutates_args=())
def _backward(grad: Tensor, upstream: Tensor, need_prediction: bool, need_target: bool) -> list[Tensor]:
    found = _triton.kernels("masked_mse").backward(grad, upstream, need_prediction, need_target)
    return [gradient for gradient in found if gradient is not None]


@_backward.register_fake
def _(grad: Tensor, upstream: Tensor, need_prediction: bool, need_target: bool) -> list[Tensor]:
    return [torch.empty_like(grad) for need in (need_prediction, need_target) if need]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, upstream: Tensor, _: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    need_prediction, need_target = ctx.needs_input_grad
    found = iter(_backward(ctx.saved_tensors[0], upstream, need_prediction, need_target))
    return next(found) if need_prediction else None, next(found) if need_target else None


_forward.register_autograd(_gradients, setup_context=_save)


def _run_triton(prediction: Tensor, target: Tensor) -> Tensor:
    return _forward(prediction, target)[0]


_op = register(
    "masked_mse",
    reference=_reference,
    torch=_torch,
    triton=_run_triton,
    reasons={"triton": _triton.reasons()},
)
