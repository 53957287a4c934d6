"""Dilated convolutions over time and a maximum, side by side. Contract: `s2vfast.reference.temporal_branches`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s2vfast import _extension
from s2vfast.ops import _native
from s2vfast.ops._custom import contiguous, differentiate, fake, operator
from s2vfast.ops._dispatch import register, require
from s2vfast.ops.batch_norm import batch_norm
from s2vfast.reference.temporal_branches import temporal_branches as _reference

_MOST_TAPS = 64


def temporal_branches(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilations: Sequence[int] = (1, 2),
    pool: int = 3,
    eps: float = 1e-5,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K convolutions over time and a maximum of the first E = (K + 1) b columns, after batch norm and ReLU of these.

    With z = relu(norm of x's first E columns), result i < K is the convolution of columns [i b, (i + 1) b) of z with
    weight[i] and dilations[i], and the last the largest of ``pool`` frames of the last b. Frames beyond the ends count
    as zero for a convolution, and not at all for the maximum.

    Args:
        x: [B, T, V, W], B tracks, T frames, V joints, W >= E.
        weight: [K, b, b, k], branch, out, in, tap; k odd.
        norm_weight: [E], or None: the columns are taken as they are, without norm and ReLU.
        norm_bias: [E], with ``norm_weight``.
        stride: of time.
        dilations: K of them.
        pool: frames of the maximum; odd.
        eps: added to the variance.
        impl: implementation; None: see `use_impl`.

    Returns:
        branches [B, T', V, E] with T' = ceil(T / stride); every stride-th frame of the columns from E on,
        [B, T', V, W - E]; and the rows' mean and biased variance, [E] each (without a norm [0]), without gradient.
    """
    op = "temporal_branches"
    good = weight.ndim == 4 and weight.shape[1] == weight.shape[2] and weight.shape[3] % 2 == 1
    require(good, op, "weight", "[K, b, b, k] with k odd", weight)
    K, b = weight.shape[:2]
    E = (K + 1) * b
    require(x.ndim == 4 and x.shape[1] > 0 and x.shape[3] >= E, op, "x", f"[B, T, V, W] with W >= {E}", x)
    require(len(dilations) == K and min(dilations, default=1) > 0, op, "dilations", f"{K} numbers from 1 on", dilations)
    require(pool % 2 == 1, op, "pool", "an odd number", pool)
    require(stride > 0, op, "stride", "a number from 1 on", stride)
    for name, value in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        good = value is None if norm_weight is None else value is not None and value.shape == (E,)
        require(good, op, name, "None" if norm_weight is None else f"[{E}]", value)
    options = {"stride": stride, "dilations": list(dilations), "pool": pool, "eps": eps}
    return _op(impl, x.device, x, weight, norm_weight, norm_bias, **options)


