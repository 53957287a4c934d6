"""The decoder of masked objectives: from the latents of the visible tokens to predictions of the others."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.networks.base import linear_weights
from s2vfast.networks.block import BlockOptions, BlockStack
from s2vfast.networks.transformer import token_positions


class Decoder(nn.Module):
    """A linear map of the latents, mask tokens, positions of its own, blocks, a layer norm and a linear head.

    Args:
        joints: V.
        segments: S.
        depth: blocks.
        blocks: their size.
        out: numbers predicted a token; None: dim.
        auxiliary: numbers that a second head predicts a token; None: there is none.
    """

    def __init__(
        self,
        joints: int,
        segments: int,
        depth: int,
        blocks: BlockOptions,
        out: int | None = None,
        auxiliary: int | None = None,
    ) -> None:
        super().__init__()
        dim = blocks.dim
        self.embed = nn.Linear(dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.joint = nn.Parameter(torch.zeros(joints, dim))
        self.segment = nn.Parameter(torch.zeros(segments, dim))
        self.blocks = BlockStack(depth, blocks)
        self.norm = nn.LayerNorm(dim, eps=blocks.norm_eps)
        self.head = nn.Linear(dim, out or dim)
        self.auxiliary = nn.Linear(dim, auxiliary) if auxiliary else None

    def operand_weights(self) -> Iterable[nn.Parameter]:
        """See `s2vfast.networks.base.operand_weights`."""
        return linear_weights(self.embed, self.head, self.auxiliary)

    def forward(
        self, latent: Tensor, visible: Tensor, masked: Tensor | None = None, norm: nn.LayerNorm | None = None
    ) -> Tensor:
        """Predictions: `predict` of the `stream`, whose arguments these are. [N, U, out], or [N, L, out]."""
        return self.predict(self.stream(latent, visible, masked, norm), self.head)

    def stream(
        self, latent: Tensor, visible: Tensor, masked: Tensor | None = None, norm: nn.LayerNorm | None = None
    ) -> Tensor:
        """The residual stream after the last block.

        Args:
            latent: [N, K, D], the encoder's output at the visible tokens.
            visible: int32 [N, K], their token ids.
            masked: int32 [N, U], the tokens to predict; None for all L. The last block's MLP and the head see
                only these.
            norm: a layer norm to apply to the latents first: with it they are the encoder's residual stream, and norm
                and linear map are one operation.

        Returns:
            [N, U, D], or [N, L, D].
        """
        weight, bias = self.embed.weight, self.embed.bias
        if norm is None:
            embedded = F.linear(latent.to(weight.dtype), weight, bias.to(weight.dtype))
        else:
            embedded = ops.norm_linear(latent, norm.weight, norm.bias, weight, bias, norm.eps)
        positions = token_positions(self.segment, self.joint)
        x = ops.mask_fill(embedded.to(latent.dtype), self.mask_token, positions, visible)
        return self.blocks(x, masked)

    def predict(self, x: Tensor, head: nn.Linear) -> Tensor:
        """What a head (`head` or `auxiliary`) makes of the `stream`: [N, U, its width]."""
        return ops.norm_linear(x, self.norm.weight, self.norm.bias, head.weight, head.bias, self.norm.eps)
