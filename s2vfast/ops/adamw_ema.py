"""One optimizer step over flat buffers. Contract: `s2vfast.reference.adamw_ema`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from s2vfast.ops._dispatch import register, require
from s2vfast.reference.adamw_ema import Span
from s2vfast.reference.adamw_ema import adamw_ema as _reference

__all__ = ["Span", "adamw_ema"]


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
    impl: str | None = None,
) -> Tensor:
    """Clip by the global norm, AdamW, EMA of the teacher, in place. A non-finite norm changes nothing.

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
        impl: implementation; None: see `use_impl`.

    Returns:
        The global norm of the gradient before clipping, a scalar.
    """
    for name, buffer in (("grad", grad), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        require(buffer.shape == param.shape, "adamw_ema", name, str(list(param.shape)), buffer)
    require(teacher.numel() <= param.numel(), "adamw_ema", "teacher", f"at most {param.numel()} numbers", teacher)
    ends = [0, *(span.stop for span in spans)]
    covered = ends[-1] == param.numel() and [span.start for span in spans] == ends[:-1]
    require(covered, "adamw_ema", "spans", f"spans that cover [0, {param.numel()}) in order", spans)
    options = {"step": step, "lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps}
    options |= {"weight_decay": weight_decay, "clip": clip, "tau": tau}
    return _op(impl, param.device, param, grad, exp_avg, exp_avg_sq, teacher, spans, **options)


def _torch(
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
    norm = torch.linalg.vector_norm(grad)
    if not torch.isfinite(norm):
        return norm
    if clip:
        grad.mul_((clip / (norm + 1e-6)).clamp_(max=1.0))
    for decay in (True, False):
        parts = [slice(span.start, span.stop) for span in spans if span.decay == decay]
        if parts:
            adamw(
                [param[p] for p in parts],
                [grad[p] for p in parts],
                [exp_avg[p] for p in parts],
                [exp_avg_sq[p] for p in parts],
                [],
                # The function counts up before it computes.
                [torch.tensor(float(step - 1), device=param.device) for _ in parts],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=lr,
                weight_decay=weight_decay if decay else 0.0,
                eps=eps,
                maximize=False,
            )
    teacher.lerp_(param[: teacher.numel()], 1.0 - tau)
    return norm


_op = register("adamw_ema", reference=_reference, torch=_torch)
