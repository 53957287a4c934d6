"""A pre-norm transformer block, with LayerScale or without, cut where the fused operations are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from s2vfast import ops


class Block(nn.Module):
    """x += gamma1 * proj(attention(norm1(x))); x += gamma2 * mlp(norm2(x)), in four operations.

    Without a ``layer_scale`` there are no gammas.
    """

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, layer_scale: float | None, norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.gamma1 = _gamma(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.fc1 = nn.Linear(dim, round(dim * mlp_ratio))
        self.fc2 = nn.Linear(round(dim * mlp_ratio), dim)
        self.gamma2 = _gamma(dim, layer_scale)

    def forward(self, x: Tensor, rows: Tensor | None = None, factors: Tensor | None = None) -> Tensor:
        """The residual stream after this block.

        Args:
            x: [N, L, D], the residual stream.
            rows: int32 [N, M], tokens that are still wanted after attention; None for all.
            factors: [N, 2] of x's dtype, what the two branches of each track are multiplied by (stochastic depth);
                None for one.

        Returns:
            [N, L, D] ([N, M, D] with ``rows``).
        """
        N, L, D = x.shape
        norm1, norm2 = self.norm1, self.norm2
        qkv = ops.norm_linear(x, norm1.weight, norm1.bias, self.qkv.weight, self.qkv.bias, norm1.eps)
        mixed = ops.attention(qkv.view(N, L, 3, self.heads, D // self.heads)).reshape(N, L, D)
        if rows is not None:  # what follows treats every token by itself
            index = rows.long()[..., None].expand(-1, -1, D)
            x, mixed = x.gather(1, index), mixed.gather(1, index)
        added, _ = ops.add_norm(
            x, mixed, self.gamma1, None, None, projection=self.proj.weight, projection_bias=self.proj.bias
        )
        x = added if factors is None else _scaled(x, added, factors[:, 0])
        added = ops.mlp(
            x,
            self.fc1.weight,
            self.fc1.bias,
            self.fc2.weight,
            self.fc2.bias,
            norm_weight=norm2.weight,
            norm_bias=norm2.bias,
            gamma=self.gamma2,
            eps=norm2.eps,
        )
        return added if factors is None else _scaled(x, added, factors[:, 1])


def _scaled(x: Tensor, added: Tensor, factor: Tensor) -> Tensor:
    """x + factor * branch of x + branch: the fused operations end with the addition. factor [N]."""
    return torch.lerp(x, added, factor[:, None, None])


def _gamma(dim: int, layer_scale: float | None) -> nn.Parameter | None:
    return None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))


class BlockStack(nn.ModuleList):
    """Blocks one after the other."""

    def __init__(
        self, depth: int, dim: int, heads: int, mlp_ratio: float, layer_scale: float | None, norm_eps: float = 1e-6
    ) -> None:
        super().__init__(Block(dim, heads, mlp_ratio, layer_scale, norm_eps) for _ in range(depth))

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """The stream after the last block; arguments as of `states`."""
        return deque(self.states(x, rows), maxlen=1).pop()

    def states(self, x: Tensor, rows: Tensor | None = None) -> Iterable[Tensor]:
        """The stream after each block.

        Args:
            x: [N, L, D].
            rows: int32 [N, M], tokens wanted of the last block; None for all.
        """
        for i, block in enumerate(self):
            x = block(x, rows if i + 1 == len(self) else None)
            yield x
