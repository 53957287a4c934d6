"""Temporal branches of graph convolution networks, as InfoGCN and FreqMixFormer have them (after MS-G3D, CVPR 2020).

Activations are channels-last, [B, T, V, C]: tracks, frames, joints, channels. A 1x1 convolution is then a matrix
product over rows, and batch norm looks at columns.

    x ─ 1x1 ─ BN ─ ReLU ─ (k, 1) convolution, dilation 1 ─┐
    x ─ 1x1 ─ BN ─ ReLU ─ (k, 1) convolution, dilation 2 ─┤
    x ─ 1x1 ─ BN ─ ReLU ─ (3, 1) max pool ────────────────┼─ concatenated ─ BN
    x ─ more, one module each ───────────────────────────┘

The 1x1 convolutions are one matrix and the norms one norm: a batch norm of several channels is one of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast.networks.norm import normalise


def frames_after(frames: int, stride: int) -> int:
    """T': frames that are left of T, ceil(T / stride)."""
    return -(-frames // stride)


class StridedLinear(nn.Linear):
    """A 1x1 convolution with a stride in time: x [B, T, V, C] to [B, T', V, channels]."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, T', V, channels]."""
        return super().forward(x[:, :: self.stride])


class TemporalBranches(nn.Module):
    """Dilated convolutions over time, a max pool, and ``more`` branches, concatenated and normalised.

    Args:
        channels_in: C of the input.
        channels: b, of each branch.
        kernel: k, frames of a convolution; odd.
        dilations: one convolution branch each.
        stride: of time.
        pool: frames of the max pool; odd.
        more: further branches, modules of x [B, T, V, C] to [B, T', V, b].
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int = 5,
        dilations: Sequence[int] = (1, 2),
        stride: int = 1,
        pool: int = 3,
        more: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.channels, self.kernel, self.dilations, self.stride, self.pool = channels, kernel, dilations, stride, pool
        self.expand = nn.Linear(channels_in, channels * (len(dilations) + 1))
        self.expand_norm = nn.BatchNorm1d(channels * (len(dilations) + 1))
        self.weight = nn.Parameter(torch.empty(len(dilations), channels, channels, kernel))  # [K, out, in, k]
        self.bias = nn.Parameter(torch.empty(len(dilations), channels))
        self.others = nn.ModuleList(more)
        self.norm = nn.BatchNorm1d(channels * (len(dilations) + 1 + len(more)))
        bound = (channels * kernel) ** -0.5  # PyTorch's default of a convolution
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, residual: Tensor | None, relu_first: bool = False, relu: bool = True) -> Tensor:
        """Normalised branches [B, T', V, branches * b] of x [B, T, V, C], convolutions first, then pool and more.

        The other arguments say what comes after the norm, see `normalise`.
        """
        z = normalise(self.expand_norm, self.expand(x), relu=True)
        *rows, pooled = z.permute(0, 3, 1, 2).split(self.channels, dim=1)  # each [B, b, T, V]
        out = []
        for row, weight, bias, dilation in zip(rows, self.weight, self.bias, self.dilations, strict=True):
            padding = dilation * (self.kernel - 1) // 2
            out.append(F.conv2d(row, weight[..., None], bias, (self.stride, 1), (padding, 0), (dilation, 1)))
        out.append(F.max_pool2d(pooled, (self.pool, 1), (self.stride, 1), (self.pool // 2, 0)))
        branches = [branch.permute(0, 2, 3, 1) for branch in out]
        branches += [branch(x) for branch in self.others]
        return normalise(self.norm, branches, residual, relu_first, relu)
