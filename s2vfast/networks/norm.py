"""Batch norm of the last axis with what comes after it, in as few passes as an operation can do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from s2vfast import ops


def normalise(
    norm: nn.Module,
    x: Tensor | Sequence[Tensor],
    residual: Tensor | None = None,
    relu_first: bool = False,
    relu: bool = False,
) -> Tensor:
    """relu(relu(norm of the last axis) + residual), where either ReLU and the residual may be left out: [..., C].

    Args:
        norm: a batch norm of C channels. One over ranks, or one that takes statistics it has kept, does its own part.
        x: [..., C], or several [..., C_i] that lie side by side.
        residual: [..., C].
        relu_first: whether there is a ReLU before the residual.
        relu: whether there is one after it.
    """
    x = [x] if isinstance(x, Tensor) else list(x)
    plain = type(norm) is nn.BatchNorm1d and norm.training and norm.affine and norm.momentum is not None
    if plain:
        y, mean, variance = ops.batch_norm(
            x, norm.weight, norm.bias, residual, relu_first=relu_first, relu=relu, eps=norm.eps
        )
        if norm.track_running_stats:
            rows = y.numel() // norm.num_features
            with torch.no_grad():
                norm.num_batches_tracked.add_(1)
                norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
                unbiased = variance * (rows / max(rows - 1, 1))
                norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
        return y
    columns = x[0] if len(x) == 1 else torch.cat(x, -1)
    y = norm(columns.flatten(0, -2)).view(columns.shape)
    if relu_first:
        y = torch.relu(y)
    if residual is not None:
        y = y + residual
    return torch.relu(y) if relu else y
