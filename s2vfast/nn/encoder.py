"""The encoder: what the student and the teacher are, and what evaluation uses."""

from __future__ import annotations

from torch import Tensor, nn

from s2vfast import ops
from s2vfast.nn.block import BlockStack
from s2vfast.nn.embedding import Embedding


class Encoder(nn.Module):
    """Token embedding, blocks, a final layer norm."""

    def __init__(
        self,
        joints: int,
        segments: int,
        segment_frames: int,
        channels: int,
        dim: int,
        heads: int,
        depth: int,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = 1e-4,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(joints, segments, segment_frames, channels, dim)
        self.blocks = BlockStack(depth, dim, heads, mlp_ratio, layer_scale, norm_eps)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """Features after the final norm.

        Args:
            clips: [N, T, V, C].
            visible: int32 [N, K], the tokens that are looked at; None for all.

        Returns:
            [N, K, D], or [N, L, D].
        """
        _, normed = ops.add_norm(
            self.stream(clips, visible), None, None, self.norm.weight, self.norm.bias, self.norm.eps
        )
        return normed

    def stream(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """The residual stream after the last block, before the final norm; arguments and shapes as of `forward`."""
        return self.blocks(self.embedding(clips, visible))

    def hidden(self, clips: Tensor, last: int) -> list[Tensor]:
        """Outputs of the last ``last`` blocks, before the final norm, each [N, L, D]."""
        kept = []
        for i, x in enumerate(self.blocks.states(self.embedding(clips))):
            if i >= len(self.blocks) - last:
                kept.append(x)
        return kept
