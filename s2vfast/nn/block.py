"""A pre-norm transformer block with LayerScale, cut where the fused operations are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from s2vfast import ops


class Block(nn.Module):
    """x += gamma1 * proj(attention(norm1(x))); x += gamma2 * mlp(norm2(x)).

    The norm that opens a block is computed by what precedes it, in one operation with the addition that closes that:
    `forward` takes the normed stream and the norm that follows.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, layer_scale: float, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.fc1 = nn.Linear(dim, round(dim * mlp_ratio))
        self.fc2 = nn.Linear(round(dim * mlp_ratio), dim)
        self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(
        self, x: Tensor, normed: Tensor, following: nn.LayerNorm | None, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The stream after this block and its norm.

        Args:
            x: [N, L, D], the residual stream.
            normed: [N, L, D], norm1(x).
            following: the norm to apply to the result; None for none.
            rows: int32 [N, M], tokens that are still wanted after attention; None for all.

        Returns:
            The new stream and its norm, both [N, L, D] ([N, M, D] with ``rows``).
        """
        N, L, D = x.shape
        mixed = ops.attention(self.qkv(normed).view(N, L, 3, self.heads, D // self.heads)).reshape(N, L, D)
        if rows is not None:  # what follows treats every token by itself
            index = rows.long()[..., None].expand(-1, -1, D)
            x, mixed = x.gather(1, index), mixed.gather(1, index)
        x, normed = _add_norm(x, self.proj(mixed), self.gamma1, self.norm2)
        branch = ops.mlp(normed, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return _add_norm(x, branch, self.gamma2, following)


class BlockStack(nn.ModuleList):
    """Blocks one after the other."""

    def __init__(
        self, depth: int, dim: int, heads: int, mlp_ratio: float, layer_scale: float, norm_eps: float = 1e-6
    ) -> None:
        super().__init__(Block(dim, heads, mlp_ratio, layer_scale, norm_eps) for _ in range(depth))

    def forward(self, x: Tensor, final: nn.LayerNorm, rows: Tensor | None = None) -> Tensor:
        """The normed stream after the last block; arguments as of `states`."""
        return deque(self.states(x, final, rows), maxlen=1).pop()[1]

    def states(
        self, x: Tensor, final: nn.LayerNorm | None, rows: Tensor | None = None
    ) -> Iterable[tuple[Tensor, Tensor | None]]:
        """The stream after each block and its norm (by the next block's norm1, at the end by ``final``).

        Args:
            x: [N, L, D].
            final: norm after the last block; None for none.
            rows: int32 [N, M], tokens wanted of the last block; None for all.
        """
        _, normed = _add_norm(x, None, None, self[0].norm1)
        for i, block in enumerate(self):
            last = i + 1 == len(self)
            x, normed = block(x, normed, final if last else self[i + 1].norm1, rows if last else None)
            yield x, normed


def _add_norm(
    x: Tensor, branch: Tensor | None, gamma: Tensor | None, norm: nn.LayerNorm | None
) -> tuple[Tensor, Tensor | None]:
    if norm is None:
        return ops.add_norm(x, branch, gamma, None, None)
    return ops.add_norm(x, branch, gamma, norm.weight, norm.bias, norm.eps)
