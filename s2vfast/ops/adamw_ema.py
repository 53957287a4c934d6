"""One optimizer step over flat buffers. Contract: `s2vfast.reference.adamw_ema`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from s2vfast import _extension
from s2vfast.ops import _native, _triton
from s2vfast.ops._custom import contiguous, fake, operator
from s2vfast.ops._dispatch import register, require
from s2vfast.reference.adamw_ema import Span
from s2vfast.reference.adamw_ema import adamw_ema as _reference

__all__ = ["Span", "adamw_ema"]

_ROW = 2**14


def adamw_ema(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    teacher: Tensor,
    spans: list[Span],
    *,
    step: int | Tensor,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    clip: float,
    tau: float | Tensor,
    impl: str | None = None,
) -> Tensor:
    """Clip by the global norm, AdamW, EMA of the teacher, in place. A non-finite norm changes nothing.

    AdamW: Loshchilov & Hutter, ICLR 2019. step, lr and tau may be scalars on the device of the parameters: a captured
    CUDA graph then reads what they are at each replay.

    Args:
        param: [P], parameters; the teacher's counterparts come first.
        grad: [P], clipped in place.
        exp_avg: [P], first moments.
        exp_avg_sq: [P], second moments.
        teacher: [Q], Q <= P, the average of param[:Q].
        spans: cover [0, P) in ascending order.
        step: 1 for the first step; a number or a tensor of no dimension.
        lr: learning rate, likewise.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay of spans with ``decay``.
        clip: largest global norm; 0 for none.
        tau: the teacher's decay, likewise.
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
    for name, value in (("step", step), ("lr", lr), ("tau", tau)):
        good = not isinstance(value, Tensor) or (value.ndim == 0 and value.device == param.device)
        require(good, "adamw_ema", name, f"a number or a tensor [] on {param.device}", value)
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
    step: int | Tensor,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    clip: float,
    tau: float | Tensor,
) -> Tensor:
    norm = global_norm(grad)
    # No question to the host: where the norm is not finite, everything is multiplied by one or added zero times.
    bad = ~torch.isfinite(norm)
    if clip:
        grad.mul_((clip / (norm + 1e-6)).clamp_(max=1.0).masked_fill_(bad, 1.0))
    found_inf = bad.to(torch.float32)
    # The function counts up before it computes.
    previous_step = torch.as_tensor(step, device=param.device).to(torch.float32) - 1.0
    for decay in (True, False):
        parts = [slice(span.start, span.stop) for span in spans if span.decay == decay]
        if parts:
            adamw(
                [param[p] for p in parts],
                [grad[p] for p in parts],
                [exp_avg[p] for p in parts],
                [exp_avg_sq[p] for p in parts],
                [],
                [previous_step.clone() for _ in parts],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=lr.to(torch.float32) if isinstance(lr, Tensor) else lr,
                weight_decay=weight_decay if decay else 0.0,
                eps=eps,
                maximize=False,
                found_inf=found_inf,
            )
    lerp_weight = torch.as_tensor(1.0 - tau, device=param.device).to(param.dtype).masked_fill(bad, 0.0)
    teacher.lerp_(param[: teacher.numel()], lerp_weight)
    return norm


def global_norm(grad: Tensor) -> Tensor:
    """The norm of the norms of short rows: in float32 one sum over millions of squares is off by some 2e-4 on a CPU."""
    end = grad.numel() - grad.numel() % _ROW
    rows = torch.linalg.vector_norm(grad[:end].view(-1, _ROW), dim=1)
    return torch.linalg.vector_norm(torch.cat([rows, torch.linalg.vector_norm(grad[end:])[None]]))


