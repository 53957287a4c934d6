"""Tokens of a clip: one joint over one segment."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2vfast import ops


def token_positions(segment: Tensor, joint: Tensor) -> Tensor:
    """Segment [S, D] plus joint [V, D] embeddings: [S * V, D], token ids segment * V + joint."""
    return (segment[:, None] + joint[None]).reshape(-1, joint.shape[-1])


class Embedding(nn.Module):
    """A linear map of s frames of one joint, a learned joint embedding and a learned segment embedding."""

    def __init__(self, joints: int, segments: int, segment_frames: int, channels: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, segment_frames * channels))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.joint = nn.Parameter(torch.zeros(joints, dim))
        self.segment = nn.Parameter(torch.zeros(segments, dim))

    def forward(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """Tokens [N, K, D] named by ``visible`` (int32 [N, K]), or all [N, L, D], of clips [N, T, V, C]."""
        positions = token_positions(self.segment, self.joint)
        return ops.embed_gather(clips, self.weight, self.bias, positions, visible)
