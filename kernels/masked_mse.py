"""The loss at the masked tokens: squared error and its gradient in one pass.

Memory: reads prediction and target once, writes the gradient once; bound by bandwidth. Sums are made in a fixed order
(a partial sum a program, then these by one program), so the loss does not change from run to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import cdiv, configuration, dtype_name, launch


@triton.jit
def _forward_kernel(prediction_ptr, target_ptr, grad_ptr, partial_ptr, numel, scale, BLOCK: tl.constexpr):
    """partial[i] = sum of squares of block i; grad = 2 / numel * (prediction - target)."""
    block = tl.program_id(0)
    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    p = tl.load(prediction_ptr + at, mask=inside, other=0.0).to(tl.float32)
    t = tl.load(target_ptr + at, mask=inside, other=0.0).to(tl.float32)
    difference = p - t
    tl.store(grad_ptr + at, difference * scale, mask=inside)
    tl.store(partial_ptr + block, tl.sum(difference * difference, axis=0))


@triton.jit
def _mean_kernel(partial_ptr, loss_ptr, blocks, factor, BLOCK: tl.constexpr):
    """loss = factor * the sum of partial."""
    acc = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, blocks, BLOCK):
        at = start + tl.arange(0, BLOCK)
        acc += tl.load(partial_ptr + at, mask=at < blocks, other=0.0)
    tl.store(loss_ptr, tl.sum(acc, axis=0) * factor)


@triton.jit
def _backward_kernel(grad_ptr, upstream_ptr, grad_prediction_ptr, grad_target_ptr, numel, BLOCK: tl.constexpr):
    """The gradient of the loss times what comes from above; either output may be None."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    value = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32) * tl.load(upstream_ptr).to(tl.float32)
    if grad_prediction_ptr is not None:
        tl.store(grad_prediction_ptr + at, value, mask=inside)
    if grad_target_ptr is not None:
        tl.store(grad_target_ptr + at, -value, mask=inside)


def forward(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The mean squared difference, a float32 scalar, and its gradient by the prediction in the prediction's dtype.

    Args:
        prediction: [N, U, D], contiguous.
        target: [N, U, D], contiguous.
    """
    numel = prediction.numel()
    options = configuration("masked_mse", "forward", prediction.device, dtype=dtype_name(prediction.dtype))
    blocks = cdiv(numel, options["BLOCK"])
    grad = torch.empty_like(prediction)
    partial = torch.empty(blocks, dtype=torch.float32, device=prediction.device)
    loss = torch.empty((), dtype=torch.float32, device=prediction.device)
    # Over nothing the mean is NaN, as in PyTorch.
    factor = 1.0 / numel if numel else float("nan")
    launch(_forward_kernel, (blocks,), prediction, target, grad, partial, numel, 2.0 * factor, **options)
    options = configuration("masked_mse", "mean", prediction.device)
    launch(_mean_kernel, (1,), partial, loss, blocks, factor, **options)
    return loss, grad


def backward(
    grad: Tensor, upstream: Tensor, need_prediction: bool, need_target: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by prediction and target, where needed.

    Args:
        grad: [N, U, D], from `forward`.
        upstream: gradient of the loss, a scalar.
        need_prediction: whether the first is wanted.
        need_target: whether the second is wanted.
    """
    options = configuration("masked_mse", "backward", grad.device, dtype=dtype_name(grad.dtype))
    by_prediction = torch.empty_like(grad) if need_prediction else None
    by_target = torch.empty_like(grad) if need_target else None
    blocks = cdiv(grad.numel(), options["BLOCK"])
    launch(_backward_kernel, (blocks,), grad, upstream, by_prediction, by_target, grad.numel(), **options)
    return by_prediction, by_target
