"""Temporal branches of graph convolution networks, as InfoGCN and FreqMixFormer have them (after MS-G3D, CVPR 2020).

Activations are channels-last, [B, T, V, C]: tracks, frames, joints, channels. A 1x1 convolution is then a matrix
product over rows, and batch norm looks at columns.

    x ─ 1x1 ─ BN ─ ReLU ─ (k, 1) convolution, dilation 1 ─┐
    x ─ 1x1 ─ BN ─ ReLU ─ (k, 1) convolution, dilation 2 ─┤
    x ─ 1x1 ─ BN ─ ReLU ─ (3, 1) max pool ────────────────┼─ concatenated ─ BN
    x ─ more, one module each ───────────────────────────┘

The 1x1 convolutions are one product and the norms one norm: a batch norm of several channels is one of each. Biases
before a batch norm are left out of products, see `normalise`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.networks.norm import keep_statistics, normalise, shifted_bias, takes_batch_statistics
from s2vfast.ops._linear import linear


def frames_after(frames: int, stride: int) -> int:
    """T': frames that are left of T, ceil(T / stride)."""
    return -(-frames // stride)


class Branch(nn.Linear):
    """A further branch: a 1x1 convolution, whose product comes with those of the other branches."""

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What comes of the product [B, T', V, b], which is without the bias, and a shift [b] as of `normalise`."""
        return rows, self.bias


class TemporalBranches(nn.Module):
    """Dilated convolutions over time, a max pool, and ``more`` branches, concatenated and normalised.

    Args:
        channels_in: C of the input.
        channels: b, of each branch.
        kernel: k, frames of a convolution; odd.
        dilations: one convolution branch each.
        stride: of time.
        pool: frames of the max pool; odd.
        more: further branches, of b channels each.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int = 5,
        dilations: Sequence[int] = (1, 2),
        stride: int = 1,
        pool: int = 3,
        more: Sequence[Branch] = (),
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
        rows = linear(x, torch.cat([self.expand.weight, *(branch.weight for branch in self.others)]), None)
        convolved, remainder = self._convolved(rows)
        results = [branch(of) for branch, of in zip(self.others, remainder.split(self.channels, -1), strict=True)]
        shifts = [*self.bias, self.bias.new_zeros(self.channels), *(shift for _, shift in results)]
        branches = [convolved, *(of for of, _ in results)]
        return normalise(self.norm, branches, residual, relu_first, relu, torch.cat(shifts))

    def _convolved(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Convolutions and pool, [B, T', V, E], and the product of the other branches, of all products."""
        norm, shift = self.expand_norm, self.expand.bias
        options = {"stride": self.stride, "dilations": self.dilations, "pool": self.pool}
        if takes_batch_statistics(norm):
            branches, remainder, mean, variance = ops.temporal_branches(
                rows, self.weight, norm.weight, shifted_bias(norm, shift), eps=norm.eps, **options
            )
            keep_statistics(norm, mean, variance, rows[..., 0].numel(), shift)
            return branches, remainder
        width = norm.num_features
        z = normalise(norm, rows[..., :width], relu=True, shift=shift)
        branches, *_ = ops.temporal_branches(z, self.weight, **options)
        return branches, rows[:, :: self.stride, :, width:]
