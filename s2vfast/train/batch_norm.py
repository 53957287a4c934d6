"""Batch norm whose statistics are those of all ranks, on any backend.

`torch.nn.SyncBatchNorm` needs a GPU; a run on two CPU ranks must give the numbers of one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from s2vfast.train.distributed import Ranks


class RankBatchNorm(_BatchNorm):
    """A batch norm over the rows of all ranks; parameters, buffers and their names are those of PyTorch's.

    Args:
        norm: whose parameters and buffers it takes over.
        ranks: the processes that share a batch.
    """

    def __init__(self, norm: _BatchNorm, ranks: Ranks) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.ranks = ranks
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected 2 dimensions or more, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """As of `torch.nn.BatchNorm1d`, 2d or 3d."""
        if not self.training:
            return super().forward(input)
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps, self.ranks)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = self.momentum
                if momentum is None:  # a plain mean over the batches
                    momentum = self.num_batches_tracked.to(self.running_mean.dtype).reciprocal()
                unbiased = variance * (count / (count - 1.0).clamp(min=1.0))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return output


class _Normalise(torch.autograd.Function):
    """Each rank's count, mean and variance are put together (Chan et al., 1979), and so are the gradient's two sums."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [0, *range(2, x.dim())]
        variance, mean = torch.var_mean(x, dim=dims, correction=0)
        C = x.shape[1]
        rows = torch.zeros(ranks.world_size, 2 * C + 1, dtype=x.dtype, device=x.device)
        rows[ranks.rank, :C], rows[ranks.rank, C : 2 * C], rows[ranks.rank, 2 * C] = mean, variance, x.numel() / C
        ranks.all_reduce(rows)
        fraction = rows[:, 2 * C :] / rows[:, 2 * C].sum()  # [world_size, 1]
        mean = (rows[:, :C] * fraction).sum(0)
        variance = ((rows[:, C : 2 * C] + (rows[:, :C] - mean).square()) * fraction).sum(0)
        shape = [1, C, *[1] * (x.dim() - 2)]
        rstd = torch.rsqrt(variance + eps)
        normed = (x - mean.view(shape)) * rstd.view(shape)
        count = rows[:, 2 * C].sum()
        ctx.save_for_backward(normed, rstd, weight, count)
        ctx.dims, ctx.shape, ctx.ranks = dims, shape, ranks
        ctx.mark_non_differentiable(mean, variance, count)
        output = normed if weight is None else normed * weight.view(shape) + bias.view(shape)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        normed, rstd, weight, count = ctx.saved_tensors
        grad_bias = gradient.sum(ctx.dims)
        grad_weight = (gradient * normed).sum(ctx.dims)
        sums = torch.stack([grad_bias, grad_weight])
        ctx.ranks.all_reduce(sums)
        mean_grad, mean_product = (sums / count).view(2, *ctx.shape).unbind()
        scale = rstd if weight is None else rstd * weight
        grad_x = (gradient - mean_grad - normed * mean_product) * scale.view(ctx.shape)
        if weight is None:
            return grad_x, None, None, None, None
        return grad_x, grad_weight, grad_bias, None, None


def has_batch_norm(module: nn.Module) -> bool:
    """Whether there is a batch norm in it."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def synchronise_batch_norm(module: nn.Module, ranks: Ranks) -> None:
    """Let all batch norms of a module see the rows of all ranks; of one rank, they stay PyTorch's."""
    if ranks.world_size == 1:
        return
    # A norm that stands in two places stays one.
    over_ranks: dict[nn.Module, RankBatchNorm] = {}
    for owner in list(module.modules()):
        for name, part in owner._modules.items():
            if isinstance(part, _BatchNorm) and not isinstance(part, RankBatchNorm):
                setattr(owner, name, over_ranks.setdefault(part, RankBatchNorm(part, ranks)))
