"""The decoders of masked objectives: from the latents of the visible tokens to predictions of the others."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.networks.base import linear_weights
from s2vfast.networks.block import BlockOptions, BlockStack, CrossBlock
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

    blocks: nn.ModuleList

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
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.joint = nn.Parameter(torch.zeros(joints, dim))
        self.segment = nn.Parameter(torch.zeros(segments, dim))
        self._make_blocks(depth, blocks)
        self.norm = nn.LayerNorm(dim, eps=blocks.norm_eps)
        self.head = nn.Linear(dim, out or dim)
        self.auxiliary = nn.Linear(dim, auxiliary) if auxiliary else None

    def _make_blocks(self, depth: int, options: BlockOptions) -> None:
        self.embed = nn.Linear(options.dim, options.dim)
        self.blocks = BlockStack(depth, options)

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


class CrossDecoder(Decoder):
    """Mask tokens with positions of their own that look at the latents, not at each other; a layer norm, linear heads.

    After CrossMAE (arXiv 2401.14391): what is predicted of a token does not depend on which others are predicted, so
    that nothing else is computed. Blocks map the latents to keys and values themselves; there is no linear map before
    them. The latents' only positions are those that the encoder gave them.
    """

    def _make_blocks(self, depth: int, options: BlockOptions) -> None:
        self.blocks = nn.ModuleList(CrossBlock(options) for _ in range(depth))

    def operand_weights(self) -> Iterable[nn.Parameter]:
        """See `s2vfast.networks.base.operand_weights`."""
        return linear_weights(self.head, self.auxiliary)

    def stream(
        self, latent: Tensor, visible: Tensor, masked: Tensor | None = None, norm: nn.LayerNorm | None = None
    ) -> Tensor:
        """As of `Decoder.stream`; ``visible`` says nothing here, as latents keep the encoder's positions."""
        N, _, D = latent.shape
        queries = (self.mask_token + token_positions(self.segment, self.joint)).to(latent.dtype).expand(N, -1, -1)
        x = queries if masked is None else queries.gather(1, masked.long()[..., None].expand(-1, -1, D))
        for block in self.blocks:
            x = block(x, latent, norm)
        return x


DECODERS = {"self": Decoder, "cross": CrossDecoder}
"""By the names that objective.decoder has for them."""
