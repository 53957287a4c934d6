"""Batch norm with statistics of the batch, a residual and ReLU, as residual blocks of convolution networks end.

(Ioffe and Szegedy, "Batch normalization", ICML 2015; He et al., "Deep residual learning", CVPR 2016.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def batch_norm(
    x: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    relu_first: bool = False,
    relu: bool = False,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `s2vfast.ops.batch_norm`."""
    rows = torch.cat(list(x), -1).flatten(0, -2)  # [R, C]
    mean = rows.sum(0) / max(len(rows), 1)
    variance = (rows - mean).square().sum(0) / max(len(rows), 1)
    y = (rows - mean) * torch.rsqrt(variance + eps) * weight + bias
    if relu_first:
        y = torch.relu(y)
    if residual is not None:
        y = y + residual.reshape(y.shape)
    if relu:
        y = torch.relu(y)
    return y.view(*x[0].shape[:-1], len(weight)), mean.detach(), variance.detach()
