"""Convolution over frames. Contract: `s2vfast.reference.temporal_conv`.

On a CPU it is done in the frequencies of a window that holds the clip and half a kernel, so that nothing wraps round:
the
discrete Fourier transform of T frames, a matrix product a frequency, and the transform back. Three real products do a
complex one, and their sums stand in the transforms' matrices, so that the whole is y = B ((E x) * (G w)) with three
constant matrices (a bilinear algorithm: Winograd, "Arithmetic complexity of computations", 1980). For 9 taps and 64
frames that is a sixth of the multiplications, and half to a quarter of the time of PyTorch's convolution.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops._dispatch import register, require
from s2vfast.reference.temporal_conv import temporal_conv as _reference


def temporal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    impl: str | None = None,
) -> Tensor:
    """y[t] = bias + sum over k of x[t * stride + (k - K // 2) * dilation] @ weight[k]; frames beyond the ends are zero.

    Args:
        x: [T, R, C], R rows (tracks times joints) of every frame.
        weight: [K, C, D], K odd, of x's dtype.
        bias: [D], or None.
        stride: frames from one result to the next.
        dilation: frames from one tap to the next.
        impl: implementation; None: see `use_impl`.

    Returns:
        [ceil(T / stride), R, D].
    """
    require(x.ndim == 3 and x.shape[0] > 0, "temporal_conv", "x", "[T, R, C]", x)
    C = x.shape[-1]
    fits = weight.ndim == 3 and weight.shape[0] % 2 == 1 and weight.shape[1] == C
    require(fits, "temporal_conv", "weight", f"[K, {C}, D] with K odd", weight)
    D = weight.shape[2]
    require(bias is None or bias.shape == (D,), "temporal_conv", "bias", f"[{D}]", bias)
    return _op(impl, x.device, x, weight, bias, stride=stride, dilation=dilation)


def _torch(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, dilation: int) -> Tensor:
    if x.is_cuda:
        return _reference(x, weight, bias, stride, dilation)
    T, R, C = x.shape
    K, _, D = weight.shape
    steps = -(-T // stride)
    window = _window(T, K, dilation)
    products = 3 * (window // 2) - 1  # of matrices, in place of K a step
    transforms = products * (T * C + steps * D)
    if products * C * D + transforms < steps * K * C * D:
        forward, taps, back = (matrix.to(x) for matrix in _matrices(T, K, stride, dilation))
        spectrum = (forward @ x.reshape(T, R * C)).view(products, R, C)
        weights = (taps @ weight.reshape(K, C * D)).view(products, C, D)
        spectrum = torch.bmm(spectrum, weights).view(products, R * D)
        y = back @ spectrum if bias is None else torch.addmm(bias.repeat(R), back, spectrum)
        return y.view(steps, R, D)
    pad = K // 2 * dilation
    padded = F.pad(x, (0, 0, 0, 0, pad, pad))
    stop = stride * (steps - 1) + 1
    columns = torch.cat([padded[k * dilation : k * dilation + stop : stride] for k in range(K)], dim=2)
    rows, matrix = columns.reshape(steps * R, K * C), weight.reshape(K * C, D)
    return (rows @ matrix if bias is None else torch.addmm(bias, rows, matrix)).view(steps, R, D)


def _window(frames: int, taps: int, dilation: int) -> int:
    """An even number of frames, at least those of the clip and half the kernel."""
    window = frames + taps // 2 * dilation
    return max(window + window % 2, 2)


@functools.lru_cache(maxsize=64)
def _matrices(frames: int, taps: int, stride: int, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
    """E [products, T], G [products, K] and B [steps, products] in float64."""
    window = _window(frames, taps, dilation)
    time = torch.arange(frames, dtype=torch.float64)
    lag = (torch.arange(taps, dtype=torch.float64) - taps // 2) * dilation
    steps = time[::stride]
    forward, kernel, back = [], [], []
    for frequency in range(window // 2 + 1):
        turn = 2.0 * math.pi * frequency / window
        real, imaginary = torch.cos(turn * time), -torch.sin(turn * time)  # of x
        w_real, w_imaginary = torch.cos(turn * lag), torch.sin(turn * lag)
        cosine, sine = torch.cos(turn * steps), torch.sin(turn * steps)
        if frequency in (0, window // 2):  # all of them real
            forward.append(real)
            kernel.append(w_real)
            back.append(cosine / window)
            continue
        # With a = (r + i) w_r, b = r (w_i - w_r), c = i (w_r + w_i): (r + i j)(w_r + w_i j) = (a - c) + (a + b) j.
        forward += [real + imaginary, real, imaginary]
        kernel += [w_real, w_imaginary - w_real, w_real + w_imaginary]
        back += [2 / window * (cosine - sine), -2 / window * sine, -2 / window * cosine]
    return torch.stack(forward), torch.stack(kernel), torch.stack(back, dim=1)


_op = register("temporal_conv", reference=_reference, torch=_torch)
