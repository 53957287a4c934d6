"""One optimizer step over flat buffers: clip by the global norm, AdamW, EMA of the teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """A stretch [start, stop) of the flat parameters that is treated alike."""

    start: int
    stop: int
    decay: bool


def adamw_ema(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    teacher: Tensor,
    spans: list[Span],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    clip: float,
    tau: float,
) -> Tensor:
    """Clip, AdamW (Loshchilov & Hutter, ICLR 2019), then teacher <- tau teacher + (1 - tau) student, all in place.

    Where the gradient's norm is not finite nothing is changed.

    Args:
        param: [P], parameters; the teacher's counterparts come first.
        grad: [P], clipped in place.
        exp_avg: [P], first moments.
        exp_avg_sq: [P], second moments.
        teacher: [Q], Q <= P, the average of param[:Q].
        spans: cover [0, P) in ascending order.
        step: 1 for the first step.
        lr: learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay of spans with ``decay``.
        clip: largest global norm; 0 for none.
        tau: the teacher's decay.

    Returns:
        The global norm of the gradient before clipping, a scalar.
    """
    norm = torch.sqrt(grad.square().sum())
    if not math.isfinite(norm.item()):
        return norm
    # PyTorch's clip_grad_norm_ adds 1e-6 to the norm; so did the published run.
    if clip:
        grad.mul_(min(1.0, clip / (norm.item() + 1e-6)))
    for span in spans:
        part = slice(span.start, span.stop)
        g = grad[part]
        if span.decay:
            param[part] = param[part] * (1.0 - lr * weight_decay)
        exp_avg[part] = beta1 * exp_avg[part] + (1.0 - beta1) * g
        exp_avg_sq[part] = beta2 * exp_avg_sq[part] + (1.0 - beta2) * g * g
        first = exp_avg[part] / (1.0 - beta1**step)
        second = exp_avg_sq[part] / (1.0 - beta2**step)
        param[part] = param[part] - lr * first / (torch.sqrt(second) + eps)
    ema(teacher, param[: teacher.numel()], tau)
    return norm


def ema(teacher: Tensor, student: Tensor, tau: float) -> None:
    """teacher <- tau * teacher + (1 - tau) * student, in place; any one shape."""
    teacher.copy_(tau * teacher + (1.0 - tau) * student)
