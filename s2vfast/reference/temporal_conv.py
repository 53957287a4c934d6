"""A convolution over frames, the same for every row beside them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def temporal_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, dilation: int = 1) -> Tensor:
    """y[t] = bias + sum over k of x[t * stride + (k - K // 2) * dilation] @ weight[k]; frames beyond the ends are zero.

    Args:
        x: [T, R, C], R rows (tracks times joints) of every frame.
        weight: [K, C, D], K odd.
        bias: [D], or None.
        stride: frames from one result to the next.
        dilation: frames from one tap to the next.

    Returns:
        [ceil(T / stride), R, D].
    """
    if len(weight) == 1:  # not by the convolution's stride: see `s2vfast.reference.infogcn.TemporalConv`
        x, stride = x[::stride], 1
    rows = x.permute(1, 2, 0)  # [R, C, T]
    padding = weight.shape[0] // 2 * dilation
    y = F.conv1d(rows, weight.permute(2, 1, 0), bias, stride=stride, padding=padding, dilation=dilation)
    return y.permute(2, 0, 1)
