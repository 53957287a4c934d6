"""Pre-norm transformer blocks, with LayerScale or without, cut where the fused operations are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.networks.base import linear_weights


@dataclass(frozen=True)
class BlockOptions:
    """Size and start of blocks."""

    dim: int
    """D: width of the residual stream."""
    heads: int = 8
    """H."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP as a multiple of dim."""
    layer_scale: float | None = 1e-4
    """First value of LayerScale's gamma; None: no LayerScale."""
    norm_eps: float = 1e-6
    """Of layer norms."""

    @classmethod
    def of(cls, section: Any, **values: Any) -> BlockOptions:
        """From a config's section: of the fields that it has; ``values`` go before."""
        shared = {leaf.name: getattr(section, leaf.name) for leaf in fields(cls) if hasattr(section, leaf.name)}
        return cls(**shared | values)


class _Branches(nn.Module):
    """What a block does with what its tokens have looked at: projection, residual, MLP, residual."""

    heads: int

    def _make(self, options: BlockOptions) -> None:
        dim, hidden = options.dim, round(options.dim * options.mlp_ratio)
        self.proj = nn.Linear(dim, dim)
        self.gamma1 = _gamma(options)
        self.norm2 = nn.LayerNorm(dim, eps=options.norm_eps)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.gamma2 = _gamma(options)

    def _add(self, x: Tensor, attn_out: Tensor, factors: Tensor | None = None) -> Tensor:
        """The stream x [N, L, D] after both branches; attn_out [N, L, D], factors as of `Block.forward`."""
        norm2 = self.norm2
        added, _ = ops.add_norm(
            x, attn_out, self.gamma1, None, None, projection=self.proj.weight, projection_bias=self.proj.bias
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


class Block(_Branches):
    """x += gamma1 * proj(attention(norm1(x))); x += gamma2 * mlp(norm2(x)), in four operations.

    Without LayerScale there are no gammas.
    """

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        self.heads = options.heads
        self.norm1 = nn.LayerNorm(options.dim, eps=options.norm_eps)
        self.qkv = nn.Linear(options.dim, 3 * options.dim)
        self._make(options)

    def operand_weights(self) -> Iterable[nn.Parameter]:
        """See `s2vfast.networks.base.operand_weights`."""
        return linear_weights(self.qkv, self.proj, self.fc1, self.fc2)

    def forward(self, x: Tensor, rows: Tensor | None = None, factors: Tensor | None = None) -> Tensor:
        """The residual stream after this block.

        Args:
            x: [N, L, D], the residual stream.
            rows: int32 [N, U], the only tokens that are needed after attention; None for all.
            factors: [N, 2] of x's dtype, what the two branches of each track are multiplied by (stochastic depth);
                None for one.

        Returns:
            [N, L, D] ([N, U, D] with ``rows``).
        """
        N, L, D = x.shape
        attn_out = ops.attention(self._qkv(x)).reshape(N, L, D)
        if rows is not None:  # what follows treats every token by itself
            index = rows.long()[..., None].expand(-1, -1, D)
            x, attn_out = x.gather(1, index), attn_out.gather(1, index)
        return self._add(x, attn_out, factors)

    def attention_weights(self, x: Tensor) -> Tensor:
        """What each token of the stream x [N, L, D] attends to: [N, H, L, L]; the last dimension sums to 1."""
        q, k, _ = self._qkv(x, impl="reference").permute(2, 0, 3, 1, 4)  # each [N, H, L, d]
        return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)

    def _qkv(self, x: Tensor, impl: str | None = None) -> Tensor:
        N, L, D = x.shape
        norm = self.norm1
        qkv = ops.norm_linear(x, norm.weight, norm.bias, self.qkv.weight, self.qkv.bias, norm.eps, impl=impl)
        return qkv.view(N, L, 3, self.heads, D // self.heads)


class CrossBlock(_Branches):
    """x += gamma1 * proj(attention of norm1(x) to a memory); x += gamma2 * mlp(norm2(x)).

    Tokens of x do not look at each other (CrossMAE's decoder, arXiv 2401.14391), so that each is computed for itself.
    """

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        self.heads = options.heads
        self.norm1 = nn.LayerNorm(options.dim, eps=options.norm_eps)
        self.q = nn.Linear(options.dim, options.dim)
        self.kv = nn.Linear(options.dim, 2 * options.dim)
        self._make(options)

    def operand_weights(self) -> Iterable[nn.Parameter]:
        """See `s2vfast.networks.base.operand_weights`."""
        return linear_weights(self.q, self.kv, self.proj, self.fc1, self.fc2)

    def forward(self, x: Tensor, memory: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """The residual stream after this block.

        Args:
            x: [N, U, D], the residual stream.
            memory: [N, K, D], what its tokens look at.
            norm: a layer norm of the memory; None: it is looked at as it is.

        Returns:
            [N, U, D].
        """
        N, U, D = x.shape
        shape = (N, -1, self.heads, D // self.heads)
        q = ops.norm_linear(x, self.norm1.weight, self.norm1.bias, self.q.weight, self.q.bias, self.norm1.eps)
        if norm is None:
            kv = F.linear(memory.to(self.kv.weight.dtype), self.kv.weight, self.kv.bias.to(self.kv.weight.dtype))
        else:
            kv = ops.norm_linear(memory, norm.weight, norm.bias, self.kv.weight, self.kv.bias, norm.eps)
        k, v = (part.view(shape).transpose(1, 2) for part in kv.chunk(2, dim=-1))
        attn_out = F.scaled_dot_product_attention(q.view(shape).transpose(1, 2), k, v)  # [N, H, U, d]
        return self._add(x, attn_out.transpose(1, 2).reshape(N, U, D))


def _scaled(x: Tensor, added: Tensor, factor: Tensor) -> Tensor:
    """x + factor * branch of x + branch: the fused operations end with the addition. factor [N]."""
    return torch.lerp(x, added, factor[:, None, None])


def _gamma(options: BlockOptions) -> nn.Parameter | None:
    return None if options.layer_scale is None else nn.Parameter(torch.full((options.dim,), options.layer_scale))


class BlockStack(nn.ModuleList):
    """Blocks one after the other."""

    def __init__(self, depth: int, options: BlockOptions) -> None:
        super().__init__(Block(options) for _ in range(depth))

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """The stream after the last block; arguments as of `states`."""
        return deque(self.states(x, rows), maxlen=1).pop()

    def states(self, x: Tensor, rows: Tensor | None = None) -> Iterable[Tensor]:
        """The stream after each block.

        Args:
            x: [N, L, D].
            rows: int32 [N, U], tokens needed of the last block; None for all.
        """
        for i, block in enumerate(self):
            x = block(x, rows if i + 1 == len(self) else None)
            yield x