def _torch(
    x: Tensor, weight: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, *, eps: float, **options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """PyTorch's convolutions are the best that it has; its batch norm is better than the reference's."""
    if norm_weight is None or norm_bias is None:
        return _reference(x, weight, None, None, **options)
    E = len(norm_weight)
    z, mean, variance = batch_norm([x[..., :E]], norm_weight, norm_bias, relu=True, eps=eps, impl="torch")
    branches, *_ = _reference(z, weight, None, None, **options)
    return branches, x[:, :: options["stride"], :, E:], mean, variance


def _shape(x: Tensor, weight: Tensor, stride: int, dilations: list[int], pool: int) -> Any:
    B, T, V, W = x.shape
    return _extension.load().TemporalBranchesShape(
        tracks=B,
        frames=T,
        joints=V,
        columns=W,
        width=weight.shape[1],
        taps=weight.shape[3],
        stride=stride,
        pool=pool,
        dilations=dilations,
    )


def _results(
    x: Tensor, weight: Tensor, norm_weight: Tensor | None, stride: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    E = (weight.shape[0] + 1) * weight.shape[1]
    B, T, V, W = x.shape
    frames = (B, -(-T // stride), V)
    mean, variance = (x.new_empty(0 if norm_weight is None else E) for _ in range(2))
    return x.new_empty((*frames, E)), x.new_empty((*frames, W - E)), mean, variance


_OPTIONS = "int stride, int[] dilations, int pool, float eps"


@operator(
    f"temporal_branches_native(Tensor x, Tensor weight, Tensor? norm_weight, Tensor? norm_bias, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
def _native_op(x, weight, norm_weight, norm_bias, stride, dilations, pool, eps):
    x, weight, norm_weight, norm_bias = contiguous((x, weight, norm_weight, norm_bias))
    branches, remainder, mean, variance = results = _results(x, weight, norm_weight, stride)
    _extension.load().temporal_branches(
        _shape(x, weight, stride, dilations, pool),
        **_native.addresses(x=x, weight=weight, norm_weight=norm_weight, norm_bias=norm_bias),
        **_native.addresses(mean=mean, variance=variance, branches=branches, remainder=remainder),
        eps=eps,
        **_native.place(x),
    )
    return results


@fake(_native_op)
def _(x, weight, norm_weight, norm_bias, stride, dilations, pool, eps):
    return _results(x, weight, norm_weight, stride)


@operator(
    "temporal_branches_native_backward(Tensor grad, Tensor grad_remainder, Tensor x, Tensor weight, "
    f"Tensor? norm_weight, Tensor? norm_bias, Tensor mean, Tensor variance, {_OPTIONS}) -> Tensor[]"
)
def _native_backward(
    grad, grad_remainder, x, weight, norm_weight, norm_bias, mean, variance, stride, dilations, pool, eps
):
    grad, grad_remainder, x, weight = contiguous((grad, grad_remainder, x, weight))
    norm_weight, norm_bias = contiguous((norm_weight, norm_bias))
    K, b, _, taps = weight.shape
    parts = _extension.load().temporal_branches_parts(len(x))
    d_x, d_weight = torch.empty_like(x), x.new_empty((parts, K, taps, b, b))
    d_norm = [] if norm_weight is None else [torch.empty_like(norm_weight) for _ in range(2)]
    _extension.load().temporal_branches_backward(
        _shape(x, weight, stride, dilations, pool),
        **_native.addresses(x=x, weight=weight, norm_weight=norm_weight, norm_bias=norm_bias),
        **_native.addresses(mean=mean, variance=variance, grad=grad, grad_remainder=grad_remainder),
        **_native.addresses(d_x=d_x, d_weight=d_weight),
        **_native.addresses(**dict(zip(("d_norm_weight", "d_norm_bias"), d_norm, strict=False))),
        eps=eps,
        **_native.place(x),
    )
    return [d_x, d_weight.sum(0).permute(0, 3, 2, 1).contiguous(), *d_norm]


@fake(_native_backward)
def _(grad, grad_remainder, x, weight, norm_weight, norm_bias, *_):
    tensors = [x, weight, *([] if norm_weight is None else [norm_weight, norm_bias])]
    return [tensor.new_empty(tensor.shape) for tensor in tensors]


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, norm_weight, norm_bias, *ctx.options = inputs
    *_, mean, variance = output
    ctx.save_for_backward(x, weight, norm_weight, norm_bias, mean, variance)
    ctx.mark_non_differentiable(mean, variance)


def _gradients(ctx: Any, grad: Tensor, grad_remainder: Tensor, *_: Any) -> tuple[Any, ...]:
    d_x, d_weight, *d_norm = _native_backward(grad, grad_remainder, *ctx.saved_tensors, *ctx.options)
    return d_x, d_weight, *(d_norm or (None, None)), None, None, None, None


differentiate(_native_op, _gradients, _save)


def _run_native(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    *,
    stride: int,
    dilations: list[int],
    pool: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _native_op(x, weight, norm_weight, norm_bias, stride, dilations, pool, eps)


def _few_taps(x: Tensor, weight: Tensor, *_: Any, **options: Any) -> list[str]:
    return [] if weight.shape[3] <= _MOST_TAPS else [f"it takes {_MOST_TAPS} taps at most, not {weight.shape[3]}"]


_op = register(
    "temporal_branches",
    reference=_reference,
    torch=_torch,
    native=_run_native,
    reasons={"native": _native.reasons(_few_taps, floats=(torch.float32,), cuda=False)},
)
