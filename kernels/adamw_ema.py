"""One optimizer step over flat buffers in three launches: sums of squares, norm and coefficients, then all updates.

Memory: reads the gradient once for its norm; then reads gradient, both moments, parameter and teacher once and writes
each once (the gradient only where it is clipped): 36 to 40 bytes a parameter, bound by bandwidth. The sums are made in
a fixed order. Bias corrections are computed in float64: 1 - beta2**step would lose its digits in float32. Whether
anything changes is decided on the device.
"""

from __future__ import annotations

import functools
import math
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import cdiv, configuration, launch


@triton.jit
def _squares_kernel(grad_ptr, partial_ptr, numel, BLOCK: tl.constexpr):
    """partial[i] = sum of squares of block i."""
    block = tl.program_id(0)
    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(grad_ptr + at, mask=at < numel, other=0.0)
    tl.store(partial_ptr + block, tl.sum(g * g, axis=0))


@triton.jit
def _number(pointer, low, high):
    """A float64 from the device or, where the pointer is None, from the two words of its bits."""
    if pointer is None:
        bits = (high.to(tl.int64) << 32) | low.to(tl.uint32).to(tl.int64)
        value = bits.to(tl.float64, bitcast=True)
    else:
        value = tl.load(pointer).to(tl.float64)
    return value


@triton.jit(do_not_specialize=["blocks", "step0", "step1", "lr0", "lr1", "tau0", "tau1"])
def _coefficients_kernel(
    partial_ptr,
    norm_ptr,
    coefficients_ptr,
    step_ptr,
    lr_ptr,
    tau_ptr,
    step0,
    step1,
    lr0,
    lr1,
    tau0,
    tau1,
    blocks,
    LOG2_BETA1: tl.constexpr,
    LOG2_BETA2: tl.constexpr,
    WEIGHT_DECAY: tl.constexpr,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The norm, and in float32 [any update, clip, decay, step size, root of the second correction, tau, 1 - tau]."""
    at = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, blocks, BLOCK):
        sums += tl.load(partial_ptr + start + at, mask=start + at < blocks, other=0.0).to(tl.float64)
    total = tl.sqrt(tl.sum(sums, axis=0))
    tl.store(norm_ptr, total.to(tl.float32))

    # A NaN is not below infinity either.
    finite = total < float("inf")
    tl.store(coefficients_ptr, finite.to(tl.float32))
    # PyTorch's clip_grad_norm_ adds 1e-6 to the norm; so did the published run.
    if CLIP > 0.0:
        tl.store(coefficients_ptr + 1, tl.minimum(CLIP / (total + 1e-6), 1.0).to(tl.float32))
    else:
        tl.store(coefficients_ptr + 1, 1.0)
    step, lr, tau = _number(step_ptr, step0, step1), _number(lr_ptr, lr0, lr1), _number(tau_ptr, tau0, tau1)
    correction1 = 1.0 - tl.exp2(step * LOG2_BETA1)
    correction2 = 1.0 - tl.exp2(step * LOG2_BETA2)
    tl.store(coefficients_ptr + 2, (1.0 - lr * WEIGHT_DECAY).to(tl.float32))
    tl.store(coefficients_ptr + 3, (lr / correction1).to(tl.float32))
    tl.store(coefficients_ptr + 4, tl.sqrt(correction2).to(tl.float32))
    tl.store(coefficients_ptr + 5, tau.to(tl.float32))
    tl.store(coefficients_ptr + 6, (1.0 - tau).to(tl.float32))


@triton.jit
def _update_kernel(
    param_ptr,
    grad_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    teacher_ptr,
    chunks_ptr,
    coefficients_ptr,
    averaged,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Clip, AdamW and EMA of one chunk [start, stop) of a span; nothing where the norm was not finite."""
    chunk_ptr = chunks_ptr + tl.program_id(0) * 3
    start, stop = tl.multiple_of(tl.load(chunk_ptr), ALIGN), tl.multiple_of(tl.load(chunk_ptr + 1), ALIGN)
    at = start + tl.arange(0, BLOCK)
    inside = at < stop
    followed = inside & (at < averaged)
    g = tl.load(grad_ptr + at, mask=inside, other=0.0)
    m = tl.load(exp_avg_ptr + at, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq_ptr + at, mask=inside, other=0.0)
    p = tl.load(param_ptr + at, mask=inside, other=0.0)
    old = tl.load(teacher_ptr + at, mask=followed, other=0.0)

    # Where nothing is to change, nothing is below the end of what is written.
    end = tl.where(tl.load(coefficients_ptr) > 0.0, stop, start)
    clip = tl.load(coefficients_ptr + 1)
    decay_factor = tl.where(tl.load(chunk_ptr + 2) != 0, tl.load(coefficients_ptr + 2), 1.0)
    step_size, bias_corr2_sqrt = tl.load(coefficients_ptr + 3), tl.load(coefficients_ptr + 4)
    g *= clip
    m = beta1 * m + one_minus_beta1 * g
    v = beta2 * v + one_minus_beta2 * g * g
    p = p * decay_factor - step_size * tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), bias_corr2_sqrt) + eps)
    average = tl.load(coefficients_ptr + 5) * old + tl.load(coefficients_ptr + 6) * p
    tl.store(grad_ptr + at, g, mask=at < tl.where(clip != 1.0, end, start))
    tl.store(exp_avg_ptr + at, m, mask=at < end)
    tl.store(exp_avg_sq_ptr + at, v, mask=at < end)
    tl.store(param_ptr + at, p, mask=at < end)
    tl.store(teacher_ptr + at, average, mask=(at < end) & (at < averaged))


