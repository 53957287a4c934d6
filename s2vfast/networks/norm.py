"""Batch norm of the last axis with what comes after it, in as few passes as an operation can do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from s2vfast import ops


def takes_batch_statistics(norm: nn.Module) -> bool:
    """Whether a batch norm's statistics are the batch's, on this rank alone: what `ops.batch_norm` computes."""
    return type(norm) is nn.BatchNorm1d and norm.training and norm.affine and norm.momentum is not None


def normalise(
    norm: nn.Module,
    x: Tensor | Sequence[Tensor],
    residual: Tensor | None = None,
    relu_first: bool = False,
    relu: bool = False,
    shift: Tensor | None = None,
) -> Tensor:
    """relu(relu(norm of the last axis) + residual), where either ReLU and the residual may be left out: [..., C].

    Args:
        norm: a batch norm of C channels. One over ranks, or one that takes statistics it has kept, does its own part.
        x: [..., C], or several [..., C_i] that lie side by side.
        residual: [..., C].
        relu_first: whether there is a ReLU before the residual.
        relu: whether there is one after it.
        shift: [C], a number for each channel that x lacks, such as the bias of a linear map. A norm that takes the
            statistics of the batch takes it out again: there it costs no pass over x, counts in the running mean
            alone, and has a gradient of zero.
    """
    x = [x] if isinstance(x, Tensor) else list(x)
    if takes_batch_statistics(norm):
        bias = shifted_bias(norm, shift)
        y, mean, variance = ops.batch_norm(
            x, norm.weight, bias, residual, relu_first=relu_first, relu=relu, eps=norm.eps
        )
        keep_statistics(norm, mean, variance, y.numel() // norm.num_features, shift)
        return y
    columns = x[0] if len(x) == 1 else torch.cat(x, -1)
    if shift is not None:
        columns = columns + shift
    y = norm(columns.flatten(0, -2)).view(columns.shape)
    if relu_first:
        y = torch.relu(y)
    if residual is not None:
        y = y + residual
    return torch.relu(y) if relu else y


def shifted_bias(norm: nn.BatchNorm1d, shift: Tensor | None) -> Tensor:
    """The bias of a norm, through which ``shift``, see `normalise`, gets its gradient: zero, not none."""
    return norm.bias if shift is None else norm.bias + 0.0 * shift


@torch.no_grad()
def keep_statistics(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, rows: int, shift: Tensor | None) -> None:
    """Let a norm's running statistics follow those of a batch, [C] each; ``shift`` as of `normalise`."""
    if norm.track_running_stats:
        norm.num_batches_tracked.add_(1)
        mean = mean if shift is None else mean + shift
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
        unbiased = variance * (rows / max(rows - 1, 1))
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
