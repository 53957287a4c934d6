"""Branches over time of a graph convolution network, in the plainest PyTorch (after MS-G3D, Liu et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast.reference.batch_norm import batch_norm


def temporal_branches(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    *,
    stride: int = 1,
    dilations: Sequence[int] = (1, 2),
    pool: int = 3,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arguments and results as of `s2vfast.ops.temporal_branches`."""
    K, b, _, taps = weight.shape
    z, remainder = x.split([(K + 1) * b, x.shape[3] - (K + 1) * b], -1)
    mean = variance = x.new_empty(0)
    if norm_weight is not None:
        z, mean, variance = batch_norm([z], norm_weight, norm_bias, relu=True, eps=eps)
    *rows, pooled = z.permute(0, 3, 1, 2).split(b, 1)  # each [B, b, T, V]
    out = []
    for row, kernel, dilation in zip(rows, weight, dilations, strict=True):
        padding = (dilation * (taps // 2), 0)
        step = stride
        if taps == 1:  # not by the convolution's stride: see `s2vfast.reference.infogcn.TemporalConv`
            row, step = row[:, :, ::stride], 1
        out.append(F.conv2d(row, kernel[..., None], None, (step, 1), padding, (dilation, 1)))
    out.append(F.max_pool2d(pooled, (pool, 1), (stride, 1), (pool // 2, 0)))
    return torch.cat(out, 1).permute(0, 2, 3, 1), remainder[:, ::stride], mean, variance