def forward(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    teacher: Tensor,
    spans: tuple[tuple[int, int, int], ...],
    *,
    step: Tensor | float,
    lr: Tensor | float,
    tau: Tensor | float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    clip: float,
) -> Tensor:
    """Update all buffers in place; returns the norm, a float32 scalar on the device.

    Args:
        param: float32 [P], contiguous like all buffers.
        grad: float32 [P].
        exp_avg: float32 [P].
        exp_avg_sq: float32 [P].
        teacher: float32 [Q].
        spans: (start, stop, whether it decays), ascending, over all of [0, P).
        step: 1 for the first step; like the next two a number, or a scalar on the device that is read there.
        lr: learning rate.
        tau: the teacher's decay.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: of spans that decay.
        clip: largest norm; 0 for none.
    """
    device, numel = param.device, param.numel()
    options = configuration("adamw_ema", "squares", device)
    blocks = cdiv(numel, options["BLOCK"])
    partial = param.new_empty(blocks)
    launch(_squares_kernel, (blocks,), grad, partial, numel, **options)

    norm, coefficients = param.new_empty(()), param.new_empty(7)
    scalars = [value if isinstance(value, Tensor) else None for value in (step, lr, tau)]
    words = [word for value in (step, lr, tau) for word in _bits(0.0 if isinstance(value, Tensor) else value)]
    launch(
        _coefficients_kernel,
        (1,),
        partial,
        norm,
        coefficients,
        *scalars,
        *words,
        blocks,
        LOG2_BETA1=math.log2(beta1) if beta1 else -math.inf,
        LOG2_BETA2=math.log2(beta2) if beta2 else -math.inf,
        WEIGHT_DECAY=float(weight_decay),
        CLIP=float(clip),
        **configuration("adamw_ema", "coefficients", device),
    )

    options = configuration("adamw_ema", "update", device)
    chunks, align = _chunks(spans, options["BLOCK"], device)
    launch(
        _update_kernel,
        (len(chunks),),
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        teacher,
        chunks,
        coefficients,
        teacher.numel(),
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        eps,
        ALIGN=align,
        **options,
    )
    return norm


def _bits(value: float) -> tuple[int, int]:
    """Low and high word of a float64, signed: an argument that is a float would arrive as a float32."""
    return struct.unpack("<ii", struct.pack("<d", value))


@functools.lru_cache(maxsize=32)
def _chunks(spans: tuple[tuple[int, int, int], ...], block: int, device: torch.device) -> tuple[Tensor, int]:
    """int64 [chunks, 3] on the device: start, stop and decay of pieces of spans; and what divides all starts and stops.

    Made once for a model: a step copies nothing to the device.
    """
    table = [
        (first, min(first + block, stop), decay) for start, stop, decay in spans for first in range(start, stop, block)
    ]
    align = math.gcd(16, block, *(bound for start, stop, _ in spans for bound in (start, stop)))
    return torch.tensor(table, dtype=torch.int64).reshape(-1, 3).to(device), align