def _on_host(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function with step, lr and tau as numbers, wherever they were."""

    @functools.wraps(function)
    def run(*buffers: Any, step: int | Tensor, lr: float | Tensor, tau: float | Tensor, **options: float) -> Tensor:
        return function(*buffers, step=int(step), lr=float(lr), tau=float(tau), **options)

    return run


_ARGUMENTS = (
    "(Tensor(a!) param, Tensor(b!) grad, Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, Tensor(e!) teacher, int[] spans, "
    "Tensor? step, Tensor? lr, Tensor? tau, float step_number, float lr_number, float tau_number, float beta1, "
    "float beta2, float eps, float weight_decay, float clip) -> Tensor"
)
_OPTIONS = ("beta1", "beta2", "eps", "weight_decay", "clip")


def _copy_back(buffers: tuple[Tensor, ...], updated: list[Tensor]) -> None:
    """Into the buffers that were not contiguous."""
    for buffer, new in zip(buffers, updated, strict=True):
        if new is not buffer:
            buffer.copy_(new)


@operator(f"adamw_ema_triton{_ARGUMENTS}")
def _triton_op(*args):
    buffers, spans, scalars, numbers, options = args[:5], args[5], args[6:9], args[9:12], args[12:]
    updated = contiguous(buffers)
    pairs = zip(("step", "lr", "tau"), scalars, numbers, strict=True)
    norm = _triton.kernels("adamw_ema").forward(
        *updated,
        tuple(zip(spans[::3], spans[1::3], spans[2::3], strict=True)),
        **{name: number if tensor is None else tensor for name, tensor, number in pairs},
        **dict(zip(_OPTIONS, options, strict=True)),
    )
    _copy_back(buffers, updated)
    return norm


def _with_flat_arguments(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*args: Any, step: int | Tensor, lr: float | Tensor, tau: float | Tensor, **options: float) -> Tensor:
        *buffers, spans = args
        # A schema has no unions: each of these travels as a tensor, or as None and a number.
        scalars = [value if isinstance(value, Tensor) else None for value in (step, lr, tau)]
        numbers = [0.0 if isinstance(value, Tensor) else float(value) for value in (step, lr, tau)]
        flat = [number for span in spans for number in (span.start, span.stop, int(span.decay))]
        return op(*buffers, flat, *scalars, *numbers, **options)

    return run


@operator(f"adamw_ema_native{_ARGUMENTS}")
def _native_op(*args):
    buffers, spans, scalars, numbers, options = args[:5], args[5], args[6:9], args[9:12], args[12:]
    updated = contiguous(buffers)
    param, *_, teacher = updated
    table = _span_table(tuple(spans), param.device)
    # Held here until the call has been made.
    doubles = [None if value is None else value.to(torch.float64) for value in scalars]
    extension = _extension.load()
    partial = param.new_empty((extension.adamw_ema_partials(param.numel()),), dtype=torch.float64)
    norm = param.new_empty(())
    extension.adamw_ema(
        **_native.addresses(**dict(zip(("param", "grad", "exp_avg", "exp_avg_sq", "teacher"), updated, strict=True))),
        **_native.addresses(spans=table, partial=partial, norm=norm),
        **_native.addresses(**dict(zip(("step_at", "lr_at", "tau_at"), doubles, strict=True))),
        numel=param.numel(),
        teacher_numel=teacher.numel(),
        span_count=len(table),
        **dict(zip(("step", "lr", "tau"), numbers, strict=True)),
        **dict(zip(_OPTIONS, options, strict=True)),
        **_native.place(param),
    )
    _copy_back(buffers, updated)
    return norm


@fake(_native_op)
@fake(_triton_op)
def _(param, *_):
    return param.new_empty(())


@functools.lru_cache(maxsize=16)
def _span_table(spans: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 [spans, 3]: start, stop, whether it decays; made once, as a step of a captured graph copies nothing."""
    return torch.tensor(spans, dtype=torch.int64).reshape(-1, 3).to(device)


def _float32_buffers(*buffers: object, **_: object) -> list[str]:
    dtypes = {str(buffer.dtype)[6:] for buffer in buffers if isinstance(buffer, Tensor)} - {"float32"}
    return [f"it takes float32 buffers, not {' and '.join(sorted(dtypes))}"] if dtypes else []


_op = register(
    "adamw_ema",
    reference=_on_host(_reference),
    torch=_torch,
    triton=_with_flat_arguments(_triton_op),
    native=_with_flat_arguments(_native_op),
    reasons={
        "triton": _triton.reasons(_float32_buffers, floats=(torch.float16, *_triton.FLOATS, torch.float64)),
        "native": _native.reasons(_float32_buffers, floats=(torch.float16, *_native.FLOATS, torch.float64)),
    },
)
